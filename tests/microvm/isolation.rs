//! Isolation: runs do not see each other, and none changes the image.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use crate::support::processes::{ProcessTree, file, status};
use crate::support::{Host, TIMEOUT, image, is_long_run};

#[test]
fn files_of_one_run_are_not_visible_to_the_next() {
    let host = Host::new();
    let script = "test ! -e /etc/left && test ! -e /home/runner/left \
                  && echo mine > /etc/left && echo mine > /home/runner/left && sync && echo written";
    for _ in 0..2 {
        let ending = host.run(["--user", "root", "--", "sh", "-c", script]);
        ending.assert_code(0).assert_output("written\n");
    }
    host.assert_clean();
}

#[test]
fn runs_that_write_do_not_change_the_image() {
    let host = Host::new();
    let image = image::base();
    let before = image::digests(&image);
    // The parts of the image that a job can reach: its files, and the device below them.
    let script = "echo changed > /etc/hostname; rm -rf /usr/share/doc /usr/bin/git; \
                  dd if=/dev/urandom of=/dev/vda bs=1M seek=100 count=8 conv=fsync 2>/dev/null; \
                  sync; echo done";
    // Two at a time.
    for _ in 0..if is_long_run() { 10 } else { 3 } {
        let write = || host.start(["--user", "root", "--", "sh", "-c", script]);
        for running in [write(), write()] {
            running.finish(TIMEOUT).assert_code(0).assert_output("done\n");
        }
    }
    assert_eq!(image::digests(&image), before);
    host.assert_clean();
}

#[test]
fn four_concurrent_runs_are_isolated() {
    let host = Host::new();
    let script = "hostname > /tmp/own; sleep 1; cat /tmp/own; ls /tmp | wc -l; cat /proc/uptime";
    let start = || host.start(["--json", "--memory", "256M", "--", "sh", "-c", script]);
    let running = [start(), start(), start(), start()];
    let mut names: Vec<String> = running
        .map(|running| {
            let ending = running.finish(2 * TIMEOUT);
            let text = ending.assert_code(0).text();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[1], "1", "files of another run: {ending:?}");
            assert_eq!(ending.events()[0]["microvm"], lines[0], "{ending:?}");
            lines[0].to_owned()
        })
        .to_vec();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 4, "equal host names: {names:?}");
    host.assert_clean();
}

#[test]
fn nothing_beyond_the_gateway_is_reachable() {
    let host = Host::new();
    // 110 and 111: the connection is refused or times out; nothing is ever connected.
    let script = "for address in 1.1.1.1 169.254.169.254 127.0.0.1 10.0.0.1 172.31.0.1; do \
                  if timeout 2 bash -c \"exec 3<>/dev/tcp/$address/80\" 2>/dev/null; \
                  then echo \"$address answers\"; else echo no; fi; done; \
                  ip=$(cat /etc/resolv.conf); echo \"$ip\"; ls /sys/class/net | tr '\\n' ' '";
    let ending = host.run(["--egress", "none", "--", "sh", "-c", script]);
    ending.assert_code(0);
    ending.assert_output(&format!("{}nameserver 172.31.0.1\neth0 lo ", "no\n".repeat(5)));
    host.assert_clean();
}

#[test]
fn qemu_and_the_vsock_program_have_minimal_privileges() {
    const NONE: &str = "0000000000000000";
    let host = Host::new();
    let mut running = host.start(["--", "sh", "-c", "echo begun; sleep 1000"]);
    running.wait_for_output("begun");
    let tree = ProcessTree::wait_for(running.pid());
    for pid in [tree.qemu, tree.vsock] {
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(pid, set).as_deref(), Some(NONE), "{set} of {pid}");
        }
        assert_eq!(status(pid, "NoNewPrivs").as_deref(), Some("1"));
        // Its own network namespace, which contains only a loopback interface that is down.
        let devices = fs::read_to_string(file(pid, "net/dev")).unwrap();
        let devices: Vec<_> = devices.lines().filter_map(|line| line.split_once(':')).collect();
        assert_eq!(devices.len(), 1, "{devices:?}");
        let own = fs::read_link(file(pid, "ns/net")).unwrap();
        assert_ne!(own, fs::read_link(file(tree.shepherd, "ns/net")).unwrap());
        assert_ne!(own, fs::read_link("/proc/self/ns/net").unwrap());
    }
    assert_eq!(status(tree.qemu, "Seccomp").as_deref(), Some("2"), "QEMU has no seccomp filter");
    // The overlay has no name by which another process could open it.
    let overlays: BTreeSet<_> = fs::read_dir(file(tree.qemu, "fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| path.starts_with(host.state().join("microvms")))
        .collect();
    assert_eq!(overlays.len(), 1, "{overlays:?}");
    let gone = |path: &PathBuf| path.to_string_lossy().ends_with("(deleted)");
    assert!(overlays.iter().all(gone), "{overlays:?}");
}
