//! A machine with systemd, made of namespaces: systemd is PID 1 of its own PID namespace and has
//! its own control group, and the file system is a temporary overlay on this machine's. It needs
//! root and changes nothing outside.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{CommandOutput, Running, TIMEOUT, processes, require_root, until};

/// Keeps this machine's network namespace reachable at `$0/network`, creates the control group
/// `$1`, and executes the rest of the arguments in it, in new namespaces.
const ENTER: &str = "\
    touch $0/network; mount --bind /proc/self/ns/net $0/network; \
    mkdir $0/groups; mount -t cgroup2 cgroup2 $0/groups; mkdir $0/groups/$1; \
    echo $$ > $0/groups/$1/cgroup.procs; shift; umount $0/groups; \
    exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup -- \"$@\"";

/// Removes that control group once it is empty.
const LEAVE: &str = "\
    mount -t cgroup2 cgroup2 $0/groups; \
    find $0/groups/$1 -depth -type d -exec rmdir {} +; umount $0/groups";

/// A running machine.
pub(crate) struct Machine {
    work: TempDir,
    group: String,
    process: Child,
    /// The process id of systemd, as seen from outside.
    systemd: u32,
}

impl Machine {
    /// Boots a machine in which these directories are visible too, whatever they are mounted from.
    pub(crate) fn boot(trees: &[&Path]) -> Self {
        require_root();
        let work = tempfile::Builder::new().prefix("mayfly-machine-").tempdir().unwrap();
        let root = work.path().join("root");
        fs::create_dir(&root).unwrap();
        let group = work.path().file_name().unwrap().to_str().unwrap().to_owned();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install/machine.sh");
        // The machine ends when the test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private"]);
        command.args(["bash", "-euc", ENTER]);
        command.arg(work.path()).arg(&group).args(["bash", script]).arg(&root).args(trees);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command.spawn().unwrap();
        let systemd = until("systemd", TIMEOUT, || {
            let status = process.try_wait().unwrap();
            assert!(status.is_none(), "the machine ended: {status:?}");
            let children = format!("/proc/{0}/task/{0}/children", process.id());
            let child = fs::read_to_string(children).ok()?.trim().parse::<u32>().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        let machine = Self { work, group, process, systemd };
        until("multi-user.target", TIMEOUT, || {
            let state = machine.run(["systemctl", "is-active", "multi-user.target"]);
            (state.text().trim() == "active").then_some(())
        });
        machine
    }

    /// Returns a command that runs as root on the machine.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.systemd.to_string());
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--", "env", "-i"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(arguments);
        command
    }

    /// Runs a command as root on the machine to its exit.
    pub(crate) fn run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> CommandOutput {
        Running::start(&mut self.command(arguments)).finish(TIMEOUT)
    }

    /// Runs a shell script as root on the machine and returns its output.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> String {
        self.run(["bash", "-euc", script]).assert_code(0).text()
    }

    /// Shuts the machine down as an administrator would. Returns how long that took, or `None` if it
    /// took longer than [`TIMEOUT`].
    pub(crate) fn shut_down(&mut self) -> Option<Duration> {
        let start = Instant::now();
        self.run(["systemctl", "exit", "--no-block"]).assert_code(0);
        while self.process.try_wait().unwrap().is_none() {
            if start.elapsed() > TIMEOUT {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(start.elapsed())
    }

    /// Opens a file of the machine. It can be read even after the machine has ended.
    pub(crate) fn open(&self, path: &str) -> fs::File {
        fs::File::open(format!("/proc/{}/root{path}", self.systemd)).unwrap()
    }

    /// Translates a process id of the machine to the one outside.
    pub(crate) fn outer_pid(&self, number: &str) -> Pid {
        let namespace = |pid: Pid| fs::read_link(processes::file(pid, "ns/pid")).ok();
        let own = namespace(Pid::from_raw(self.systemd.cast_signed()));
        let matches = |pid: &Pid| {
            let numbers = processes::status(*pid, "NSpid").unwrap_or_default();
            namespace(*pid) == own && numbers.split_whitespace().last() == Some(number)
        };
        processes::all().into_iter().find(matches).unwrap()
    }

    /// Returns a property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.run(["systemctl", "show", "--property", name, "--value", unit])
            .text()
            .trim()
            .to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The namespace and all its processes end with PID 1.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut leave = Command::new("unshare");
        leave.args(["--mount", "--propagation=private", "sh", "-c", LEAVE]);
        leave.arg(self.work.path()).arg(&self.group).stderr(Stdio::null());
        for _ in 0..100 {
            // Retried until the kernel has removed all processes.
            if leave.status().is_ok_and(|status| status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
