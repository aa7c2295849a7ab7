//! Failures of microVMs: each has a cause, an exit code, and leaves a black box.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};

use crate::support::processes::ProcessTree;
use crate::support::{CommandOutput, Host, Running, TIMEOUT, require_root, until};

/// Returns the arguments that run a shell script as root in a microVM.
fn as_root(script: &str) -> [&str; 8] {
    ["-i", "--json", "--user", "root", "--", "sh", "-c", script]
}

/// Runs a shell script as root in a microVM, after some output has arrived.
fn after_a_word(host: &Host, script: &str) -> CommandOutput {
    let script = format!("echo before; read line; {script}; sleep 1000");
    let mut running = Running::start_with(&mut host.command(as_root(&script)), Stdio::piped());
    running.wait_for_output("before");
    running.feed(b"\n".to_vec());
    running.finish(TIMEOUT)
}

/// Returns the console log of a black box.
fn console(black_box: &Path) -> String {
    String::from_utf8_lossy(&fs::read(black_box.join("console.log")).unwrap()).into_owned()
}

#[test]
fn a_kernel_panic_is_reported_with_its_reason() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo c > /proc/sysrq-trigger");
    ending
        .assert_output("before\n")
        .assert_stderr_has("the guest's kernel panicked: sysrq triggered crash");
    let black_box = ending.assert_failed(&host, "kernel_panic", 125);
    assert!(console(&black_box).contains("Kernel panic - not syncing"), "{ending:?}");
    assert!(ending.failure()["statistics"].is_object() || ending.failure()["statistics"].is_null());
    assert_eq!(ending.failure()["phase"], "running", "{ending:?}");
}

#[test]
fn a_power_off_during_a_job_is_reported() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo o > /proc/sysrq-trigger");
    ending.assert_output("before\n").assert_stderr_has("the guest powered off");
    ending.assert_failed(&host, "powered_off", 125);
}

#[test]
fn a_reboot_during_a_job_is_reported() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo b > /proc/sysrq-trigger");
    ending.assert_output("before\n").assert_stderr_has("the guest rebooted");
    ending.assert_failed(&host, "rebooted", 125);
}

#[test]
fn a_power_off_request_is_handled() {
    let host = Host::new();
    let ending = after_a_word(&host, "kill -TERM 1");
    ending.assert_failed(&host, "powered_off", 125);
}

#[test]
fn a_killed_agent_ends_the_machine() {
    let host = Host::new();
    // Signals don't end PID 1, but breakpoints all over its code do.
    let script = "kill -KILL 1; echo survived; read line; \
                  range=$(grep -m1 ' r-xp ' /proc/1/maps | cut -d' ' -f1); \
                  start=$((0x${range%-*})); end=$((0x${range#*-})); \
                  tr '\\000' '\\314' < /dev/zero | dd of=/proc/1/mem bs=4096 iflag=fullblock \
                  seek=$((start / 4096)) count=$(((end - start) / 4096)) conv=notrunc 2>/dev/null";
    let ending = after_a_word(&host, script);
    ending.assert_output("before\nsurvived\n").assert_stderr_has("Attempted to kill init");
    ending.assert_failed(&host, "kernel_panic", 125);
}

#[test]
fn a_guest_that_boots_too_slowly_times_out() {
    let host = Host::new();
    let ending = host.run(["--json", "--boot-timeout", "300ms", "--", "true"]);
    ending.assert_stderr_has("the guest did not become ready within 300ms");
    ending.assert_stderr_has("hint: see the last lines of the console in the black box");
    ending.assert_failed(&host, "boot_deadline", 125);
}

#[test]
fn a_job_that_uses_too_much_memory_is_killed_and_the_rest_survives() {
    let host = Host::new();
    let script = "tail /dev/zero; echo \"ended with $?\"; exit 3";
    let ending = host.run(["--memory", "256M", "--", "sh", "-c", script]);
    ending.assert_code(3).assert_output("ended with 137\n");
    host.assert_clean();
}

/// Kills one of a running microVM's processes from outside.
fn kill_while_running(
    victim: impl Fn(&ProcessTree) -> nix::unistd::Pid,
    signal: Signal,
) -> (Host, CommandOutput) {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "sh", "-c", "echo begun; sleep 1000"]);
    running.wait_for_output("begun");
    kill(victim(&ProcessTree::wait_for(running.pid())), signal).unwrap();
    let ending = running.finish(TIMEOUT);
    ending.assert_output("begun\n");
    (host, ending)
}

#[test]
fn a_killed_qemu_is_reported() {
    let (host, ending) = kill_while_running(|tree| tree.qemu, Signal::SIGKILL);
    ending.assert_stderr_has("QEMU exited with signal: 9").assert_failed(&host, "qemu_ended", 125);
}

#[test]
fn a_terminated_qemu_is_reported() {
    let (host, ending) = kill_while_running(|tree| tree.qemu, Signal::SIGTERM);
    ending.assert_stderr_has("QEMU exited with ");
    let black_box = ending.assert_failed(&host, "qemu_ended", 125);
    let log = fs::read_to_string(black_box.join("qemu.log")).unwrap();
    assert!(log.contains("terminating on signal 15"), "{log}");
}

#[test]
fn a_killed_vsock_program_is_reported() {
    let (host, ending) = kill_while_running(|tree| tree.vsock, Signal::SIGKILL);
    ending.assert_stderr_has("vhost-device-vsock exited with signal: 9");
    ending.assert_failed(&host, "vsock_ended", 125);
}

#[test]
fn a_killed_shepherd_is_reported() {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "sh", "-c", "echo begun; sleep 1000"]);
    running.wait_for_output("begun");
    kill(ProcessTree::wait_for(running.pid()).shepherd, Signal::SIGKILL).unwrap();
    let ending = running.finish(TIMEOUT);
    ending.assert_code(125).assert_stderr_has("the shepherd exited unexpectedly: signal SIGKILL");
    let left = host.microvms();
    assert_eq!(left.len(), 1, "a black box: {left:?}");
    ending.assert_stderr_has(&format!("evidence: {}", left[0].display()));
    host.assert_no_process();
}

#[test]
fn a_qemu_killed_during_the_boot_is_reported() {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "true"]);
    running.wait_for_phase("booting");
    // The first output of the kernel.
    let log = host.microvms()[0].join("console.log");
    until("words on the console", TIMEOUT, || {
        fs::metadata(&log).is_ok_and(|log| log.len() > 0).then_some(())
    });
    kill(ProcessTree::wait_for(running.pid()).qemu, Signal::SIGKILL).unwrap();
    let ending = running.finish(TIMEOUT);
    assert_eq!(ending.failure()["phase"], "booting", "{ending:?}");
    assert!(ending.phases().ends_with(&["failed".into(), "destroyed".into()]), "{ending:?}");
    ending.assert_stderr_has("QEMU exited with signal: 9").assert_failed(&host, "qemu_ended", 125);
}

/// A small file system for microVMs, visible only to this test's processes.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn below(host: &Host, size: &str) -> Self {
        const NONE: Option<&str> = None;
        require_root();
        let path = host.state().join("microvms");
        fs::create_dir(&path).unwrap();
        // In the namespace of this thread and of the processes that it starts.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).unwrap();
        let options = format!("size={size},mode=700");
        mount(NONE, &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(path)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

#[test]
fn a_full_host_disk_ends_only_the_microvm() {
    let host = Host::new();
    let _small = SmallFileSystem::below(&host, "24m");
    let fill = "dd if=/dev/urandom of=/var/fill bs=1M count=100 conv=fsync 2>/dev/null; echo after";
    let ending = after_a_word(&host, fill);
    ending.assert_output("before\n").assert_stderr_has("the host's disk is full");
    ending.assert_stderr_has("hint: free space on the file system of the state directory");
    ending.assert_failed(&host, "host_disk_full", 73);
    // Its space is free again: the next run works.
    fs::remove_dir_all(host.microvms()[0].clone()).unwrap();
    host.run(as_root("exit 6")).assert_code(6);
}

#[test]
fn an_already_full_host_disk_is_reported() {
    let host = Host::new();
    let small = SmallFileSystem::below(&host, "1m");
    let mut fill = fs::File::create(small.0.join("fill")).unwrap();
    std::io::copy(&mut std::io::repeat(0), &mut fill).unwrap_err();
    let ending = host.run(["--", "true"]);
    ending.assert_code(73);
    assert!(ending.stderr.contains("No space left on device"), "{ending:?}");
    host.assert_no_process();
}

/// A build must learn the reason: 137 alone is ambiguous.
#[test]
fn a_job_that_ran_out_of_memory_is_reported() {
    let host = Host::new();
    let hog = "a=x; while :; do a=$a$a; done";
    let ending = host.run(["--memory", "256M", "--json", "--", "sh", "-c", hog]);
    assert!(!ending.status.success(), "{ending:?}");
    ending.assert_stderr_has("ran out of memory: its kernel killed").assert_stderr_has("--memory");
    // A job that succeeds in spite of it gets no message.
    let spared =
        host.run(["--memory", "256M", "--", "sh", "-c", &format!("sh -c '{hog}'; exit 0")]);
    spared.assert_code(0);
    assert!(!spared.stderr.contains("memory"), "{spared:?}");
    host.assert_clean();
}
