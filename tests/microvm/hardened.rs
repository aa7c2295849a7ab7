//! Hardening of an image: checks each control from inside, and tries to circumvent them.

use std::fs;
use std::path::Path;

use mayfly_image::Store;
use mayfly_image::hardening::audit;
use serde_json::Value;

use crate::support::{Host, TIMEOUT, images, until};

/// Run as root. With `modules_disabled` the kernel rejects the call before it reads the file (1,
/// EPERM); otherwise it would reject the invalid module (8, ENOEXEC).
const LOAD_A_MODULE: &str = r#"
    perl -e 'open F, "/bin/true"; $a = ""; syscall(313, fileno(F), $a, 0); print $!+0, "\n"'
"#;

#[test]
fn every_control_is_in_place_and_root_loads_no_module() {
    let host = Host::new();
    let image = Store::open(images()).find(&"base".parse().unwrap()).unwrap();
    let mut script = audit::script(&image.manifest);
    script.extend(format!("echo module; {LOAD_A_MODULE}\n").bytes());
    let script = String::from_utf8(script).unwrap();
    let running = host.start(["--user", "root", "--", "sh", "-c", &script]);
    let ending = running.finish(4 * TIMEOUT);
    let text = ending.assert_code(0).text();
    let report = audit::evaluate(&image.manifest, text.as_bytes());
    let failed: Vec<_> =
        report.rows.iter().filter(|row| row.result != audit::AuditOutcome::Pass).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(text.ends_with("module\n1\n"), "{text}");
    host.assert_clean();
}

/// Prints a line for each attempt that succeeds.
const WAYS_UP: &str = r#"
    worked() { echo "$1 worked"; }
    for program in su mount umount passwd newgrp gpasswd chsh chfn chage expiry; do
        path=$(command -v $program) || continue
        [ ! -u $path ] && [ ! -g $path ] || worked "a set-user-id $program"
    done
    su -c true </dev/null >/dev/null 2>&1 && worked su
    newgrp root -c true </dev/null >/dev/null 2>&1 && worked newgrp
    mount -t tmpfs none /mnt 2>/dev/null && worked mount
    unshare --user --map-root-user true 2>/dev/null && worked 'a user namespace'
    cat /etc/shadow 2>/dev/null | grep -q . && worked 'reading shadow'
    for name in mem environ maps exe cmdline; do
        head -c 1 /proc/1/$name 2>/dev/null | grep -q . && worked "reading the agent's $name"
    done
    ls /proc | grep -x 1 && worked 'seeing the agent'
    for device in /dev/vda /dev/mem /dev/kmsg /dev/port; do
        head -c 1 $device 2>/dev/null | grep -q . && worked "reading $device"
    done
    perl -e 'exit !(syscall(101, 16, 1, 0, 0) == 0)' && worked 'tracing the agent'
    perl -e '$map = pack "L4", 2, 4, 4, 1; exit !(syscall(321, 0, $map, 16) >= 0)' && worked BPF
    echo 1 2>/dev/null >/proc/sys/kernel/sysrq && worked 'setting a parameter'
    cp /usr/bin/id /home/runner/own && chmod u+s /home/runner/own && \
        [ "$(/home/runner/own -u)" = "$(id -u)" ] || worked 'a set-user-id program of its own'
    grep -q '^NoNewPrivs:.1$' /proc/self/status || worked 'new privileges'
    [ "$(ulimit -Hc)" = 0 ] || worked 'a core dump'
"#;

#[test]
fn a_job_can_neither_become_root_nor_inspect_the_agent() {
    let host = Host::new();
    let ending = host.shell(&format!("{WAYS_UP}{LOAD_A_MODULE}"));
    ending.assert_code(0).assert_output("1\n");
    host.assert_clean();
}

/// Returns the programs in a log, from complete lines only.
fn programs(log: &Path) -> Vec<Value> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    whole.map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_programs_of_a_job_are_in_its_record_without_their_arguments() {
    let host = Host::new();
    let mut running = host.start(["--", "sh", "-c", "id -u; env SECRET=hunter2 sleep 1000"]);
    running.wait_for_output("1001");
    let log = host.microvms().remove(0).join("programs.jsonl");
    let path = |line: &Value| line["program"].as_str().unwrap_or_default().to_owned();
    let logged = until("the programs in the record", TIMEOUT, || {
        let logged = programs(&log);
        logged.iter().any(|line| path(line).ends_with("/sleep")).then_some(logged)
    });
    let shell = &logged[0];
    assert_eq!(path(shell), "/usr/bin/dash", "{logged:?}");
    assert_eq!((&shell["user"], &shell["parent"]), (&Value::from(1001), &Value::from(1)));
    let id = logged.iter().find(|line| path(line) == "/usr/bin/id").expect("id is logged");
    assert_eq!(id["parent"], shell["process"], "{logged:?}");
    let text = fs::read_to_string(&log).unwrap();
    assert!(!text.contains("hunter2"), "{text}");
}
