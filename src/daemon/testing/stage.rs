//! A daemon on a stage: driven turn by turn in stood-still time, killed and started again at will.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::Faults;
use super::forge::FakeForge;
use super::host::FakeHost;
use super::shepherds::Scripted;
use super::{pool, settings};
use crate::config::{Settings, Trigger};
use crate::daemon::clock::Clock;
use crate::daemon::error::DaemonError;
use crate::daemon::running::{Daemon, Inbox, Woken};
use crate::forge::Forge;
use crate::host::state::StateDirectory;
use crate::ledger::{Bytes, Command, Filter, Job, JobState, Ledger, Reader, Source};

/// The pools of the stage: for local jobs, and for the forge's with a label of the same name.
pub(in crate::daemon) const LOCAL: &str = "local";
pub(in crate::daemon) const FORGE: &str = "forge";

/// The runtime's time, which tests stop and advance.
fn time() -> Duration {
    static BEGIN: OnceLock<std::time::Instant> = OnceLock::new();
    let begin = *BEGIN.get_or_init(std::time::Instant::now);
    Instant::now().duration_since(begin.into())
}

/// The stage.
pub(in crate::daemon) struct Stage {
    pub(in crate::daemon) faults: Arc<Faults>,
    pub(in crate::daemon) forge: Arc<FakeForge>,
    pub(in crate::daemon) host: Arc<FakeHost>,
    pub(in crate::daemon) settings: Settings,
    pub(in crate::daemon) restarts: u32,
    kills: watch::Receiver<u64>,
    daemon: Option<(Daemon, Inbox)>,
    state: StateDirectory,
    marks: u32,
    _directory: tempfile::TempDir,
}

impl Stage {
    /// A stage on which each job takes so long.
    pub(in crate::daemon) fn new(job: Duration) -> Self {
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
            pool.memory = crate::host::size::Size::gibibytes(1);
        }
        settings.pools = vec![local, remote];
        (settings.host.cpus, settings.host.memory) = (8, crate::host::size::Size::gibibytes(32));
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

    /// Starts a daemon, again if one was killed.
    pub(in crate::daemon) fn serve(&mut self) -> Result<(), DaemonError> {
        // The one before lets go of the ledger first.
        self.daemon = None;
        let ledger = Ledger::open(&self.state.ledger())?;
        let forge = Some(self.forge.clone() as Arc<dyn Forge>);
        let shepherds = Arc::new(Scripted(self.host.clone()));
        let clock = Clock::by(time);
        let (settings, state) = (self.settings.clone(), self.state.clone());
        let (mut daemon, inbox) =
            Daemon::compose(settings, state, ledger, clock, forge, shepherds)?;
        daemon.adopt()?;
        self.daemon = Some((daemon, inbox));
        Ok(())
    }

    pub(in crate::daemon) fn daemon(&mut self) -> &mut Daemon {
        &mut self.daemon.as_mut().unwrap().0
    }

    /// Kills the daemon and starts another, however often that fails.
    pub(in crate::daemon) async fn restart(&mut self) {
        self.daemon = None;
        self.restarts += 1;
        while self.serve().is_err() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Kills the daemon.
    pub(in crate::daemon) fn kill(&mut self) {
        self.daemon = None;
    }

    /// Kills the daemon and starts another, which finds no ledger.
    pub(in crate::daemon) fn lose_the_ledger(&mut self) {
        self.daemon = None;
        let ledger = self.state.ledger();
        for ending in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{ending}", ledger.display()));
        }
        self.serve().unwrap();
    }

    /// Queues a local job.
    pub(in crate::daemon) fn submit(&mut self) -> String {
        self.marks += 1;
        let mark = format!("mark {}", self.marks);
        let command = Command {
            arguments: vec![Bytes(mark.clone().into_bytes())],
            environment: Vec::new(),
            directory: None,
            user: None,
            timeout: None,
        };
        let daemon = self.daemon();
        let pool = daemon.pools.named(LOCAL).unwrap();
        let (backlog, mut desk) = daemon.desk();
        backlog.submit(pool, LOCAL, &command, &mut desk).unwrap();
        mark
    }

    /// Lets the daemon run for so long, or until that holds; whether it came to hold.
    pub(in crate::daemon) async fn run(
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
            self.turn(end).await;
        }
    }

    async fn turn(&mut self, end: Instant) {
        let (daemon, inbox) = self.daemon.as_mut().unwrap();
        let wake = daemon.round().unwrap();
        let woken = tokio::select! {
            biased;
            Ok(()) = self.kills.changed() => None,
            woken = daemon.next(inbox, wake) => Some(woken),
            () = tokio::time::sleep_until(end) => Some(Woken::Time),
        };
        match woken {
            Some(woken) => daemon.take(woken, inbox).unwrap(),
            None => self.restart().await,
        }
    }

    pub(in crate::daemon) fn reader(&self) -> Reader {
        Reader::open(&self.state.ledger()).unwrap()
    }

    /// All jobs of the ledger.
    pub(in crate::daemon) fn jobs(&self) -> Vec<Job> {
        match &self.daemon {
            Some((daemon, _)) => daemon.reader().jobs(&Filter::default(), 10_000).unwrap(),
            None => self.reader().jobs(&Filter::default(), 10_000).unwrap(),
        }
    }

    /// Whether every job is over here and at the forge, and nothing is left of any.
    pub(in crate::daemon) fn is_done(&mut self) -> bool {
        let jobs = self.jobs();
        let told = jobs.iter().filter(|job| job.source == Source::Github).count();
        jobs.iter().all(|job| job.state.is_over())
            && self.forge.jobs().iter().all(|held| held.over)
            && told == self.forge.jobs().len()
            && self.host.left().is_empty()
            && self.forge.registered().is_empty()
            && self.daemon().fleet.len() == 0
    }

    /// Fails unless each job ended once, or is reported with a cause.
    pub(in crate::daemon) fn assert_exactly_once(&mut self, what: &str) {
        let ran = self.host.ran();
        let jobs = self.jobs();
        let about = format!("{what}\n{jobs:#?}\n{:?}\n{:?}", ran, self.host.left());
        for job in &jobs {
            assert!(job.state.is_over(), "{} is not over: {about}", job.id);
            let is_well = job.state == JobState::Finished;
            assert!(is_well || job.cause.is_some(), "{} has no cause: {about}", job.id);
        }
        for mark in 1..=self.marks {
            let mark = format!("mark {mark}");
            let runs = ran.iter().filter(|one| **one == mark).count();
            let arguments = |job: &&Job| {
                let command = job.command.as_ref()?;
                Some(command.arguments.first()?.0 == mark.as_bytes())
            };
            let job = jobs.iter().find(|job| arguments(job) == Some(true)).unwrap();
            assert!(runs <= 1, "{mark} ran {runs} times: {about}");
            let is_well = job.state == JobState::Finished;
            assert!(!is_well || runs == 1, "{mark} never ran: {about}");
        }
        for held in self.forge.jobs() {
            assert!(held.over && held.runs == 1, "{held:?}: {about}");
        }
        assert_eq!(self.host.left(), Vec::<String>::new(), "{about}");
        assert_eq!(self.forge.registered(), Vec::<String>::new(), "{about}");
        assert_eq!(self.daemon().fleet.len(), 0, "{about}");
    }
}
