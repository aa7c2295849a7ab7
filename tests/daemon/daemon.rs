//! `mayfly serve` as a process, with its settings, and the verbs that ask it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use mayfly::ledger::Reader;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::support::{Ending, Host, PATIENCE, Running, until};

/// How long a job may take from the queue to its end, in emulation, behind others.
pub(crate) const JOB_PATIENCE: Duration = Duration::from_secs(240);

/// How long the daemon may take to end when told to, beside its jobs: where GitHub fails at it,
/// deletions are tried again.
pub(crate) const DRAIN_PATIENCE: Duration = Duration::from_secs(300);

/// The image that the pools of the tests boot.
pub(crate) const IMAGE: &str = "runner-sim";

/// A daemon on a host of its own; started, killed and started again as a test likes.
pub(crate) struct Daemon {
    pub(crate) host: Host,
    /// Variables beside those that say where things are.
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// Arguments of `serve`.
    pub(crate) arguments: Vec<&'static str>,
    process: Option<Child>,
}

impl Daemon {
    /// One that has no settings yet and is not started.
    pub(crate) fn new() -> Self {
        Self {
            host: Host::with_image(IMAGE),
            environment: Vec::new(),
            arguments: Vec::new(),
            process: None,
        }
    }

    /// One that has these settings and serves.
    pub(crate) fn serving(settings: &str) -> Self {
        let mut daemon = Self::new();
        daemon.configure(settings);
        daemon.serve();
        daemon
    }

    fn settings(&self) -> PathBuf {
        self.host.root().join("mayfly.toml")
    }

    /// Writes the settings, beside what is the same for all tests.
    pub(crate) fn configure(&self, settings: &str) {
        fs::write(self.settings(), settings).unwrap();
    }

    /// Starts the daemon, again after it was killed, and waits until it answers. Its log goes to
    /// the end of `serve.log`.
    pub(crate) fn serve(&mut self) {
        self.launch();
        until("the daemon's first answer", PATIENCE, || {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon has ended: {}", self.log());
            self.asks(&["status"]).then_some(())
        });
    }

    /// Starts the daemon, and waits for nothing.
    pub(crate) fn launch(&mut self) {
        let log = self.host.root().join("serve.log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let mut command = self.verb(&[&["serve"], &self.arguments[..]].concat());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(command.spawn().unwrap());
    }

    /// Whether a verb finds a daemon that answers.
    fn asks(&self, arguments: &[&str]) -> bool {
        let mut command = self.verb(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().unwrap().success()
    }

    /// A verb, with this daemon's settings.
    pub(crate) fn verb(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.mayfly(arguments);
        command.env("MAYFLY_CONFIG", self.settings()).envs(self.environment.iter().copied());
        command
    }

    /// A verb, to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ending {
        Running::start(&mut self.verb(arguments)).finish(JOB_PATIENCE)
    }

    /// A verb's answer in JSON, with `--json` as its last argument.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> Value {
        let ending = self.run(&[arguments, &["--json"]].concat());
        ending.assert_code(0);
        serde_json::from_slice(&ending.stdout).unwrap()
    }

    /// Queues a local job of the pool `test`. Gives its number, as text.
    #[track_caller]
    pub(crate) fn submit(&self, script: &str) -> String {
        let ending = self.run(&["submit", "--pool", "test", "--", "sh", "-c", script]);
        ending.assert_code(0).text().trim().to_owned()
    }

    /// A job as it is.
    pub(crate) fn job(&self, job: &str) -> Value {
        self.ask(&["explain", job])["job"].clone()
    }

    /// Waits until a job is in one of these states; gives the job.
    pub(crate) fn wait_for(&self, job: &str, states: &[&str]) -> Value {
        until(&format!("job {job} in {states:?}"), JOB_PATIENCE, || {
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
        until(&format!("{text:?} in the log of job {job}"), JOB_PATIENCE, || {
            let log = self.run(&["logs", job]).text();
            log.contains(text).then_some(())
        });
    }

    /// A pool as it is.
    pub(crate) fn pool(&self, name: &str) -> Option<Value> {
        let pools = self.ask(&["pools"]);
        pools.as_array().unwrap().iter().find(|pool| pool["name"] == name).cloned()
    }

    /// Waits until something holds of a pool.
    pub(crate) fn wait_for_pool(&self, what: &str, name: &str, holds: impl Fn(&Value) -> bool) {
        until(&format!("the pool {name} with {what}"), PATIENCE, || {
            self.pool(name).filter(|pool| holds(pool)).map(|_| ())
        });
    }

    /// The daemon's process.
    pub(crate) fn pid(&self) -> Pid {
        pid(self.process.as_ref().expect("the daemon was started"))
    }

    /// Sends the daemon a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub(crate) fn ended(&mut self, within: Duration) -> ExitStatus {
        let mut process = self.process.take().expect("the daemon was started");
        until("the daemon's end", within, || process.try_wait().unwrap())
    }

    /// Whether the daemon is still there.
    pub(crate) fn is_there(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| process.try_wait().unwrap().is_none())
    }

    /// Kills the daemon as nothing can prepare for.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("the daemon was started");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Tells the daemon to end, and waits for that.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ended(DRAIN_PATIENCE)
    }

    /// What the daemon has said so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.host.root().join("serve.log")).unwrap_or_default()
    }

    /// The ledger, for reading.
    pub(crate) fn ledger(&self) -> Reader {
        Reader::open(&self.host.state().join("ledger.db")).unwrap()
    }

    /// Fails unless the ledger is whole and its audit log follows.
    pub(crate) fn assert_ledger(&self) {
        let ledger = self.ledger();
        assert_eq!(ledger.damage().unwrap(), None);
        ledger.verify_audit(&self.host.state().join("audit"), None).unwrap();
        self.run(&["audit", "verify"]).assert_code(0);
    }

    /// Stops the daemon, and fails if anything is left.
    #[track_caller]
    pub(crate) fn finish(mut self) {
        self.end();
        self.host.assert_clean();
    }

    /// The same where microVMs may have failed: their black boxes are left. Gives each with the
    /// cause that the ledger has.
    #[track_caller]
    pub(crate) fn finish_with_evidence(mut self) -> Vec<String> {
        self.end();
        self.host.assert_no_process();
        let ledger = self.ledger();
        let left = self.host.microvms().into_iter().map(|directory| {
            let id = directory.file_name().unwrap().to_string_lossy().into_owned();
            let known = ledger.microvm(&id).unwrap().expect("the ledger knows it");
            assert!(known.black_box.is_some(), "{id} is left, but no black box: {known:?}");
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
    /// A test that failed leaves its daemon no more time than one that did not, and no microVM.
    fn drop(&mut self) {
        let Some(process) = &mut self.process else { return };
        let log = self.host.root().join("serve.log");
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(log).unwrap_or_default());
        }
        // What can't be done here has been done already.
        let _ = kill(pid(process), Signal::SIGTERM);
        let _ = process.wait();
    }
}

/// Whether nothing more happens to a job.
pub(crate) fn is_over(job: &Value) -> bool {
    ["finished", "failed", "cancelled"].iter().any(|state| job["state"] == *state)
}

/// The settings of a daemon without GitHub, with one pool called `test`; `host` and `pool` are more
/// lines of either part.
pub(crate) fn local(host: &str, pool: &str) -> String {
    format!(
        "[host]\nallow_emulation = true\ncpus = 8\nmemory = \"8G\"\n{host}\n{}",
        pool_of("test", pool)
    )
}

/// A pool for local jobs.
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
