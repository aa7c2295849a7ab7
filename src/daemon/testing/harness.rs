//! A test harness that runs the daemon's loop in paused time, and kills and restarts it on request.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::Faults;
use super::forge::FakeForge;
use super::host::FakeHost;
use super::shepherds::FakeShepherds;
use super::{pool, settings};
use crate::clock::Clock;
use crate::error::DaemonError;
use crate::event_loop::{Daemon, Inbox, WakeReason};
use mayfly_config::{Settings, Trigger};
use mayfly_forge::Forge;
use mayfly_host::state::StateDirectory;
use mayfly_ledger::{
    CommandBytes, JobCommand, JobQuery, JobRecord, JobSource, JobState, Ledger, LedgerReader,
};

/// The pools of the harness: one for local jobs, and one for the forge's jobs with a label of the
/// same name.
pub(crate) const LOCAL: &str = "local";
pub(crate) const FORGE: &str = "forge";

/// Returns the runtime's time, which tests pause and advance.
fn time() -> Duration {
    static BEGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let begin = *BEGIN.get_or_init(std::time::Instant::now);
    Instant::now().duration_since(begin.into())
}

/// The test harness.
pub(crate) struct Harness {
    pub(crate) faults: Arc<Faults>,
    pub(crate) forge: Arc<FakeForge>,
    pub(crate) host: Arc<FakeHost>,
    pub(crate) settings: Settings,
    pub(crate) restarts: u32,
    kills: watch::Receiver<u64>,
    daemon: Option<(Daemon, Inbox)>,
    state: StateDirectory,
    marks: u32,
    _directory: tempfile::TempDir,
}

impl Harness {
    /// Creates a harness in which each job takes `job`.
    pub(crate) fn new(job: Duration) -> Self {
        let memory = PathBuf::from("/dev/shm");
        let memory = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let directory = tempfile::tempdir_in(memory).unwrap();
        let state = StateDirectory::open(directory.path()).unwrap();
        std::fs::create_dir_all(state.logs()).unwrap();
        let faults = Arc::new(Faults::default());
        let forge = Arc::new(FakeForge::new(faults.clone()));
        let host = FakeHost::new(faults.clone(), forge.clone(), job);
        let mut settings = settings();
        let (mut local, mut remote) = (pool(LOCAL), pool(FORGE));
        local.trigger = Trigger::None;
        remote.trigger = Trigger::Webhook;
        for pool in [&mut local, &mut remote] {
            pool.labels = vec![pool.name.to_string()];
            (pool.min_idle, pool.max, pool.cpus) = (0, 4, 1);
            pool.deadlines.job = Duration::from_secs(20 * 60);
            pool.memory = mayfly_host::size::Size::gibibytes(1);
        }
        settings.pools = vec![local, remote];
        (settings.host.cpus, settings.host.memory) = (8, mayfly_host::size::Size::gibibytes(32));
        Self {
            kills: faults.kills(),
            faults,
            forge,
            host,
            settings,
            restarts: 0,
            daemon: None,
            state,
            marks: 0,
            _directory: directory,
        }
    }

    /// Starts a daemon, also after one was killed.
    pub(crate) fn start_daemon(&mut self) -> Result<(), DaemonError> {
        // Drop the old daemon first, because it has the ledger open.
        self.daemon = None;
        let ledger = Ledger::open(&self.state.ledger())?;
        let forge = Some(self.forge.clone() as Arc<dyn Forge>);
        let shepherds = Arc::new(FakeShepherds(self.host.clone()));
        let clock = Clock::with_source(time);
        let (settings, state) = (self.settings.clone(), self.state.clone());
        let (mut daemon, inbox) =
            Daemon::compose(settings, state, ledger, clock, forge, shepherds)?;
        daemon.adopt()?;
        self.daemon = Some((daemon, inbox));
        Ok(())
    }

    pub(crate) fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon.as_mut().unwrap().0
    }

    /// Kills the daemon and starts another, with retries.
    pub(crate) async fn restart(&mut self) {
        self.daemon = None;
        self.restarts += 1;
        while self.start_daemon().is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Kills the daemon.
    pub(crate) fn kill(&mut self) {
        self.daemon = None;
    }

    /// Kills the daemon, deletes its ledger and starts another.
    pub(crate) fn restart_without_ledger(&mut self) {
        self.daemon = None;
        let ledger = self.state.ledger();
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{ending}", ledger.display()));
        }
        self.start_daemon().unwrap();
    }

    /// Queues a local job.
    pub(crate) fn submit(&mut self) -> String {
        self.marks += 1;
        let mark = format!("mark {}", self.marks);
        let command = JobCommand {
            arguments: vec![CommandBytes(mark.clone().into_bytes())],
            environment: Vec::new(),
            directory: None,
            user: None,
            timeout: None,
        };
        let daemon = self.daemon();
        let pool = daemon.pools.find(LOCAL).unwrap();
        let (backlog, mut context) = daemon.backlog_and_context();
        backlog.submit(pool, LOCAL, &command, &mut context).unwrap();
        mark
    }

    /// Runs the daemon until a condition holds, for `limit` at most. Returns whether it held.
    pub(crate) async fn run(
        &mut self,
        limit: Duration,
        mut until: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        let end = Instant::now() + limit;
        loop {
            if until(self) {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            self.run_round(end).await;
        }
    }

    async fn run_round(&mut self, end: Instant) {
        let (daemon, inbox) = self.daemon.as_mut().unwrap();
        let wake = daemon.decide_and_act().unwrap();
        let reason = tokio::select! {
            biased;
            Ok(()) = self.kills.changed() => None,
            reason = daemon.next_wake(inbox, wake) => Some(reason),
            () = tokio::time::sleep_until(end) => Some(WakeReason::Timer),
        };
        match reason {
            Some(reason) => daemon.handle(reason, inbox).unwrap(),
            None => self.restart().await,
        }
    }

    pub(crate) fn reader(&self) -> LedgerReader {
        LedgerReader::open(&self.state.ledger()).unwrap()
    }

    /// Returns all jobs of the ledger.
    pub(crate) fn jobs(&self) -> Vec<JobRecord> {
        match &self.daemon {
            Some((daemon, _)) => daemon.reader().jobs(&JobQuery::default(), 10_000).unwrap(),
            None => self.reader().jobs(&JobQuery::default(), 10_000).unwrap(),
        }
    }

    /// Returns whether every job has ended here and at the forge, and nothing is left.
    pub(crate) fn is_done(&mut self) -> bool {
        let jobs = self.jobs();
        let told = jobs.iter().filter(|job| job.source == JobSource::Github).count();
        jobs.iter().all(|job| job.state.is_over())
            && self.forge.jobs().iter().all(|fake_job| fake_job.over)
            && told == self.forge.jobs().len()
            && self.host.remaining().is_empty()
            && self.forge.registered().is_empty()
            && self.daemon().fleet.len() == 0
    }

    /// Panics unless each job ended once or is reported with a cause.
    pub(crate) fn assert_exactly_once(&mut self, what: &str) {
        let ran = self.host.runs();
        let jobs = self.jobs();
        let about = format!("{what}\n{jobs:#?}\n{:?}\n{:?}", ran, self.host.remaining());
        for job in &jobs {
            assert!(job.state.is_over(), "{} is not over: {about}", job.id);
            let is_well = job.state == JobState::Finished;
            assert!(is_well || job.cause.is_some(), "{} has no cause: {about}", job.id);
        }
        for mark in 1..=self.marks {
            let mark = format!("mark {mark}");
            let runs = ran.iter().filter(|one| **one == mark).count();
            let arguments = |job: &&JobRecord| {
                let command = job.command.as_ref()?;
                Some(command.arguments.first()?.0 == mark.as_bytes())
            };
            let job = jobs.iter().find(|job| arguments(job) == Some(true)).unwrap();
            assert!(runs <= 1, "{mark} ran {runs} times: {about}");
            let is_well = job.state == JobState::Finished;
            assert!(!is_well || runs == 1, "{mark} never ran: {about}");
        }
        for fake_job in self.forge.jobs() {
            assert!(fake_job.over && fake_job.runs == 1, "{fake_job:?}: {about}");
        }
        assert_eq!(self.host.remaining(), Vec::<String>::new(), "{about}");
        assert_eq!(self.forge.registered(), Vec::<String>::new(), "{about}");
        assert_eq!(self.daemon().fleet.len(), 0, "{about}");
    }
}
