//! A machine with systemd: a process namespace in which it is the first process, a control group
//! below which it is alone, and this machine's file system with a layer above it that is thrown
//! away. Root is needed, and nothing outside is touched.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::{Ending, PATIENCE, Running, processes, require_root, until};

/// Makes a control group below which `$0` is the root for what it executes, and keeps this machine's
/// network within reach of it.
const ENTER: &str = "\
    touch $0/network; mount --bind /proc/self/ns/net $0/network; \
    mkdir $0/groups; mount -t cgroup2 cgroup2 $0/groups; mkdir $0/groups/$1; \
    echo $$ > $0/groups/$1/cgroup.procs; shift; umount $0/groups; \
    exec unshare --mount --pid --fork --kill-child --uts --ipc --net --cgroup -- \"$@\"";

/// Removes that control group, once nothing is in it.
const LEAVE: &str = "\
    mount -t cgroup2 cgroup2 $0/groups; \
    find $0/groups/$1 -depth -type d -exec rmdir {} +; umount $0/groups";

/// A machine that runs.
pub(crate) struct Machine {
    work: TempDir,
    group: String,
    process: Child,
    /// systemd's id outside.
    first: u32,
}

impl Machine {
    /// Boots one that has these trees, too, wherever they are mounted from.
    pub(crate) fn boot(trees: &[&Path]) -> Self {
        require_root();
        let work = tempfile::Builder::new().prefix("mayfly-machine-").tempdir().unwrap();
        let root = work.path().join("root");
        fs::create_dir(&root).unwrap();
        let group = work.path().file_name().unwrap().to_str().unwrap().to_owned();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/install/machine.sh");
        // A test that is killed takes its machine along.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--mount", "--propagation=private"]);
        command.args(["bash", "-euc", ENTER]);
        command.arg(work.path()).arg(&group).args(["bash", script]).arg(&root).args(trees);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = command.spawn().unwrap();
        let first = until("systemd", PATIENCE, || {
            let ended = process.try_wait().unwrap();
            assert!(ended.is_none(), "no machine: {ended:?}");
            let children = format!("/proc/{0}/task/{0}/children", process.id());
            let child = fs::read_to_string(children).ok()?.trim().parse::<u32>().ok()?;
            let name = fs::read_to_string(format!("/proc/{child}/comm")).ok()?;
            (name.trim() == "systemd").then_some(child)
        });
        let machine = Self { work, group, process, first };
        until("a machine that is up", PATIENCE, || {
            let state = machine.run(["systemctl", "is-active", "multi-user.target"]);
            (state.text().trim() == "active").then_some(())
        });
        machine
    }

    /// A command of the machine's root, not started.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.first.to_string());
        command
            .args(["--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--", "env", "-i"]);
        command.arg("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.args(arguments);
        command
    }

    /// A command of the machine's root, to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ending {
        Running::start(&mut self.command(arguments)).finish(PATIENCE)
    }

    /// What a shell of the machine's root prints.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str) -> String {
        self.run(["bash", "-euc", script]).assert_code(0).text()
    }

    /// Shuts the machine down as an administrator would. Gives the time that it took, if that is less
    /// than systemd's own for a unit that does not stop.
    pub(crate) fn shut_down(&mut self) -> Option<Duration> {
        let begun = Instant::now();
        self.run(["systemctl", "exit", "--no-block"]).assert_code(0);
        while self.process.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(begun.elapsed())
    }

    /// A file of the machine's, which can be read after the machine's end, too.
    pub(crate) fn open(&self, path: &str) -> fs::File {
        fs::File::open(format!("/proc/{}/root{path}", self.first)).unwrap()
    }

    /// A process of the machine's, by its number there.
    pub(crate) fn outside(&self, number: &str) -> Pid {
        let namespace = |pid: Pid| fs::read_link(processes::file(pid, "ns/pid")).ok();
        let own = namespace(Pid::from_raw(self.first.cast_signed()));
        let is = |pid: &Pid| {
            let numbers = processes::status(*pid, "NSpid").unwrap_or_default();
            namespace(*pid) == own && numbers.split_whitespace().last() == Some(number)
        };
        processes::all().into_iter().find(is).unwrap()
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.run(["systemctl", "show", "--property", name, "--value", unit])
            .text()
            .trim()
            .to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // With its first process goes the namespace, and all that is in it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let mut leave = Command::new("unshare");
        leave.args(["--mount", "--propagation=private", "sh", "-c", LEAVE]);
        leave.arg(self.work.path()).arg(&self.group).stderr(Stdio::null());
        for _ in 0..100 {
            // Until the kernel has buried all of them.
            if leave.status().is_ok_and(|status| status.success()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
