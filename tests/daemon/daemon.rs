//! `mayfly serve` as a process, with its settings, and the commands that talk to it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use mayfly_ledger::LedgerReader;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::support::{CommandOutput, Host, Running, TIMEOUT, until};

/// How long a job may take from the queue to its end: under emulation, behind other jobs.
pub(crate) const JOB_TIMEOUT: Duration = Duration::from_secs(240);

/// How long the daemon may take to end on request: deletions that fail at GitHub are retried.
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(300);

/// The image that the pools of the tests boot.
pub(crate) const IMAGE: &str = "runner-sim";

/// A daemon on its own host, which tests start, kill and restart.
pub(crate) struct Daemon {
    pub(crate) host: Host,
    /// Variables in addition to those that set paths.
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// Arguments of `serve`.
    pub(crate) arguments: Vec<&'static str>,
    process: Option<Child>,
}

impl Daemon {
    /// Creates a daemon without settings that is not started.
    pub(crate) fn new() -> Self {
        Self {
            host: Host::with_image(IMAGE),
            environment: Vec::new(),
            arguments: Vec::new(),
            process: None,
        }
    }

    /// Starts a daemon with the given settings.
    pub(crate) fn serving(settings: &str) -> Self {
        let mut daemon = Self::new();
        daemon.configure(settings);
        daemon.serve();
        daemon
    }

    fn settings(&self) -> PathBuf {
        self.host.root().join("mayfly.toml")
    }

    /// Writes the settings, and those that are the same for all tests.
    pub(crate) fn configure(&self, settings: &str) {
        fs::write(self.settings(), settings).unwrap();
    }

    /// Starts the daemon, also after it was killed, and waits until it responds. Its log is
    /// appended to `serve.log`.
    pub(crate) fn serve(&mut self) {
        self.launch();
        until("the daemon's first response", TIMEOUT, || {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon exited: {}", self.log());
            self.reaches(&["status"]).then_some(())
        });
    }

    /// Starts the daemon without waiting.
    pub(crate) fn launch(&mut self) {
        let log = self.host.root().join("serve.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = self.command(&[&["serve"], &self.arguments[..]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// Returns whether a command reaches the daemon.
    fn reaches(&self, arguments: &[&str]) -> bool {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// Returns a command with this daemon's settings.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.mayfly(arguments);
        command.env("MAYFLY_CONFIG", self.settings()).envs(self.environment.iter().copied());
        command
    }

    /// Runs a command to its exit.
    pub(crate) fn run(&self, arguments: &[&str]) -> CommandOutput {
        Running::start(&mut self.command(arguments)).finish(JOB_TIMEOUT)
    }

    /// Runs a command with `--json` as its last argument, and returns its output.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let ending = self.run(&[arguments, &["--json"]].concat());
        ending.assert_code(0);
        serde_json::from_slice(&ending.stdout).unwrap()
    }

    /// Queues a local job of the pool `test`. Returns its number as text.
    #[track_caller]
    pub(crate) fn submit(&self, script: &str) -> String {
        let ending = self.run(&["submit", "--pool", "test", "--", "sh", "-c", script]);
        ending.assert_code(0).text().trim().to_owned()
    }

    /// Returns the current state of a job.
    pub(crate) fn job(&self, job: &str) -> Value {
        self.ask(&["explain", job])["job"].clone()
    }

    /// Waits until a job is in one of the given states. Returns the job.
    pub(crate) fn wait_for(&self, job: &str, states: &[&str]) -> Value {
        until(&format!("job {job} in {states:?}"), JOB_TIMEOUT, || {
            let found = self.job(job);
            let there = states.iter().any(|state| found["state"] == *state);
            assert!(
                there || !is_over(&found),
                "job {job} is not in {states:?}: {found:#}\n{}",
                self.log()
            );
            there.then_some(found)
        })
    }

    /// Waits until a job's log has this text.
    pub(crate) fn wait_for_log(&self, job: &str, text: &str) {
        until(&format!("{text:?} in the log of job {job}"), JOB_TIMEOUT, || {
            let log = self.run(&["logs", job]).text();
            log.contains(text).then_some(())
        });
    }

    /// Returns the current state of a pool.
    pub(crate) fn pool(&self, name: &str) -> Option<Value> {
        let pools = self.ask(&["pools"]);
        pools.as_array().unwrap().iter().find(|pool| pool["name"] == name).cloned()
    }

    /// Waits until a condition holds for a pool.
    pub(crate) fn wait_for_pool(&self, what: &str, name: &str, holds: impl Fn(&Value) -> bool) {
        until(&format!("the pool {name} with {what}"), TIMEOUT, || {
            self.pool(name).filter(|pool| holds(pool)).map(|_| ())
        });
    }

    /// Returns the daemon's process id.
    pub(crate) fn pid(&self) -> Pid {
        pid(self.process.as_ref().expect("the daemon was started"))
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the daemon to end.
    pub(crate) fn wait_for_exit(&mut self, within: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon was started");
        until("the daemon's exit", within, || process.try_wait().unwrap())
    }

    /// Returns whether the daemon runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Kills the daemon with SIGKILL.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the daemon was started");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Asks the daemon to end, and waits until it has.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait_for_exit(DRAIN_TIMEOUT)
    }

    /// Returns the daemon's log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.host.root().join("serve.log")).unwrap_or_default()
    }

    /// Opens the ledger for reading.
    pub(crate) fn ledger(&self) -> LedgerReader {
        LedgerReader::open(&self.host.state().join("ledger.db")).unwrap()
    }

    /// Panics unless the ledger and its audit log are intact.
    pub(crate) fn assert_ledger(&self) {
        let ledger = self.ledger();
        assert_eq!(ledger.damage().unwrap(), None);
        ledger.verify_audit(&self.host.state().join("audit"), None).unwrap();
        self.run(&["audit", "verify"]).assert_code(0);
    }

    /// Stops the daemon, and panics if anything is left.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.end();
        self.host.assert_clean();
    }

    /// Stops the daemon, and panics if anything but black boxes of failed microVMs is left. Returns
    /// each with the cause in the ledger.
    #[track_caller]
    pub(crate) fn finish_with_evidence(mut self) -> Vec<String> {
        self.end();
        self.host.assert_no_process();
        let ledger = self.ledger();
        let left = self.host.microvms().into_iter().map(|directory| {
            let id = directory.file_name().unwrap().to_string_lossy().into_owned();
            let known = ledger.microvm(&id).unwrap().expect("the ledger knows it");
            assert!(known.black_box.is_some(), "{id} remains without a black box: {known:?}");
            format!("{id}: {}", known.cause.expect("a black box has a cause"))
        });
        left.collect()
    }

    #[track_caller]
    fn end(&mut self) {
        let status = self.stop();
        assert!(status.success(), "{status}: {}", self.log());
        self.assert_ledger();
    }
}

impl Drop for Daemon {
    /// A failed test gives its daemon no extra time, and leaves no microVM.
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        let log = self.host.root().join("serve.log");
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(log).unwrap_or_default());
        }
        // Fails if the process is already gone.
        let _ = kill(pid(process), Signal::SIGTERM);
        let _ = process.wait();
    }
}

/// Returns whether a job has ended.
pub(crate) fn is_over(job: &Value) -> bool {
    ["finished", "failed", "cancelled"].iter().any(|state| job["state"] == *state)
}

/// Returns the settings of a daemon without GitHub, with one pool `test`. `host` and `pool` are
/// additional lines of the two sections.
pub(crate) fn local(host: &str, pool: &str) -> String {
    format!(
        "[host]\nallow_emulation = true\ncpus = 8\nmemory = \"8G\"\n{host}\n{}",
        pool_of("test", pool)
    )
}

/// Returns the settings of a pool for local jobs.
pub(crate) fn pool_of(name: &str, more: &str) -> String {
    format!(
        "[[pool]]\nname = \"{name}\"\nimage = \"{IMAGE}\"\nmemory = \"384M\"\ntrigger = \"none\"\n\
         egress = \"none\"\n{more}\n"
    )
}

/// Writes a file that only its owner can read.
pub(crate) fn write_private(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().try_into().unwrap())
}
