//! How microVMs fail: each way has its name, its code, and leaves its evidence.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};

use crate::support::processes::Tree;
use crate::support::{Ending, Host, PATIENCE, Running, require_root, until};

/// The words of a run of a shell script as root of a microVM.
fn as_root(script: &str) -> [&str; 8] {
    ["-i", "--json", "--user", "root", "--", "sh", "-c", script]
}

/// Runs a shell script as root of a microVM, once a first word of its has come out.
fn after_a_word(host: &Host, script: &str) -> Ending {
    let script = format!("echo before; read line; {script}; sleep 1000");
    let mut running = Running::start_with(&mut host.command(as_root(&script)), Stdio::piped());
    running.wait_for_output("before");
    running.feed(b"\n".to_vec());
    running.finish(PATIENCE)
}

/// The console, as the black box has it.
fn console(black_box: &Path) -> String {
    String::from_utf8_lossy(&fs::read(black_box.join("console.log")).unwrap()).into_owned()
}

#[test]
fn a_kernel_panic_is_told_with_its_reason() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo c > /proc/sysrq-trigger");
    ending
        .assert_output("before\n")
        .assert_says("the guest's kernel panicked: sysrq triggered crash");
    let black_box = ending.assert_failed(&host, "kernel_panic", 125);
    assert!(console(&black_box).contains("Kernel panic - not syncing"), "{ending:?}");
    assert!(ending.failure()["statistics"].is_object() || ending.failure()["statistics"].is_null());
    assert_eq!(ending.failure()["phase"], "running", "{ending:?}");
}

#[test]
fn a_power_off_in_the_middle_is_told() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo o > /proc/sysrq-trigger");
    ending.assert_output("before\n").assert_says("the guest powered off");
    ending.assert_failed(&host, "powered_off", 125);
}

#[test]
fn a_reboot_in_the_middle_is_told() {
    let host = Host::new();
    let ending = after_a_word(&host, "echo b > /proc/sysrq-trigger");
    ending.assert_output("before\n").assert_says("the guest rebooted");
    ending.assert_failed(&host, "rebooted", 125);
}

#[test]
fn a_request_to_power_off_is_one() {
    let host = Host::new();
    let ending = after_a_word(&host, "kill -TERM 1");
    ending.assert_failed(&host, "powered_off", 125);
}

#[test]
fn an_agent_that_is_killed_takes_the_machine_with_it() {
    let host = Host::new();
    // Signals don't end the first process; breakpoints all over its code do.
    let script = "kill -KILL 1; echo survived; read line; \
                  range=$(grep -m1 ' r-xp ' /proc/1/maps | cut -d' ' -f1); \
                  start=$((0x${range%-*})); end=$((0x${range#*-})); \
                  tr '\\000' '\\314' < /dev/zero | dd of=/proc/1/mem bs=4096 iflag=fullblock \
                  seek=$((start / 4096)) count=$(((end - start) / 4096)) conv=notrunc 2>/dev/null";
    let ending = after_a_word(&host, script);
    ending.assert_output("before\nsurvived\n").assert_says("Attempted to kill init");
    ending.assert_failed(&host, "kernel_panic", 125);
}

#[test]
fn a_guest_that_is_not_up_in_time_is_given_up() {
    let host = Host::new();
    let ending = host.run(["--json", "--boot-timeout", "300ms", "--", "true"]);
    ending.assert_says("the guest did not say hello within 300ms");
    ending.assert_says("hint: the console's last lines are in the black box");
    ending.assert_failed(&host, "boot_deadline", 125);
}

#[test]
fn a_job_that_wants_too_much_memory_is_killed_and_the_rest_lives() {
    let host = Host::new();
    let script = "tail /dev/zero; echo \"ended with $?\"; exit 3";
    let ending = host.run(["--memory", "256M", "--", "sh", "-c", script]);
    ending.assert_code(3).assert_output("ended with 137\n");
    host.assert_clean();
}

/// Kills one of a running microVM's processes from outside.
fn kill_while_running(
    victim: impl Fn(&Tree) -> nix::unistd::Pid,
    signal: Signal,
) -> (Host, Ending) {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "sh", "-c", "echo begun; sleep 1000"]);
    running.wait_for_output("begun");
    kill(victim(&Tree::of(running.pid())), signal).unwrap();
    let ending = running.finish(PATIENCE);
    ending.assert_output("begun\n");
    (host, ending)
}

#[test]
fn a_killed_qemu_is_told() {
    let (host, ending) = kill_while_running(|tree| tree.qemu, Signal::SIGKILL);
    ending.assert_says("QEMU ended with signal: 9").assert_failed(&host, "qemu_ended", 125);
}

#[test]
fn a_terminated_qemu_is_told() {
    let (host, ending) = kill_while_running(|tree| tree.qemu, Signal::SIGTERM);
    ending.assert_says("QEMU ended with ");
    let black_box = ending.assert_failed(&host, "qemu_ended", 125);
    let log = fs::read_to_string(black_box.join("qemu.log")).unwrap();
    assert!(log.contains("terminating on signal 15"), "{log}");
}

#[test]
fn a_killed_vsock_program_is_told() {
    let (host, ending) = kill_while_running(|tree| tree.vsock, Signal::SIGKILL);
    ending.assert_says("vhost-device-vsock ended with signal: 9");
    ending.assert_failed(&host, "vsock_ended", 125);
}

#[test]
fn a_killed_shepherd_is_told() {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "sh", "-c", "echo begun; sleep 1000"]);
    running.wait_for_output("begun");
    kill(Tree::of(running.pid()).shepherd, Signal::SIGKILL).unwrap();
    let ending = running.finish(PATIENCE);
    ending.assert_code(125).assert_says("the shepherd ended without a word: signal SIGKILL");
    let left = host.microvms();
    assert_eq!(left.len(), 1, "a black box: {left:?}");
    ending.assert_says(&format!("evidence: {}", left[0].display()));
    host.assert_no_process();
}

#[test]
fn a_qemu_that_is_killed_while_it_boots_is_told() {
    let host = Host::new();
    let mut running = host.start(["--json", "--", "true"]);
    running.wait_for_phase("booting");
    // The kernel's first words.
    let log = host.microvms()[0].join("console.log");
    until("words on the console", PATIENCE, || {
        fs::metadata(&log).is_ok_and(|log| log.len() > 0).then_some(())
    });
    kill(Tree::of(running.pid()).qemu, Signal::SIGKILL).unwrap();
    let ending = running.finish(PATIENCE);
    assert_eq!(ending.failure()["phase"], "booting", "{ending:?}");
    assert!(ending.phases().ends_with(&["failed".into(), "destroyed".into()]), "{ending:?}");
    ending.assert_says("QEMU ended with signal: 9").assert_failed(&host, "qemu_ended", 125);
}

/// A small file system for microVMs, which only this test's processes see.
struct SmallFileSystem(PathBuf);

impl SmallFileSystem {
    fn below(host: &Host, size: &str) -> Self {
        const NONE: Option<&str> = None;
        require_root();
        let path = host.state().join("microvms");
        fs::create_dir(&path).unwrap();
        // Of this thread, and of the processes that it starts.
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
fn a_full_disk_of_the_host_ends_the_microvm_and_harms_nothing_else() {
    let host = Host::new();
    let _small = SmallFileSystem::below(&host, "24m");
    let fill = "dd if=/dev/urandom of=/var/fill bs=1M count=100 conv=fsync 2>/dev/null; echo after";
    let ending = after_a_word(&host, fill);
    ending.assert_output("before\n").assert_says("the host's disk is full");
    ending.assert_says("hint: make room on the file system of the state directory");
    ending.assert_failed(&host, "host_disk_full", 73);
    // Its room is free again: the next one works.
    fs::remove_dir_all(host.microvms()[0].clone()).unwrap();
    host.run(as_root("exit 6")).assert_code(6);
}

#[test]
fn a_disk_of_the_host_that_is_already_full_is_told() {
    let host = Host::new();
    let small = SmallFileSystem::below(&host, "1m");
    let mut fill = fs::File::create(small.0.join("fill")).unwrap();
    std::io::copy(&mut std::io::repeat(0), &mut fill).unwrap_err();
    let ending = host.run(["--", "true"]);
    ending.assert_code(73);
    assert!(ending.stderr.contains("No space left on device"), "{ending:?}");
    host.assert_no_process();
}

/// What a build needs to be told: 137 alone could be anything.
#[test]
fn a_job_that_ran_out_of_memory_is_told_so() {
    let host = Host::new();
    let hog = "a=x; while :; do a=$a$a; done";
    let ending = host.run(["--memory", "256M", "--json", "--", "sh", "-c", hog]);
    assert!(!ending.status.success(), "{ending:?}");
    ending.assert_says("ran out of memory: its kernel killed").assert_says("--memory");
    // One that ends well in spite of it is left alone.
    let spared =
        host.run(["--memory", "256M", "--", "sh", "-c", &format!("sh -c '{hog}'; exit 0")]);
    spared.assert_code(0);
    assert!(!spared.stderr.contains("memory"), "{spared:?}");
    host.assert_clean();
}
