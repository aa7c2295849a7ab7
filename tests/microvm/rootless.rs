//! Everything as an ordinary user with access to `/dev/net/tun` and no other privilege.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use nix::unistd::Pid;

use crate::support::host::{Devices, ORDINARY_USER};
use crate::support::processes::{self, ProcessTree};
use crate::support::{Host, Running, TIMEOUT};

fn ordinary() -> Host {
    let mut host = Host::new();
    host.run_as_ordinary_user(&Devices::default());
    host
}

#[track_caller]
fn assert_status(pid: Pid, field: &str, value: &str) {
    assert_eq!(processes::status(pid, field).as_deref(), Some(value), "{field} of {pid}");
}

fn namespace(pid: Pid, kind: &str) -> String {
    let link = fs::read_link(processes::file(pid, &format!("ns/{kind}"))).unwrap();
    link.to_string_lossy().into_owned()
}

#[test]
fn no_capability_and_no_setuid_program_is_needed() {
    const NONE: &str = "0000000000000000";
    let host = ordinary();
    let script = "echo out; echo err >&2; read line; exit 7";
    let mut command = host.command(["-i", "--", "sh", "-c", script]);
    let mut running = Running::start_with(&mut command, Stdio::piped());
    running.wait_for_output("out");
    let tree = ProcessTree::wait_for(running.pid());
    for pid in tree.all() {
        let ids = [ORDINARY_USER.to_string(), "\t".into()].concat().repeat(4);
        assert_status(pid, "Uid", ids.trim_end());
        assert_status(pid, "Gid", ids.trim_end());
        // With no_new_privs, executing a program gives no process more privileges.
        assert_status(pid, "NoNewPrivs", "1");
        let program = processes::file(pid, "exe");
        let mode = fs::metadata(program).unwrap().permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{:?}", processes::program(pid));
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        for pid in [tree.front, tree.qemu, tree.vsock] {
            assert_status(pid, set, NONE);
        }
    }
    // The shepherd has capabilities only in its own namespaces.
    for kind in ["user", "pid", "mnt", "ipc"] {
        assert_ne!(namespace(tree.shepherd, kind), namespace(tree.front, kind));
    }
    running.feed(b"\n".to_vec());
    let ending = running.finish(TIMEOUT);
    ending.assert_code(7).assert_output("out\n");
    assert_eq!(ending.stderr, "err\n");
    host.assert_clean();
}

#[test]
fn streams_terminals_and_copies_are_those_of_root() {
    let host = ordinary();
    let mut running = Running::start_with(&mut host.command(["-i", "--", "cat"]), Stdio::piped());
    running.feed(b"x".to_vec());
    running.finish(TIMEOUT).assert_code(0).assert_output("x");
    let ending = host.run(["-t", "--", "tty"]);
    ending.assert_code(0).assert_output("/dev/pts/0\r\n");
    let copy = format!("/etc/hostname:{}", host.state().join("copy").display());
    host.run(["--user", "root", "--copy-out", &copy, "--", "true"]).assert_code(0);
    let owner = fs::metadata(host.state().join("copy")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&owner), ORDINARY_USER);
    host.assert_clean();
}

#[test]
fn failures_are_those_of_root() {
    let host = ordinary();
    let script = "echo c > /proc/sysrq-trigger; sleep 1000";
    let ending = host.run(["--json", "--user", "root", "--", "sh", "-c", script]);
    ending.assert_failed(&host, "kernel_panic", 125);
}
