//! The fold of events into counts.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{DemandEvent, DemandSettings, ForgeJob};
use crate::decide::{PoolId, WaitingJobs};
use crate::time::Millis;

/// The known waiting jobs.
#[derive(Debug, Clone)]
pub(crate) struct Demand {
    settings: DemandSettings,
    jobs: HashMap<ForgeJob, JobRecord>,
    /// Runners of this daemon that took a job, until the job is known.
    taken: HashMap<String, TakenMark>,
    /// Runners whose job is known.
    matched_runners: HashMap<String, Millis>,
    statistics: BTreeMap<PoolId, Statistics>,
}

#[derive(Debug, Clone)]
struct JobRecord {
    state: KnownState,
    /// When this was learned.
    at: Millis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum KnownState {
    Queued {
        repository: String,
        pool: PoolId,
        since: Millis,
    },
    /// A snapshot did not list it, or nothing confirmed it.
    Gone,
    Running,
    Done,
}

#[derive(Debug, Clone, Copy)]
struct TakenMark {
    pool: PoolId,
    at: Millis,
}

#[derive(Debug, Clone, Copy)]
struct Statistics {
    waiting: u32,
    at: Millis,
    /// Since when jobs wait.
    since: Millis,
}

impl KnownState {
    fn rank(&self) -> u8 {
        match self {
            Self::Queued { .. } => 0,
            Self::Gone => 1,
            Self::Running => 2,
            Self::Done => 3,
        }
    }
}

impl Demand {
    /// Creates a demand without known jobs.
    pub(crate) fn new(settings: DemandSettings) -> Self {
        Self {
            settings,
            jobs: HashMap::new(),
            taken: HashMap::new(),
            matched_runners: HashMap::new(),
            statistics: BTreeMap::new(),
        }
    }

    /// Applies an event that occurred at the given time.
    pub(crate) fn apply(&mut self, event: DemandEvent, at: Millis) {
        match event {
            DemandEvent::Queued { job, repository, pool } => {
                self.forward(job, KnownState::Queued { repository, pool, since: at }, at);
            }
            DemandEvent::InProgress { job, runner } => {
                self.forward(job, KnownState::Running, at);
                self.match_runner(runner, at);
            }
            DemandEvent::Completed { job, runner } => {
                self.forward(job, KnownState::Done, at);
                self.match_runner(runner, at);
            }
            DemandEvent::Snapshot { repository, queued } => self.reconcile(&repository, queued, at),
            DemandEvent::Statistics { pool, waiting } => self.count(pool, waiting, at),
            DemandEvent::Taken { runner, pool } => {
                if !self.matched_runners.contains_key(&runner) {
                    self.taken.entry(runner).or_insert(TakenMark { pool, at });
                }
            }
        }
    }

    /// Adds a job that waits since before this daemon started. Newer information about it stays; a
    /// job that is too old to count is not added.
    pub(crate) fn seed(
        &mut self,
        job: ForgeJob,
        repository: String,
        pool: PoolId,
        since: Millis,
        now: Millis,
    ) {
        if since + self.settings.expiry > now && !self.jobs.contains_key(&job) {
            self.forward(job, KnownState::Queued { repository, pool, since }, since);
        }
    }

    /// Forgets wrong information about a job.
    pub(crate) fn forget(&mut self, job: ForgeJob) {
        self.jobs.remove(&job);
    }

    /// Moves a job forward, never back.
    fn forward(&mut self, job: ForgeJob, state: KnownState, at: Millis) {
        let full = self.jobs.len() >= self.settings.capacity;
        match self.jobs.get_mut(&job) {
            Some(known) if state.rank() > known.state.rank() => *known = JobRecord { state, at },
            // A duplicate. The first report determines since when a job waits.
            Some(known) if state.rank() == known.state.rank() => known.at = known.at.max(at),
            Some(_) => {}
            None if full => {}
            None => _ = self.jobs.insert(job, JobRecord { state, at }),
        }
    }

    /// Records that the job of a runner is known, so that its mark no longer stands for an unknown
    /// one.
    fn match_runner(&mut self, runner: Option<String>, at: Millis) {
        if let Some(runner) = runner.filter(|runner| !runner.is_empty()) {
            self.taken.remove(&runner);
            if self.matched_runners.len() < self.settings.capacity {
                self.matched_runners.insert(runner, at);
            }
        }
    }

    fn reconcile(
        &mut self,
        repository: &str,
        queued: Vec<(ForgeJob, PoolId, Millis)>,
        started: Millis,
    ) {
        let lag = self.settings.lag;
        let listed: HashSet<ForgeJob> = queued.iter().map(|(job, ..)| *job).collect();
        let mut pools: HashSet<PoolId> = queued.iter().map(|(_, pool, _)| *pool).collect();
        for (job, known) in &mut self.jobs {
            let KnownState::Queued { repository: its, pool, .. } = &known.state else { continue };
            if its.eq_ignore_ascii_case(repository) {
                pools.insert(*pool);
                if !listed.contains(job) && known.at + lag <= started {
                    *known = JobRecord { state: KnownState::Gone, at: started };
                }
            }
        }
        for (job, pool, since) in queued {
            let full = self.jobs.len() >= self.settings.capacity;
            let state = KnownState::Queued { repository: repository.to_owned(), pool, since };
            match self.jobs.get_mut(&job) {
                Some(JobRecord { state: KnownState::Done, .. }) => {}
                Some(known) if matches!(known.state, KnownState::Queued { .. }) => {
                    *known = JobRecord { state, at: known.at.max(started) };
                }
                Some(known) if known.at + lag <= started => {
                    *known = JobRecord { state, at: started }
                }
                Some(_) => {}
                None if full => {}
                None => _ = self.jobs.insert(job, JobRecord { state, at: started }),
            }
        }
        self.taken.retain(|_, taken| !pools.contains(&taken.pool) || taken.at + lag > started);
    }

    fn count(&mut self, pool: PoolId, waiting: u32, at: Millis) {
        let before = self.statistics.get(&pool);
        if before.is_some_and(|before| before.at > at) {
            return;
        }
        let since = before.filter(|before| before.waiting > 0).map_or(at, |before| before.since);
        self.statistics.insert(pool, Statistics { waiting, at, since });
        self.taken.retain(|_, taken| taken.pool != pool || taken.at > at);
    }

    /// Forgets information that is too old to count.
    pub(crate) fn expire(&mut self, now: Millis) {
        let DemandSettings { lag, expiry, memory, .. } = self.settings;
        self.jobs.retain(|_, known| {
            if matches!(known.state, KnownState::Queued { .. }) && known.at + expiry <= now {
                *known = JobRecord { state: KnownState::Gone, at: now };
            }
            matches!(known.state, KnownState::Queued { .. }) || known.at + memory > now
        });
        self.statistics.retain(|_, statistics| statistics.at + expiry > now);
        self.taken.retain(|_, taken| taken.at + expiry.min(lag * 30) > now);
        self.matched_runners.retain(|_, at| *at + memory > now);
    }

    /// Returns the waiting jobs for [`decide`](crate::decide::decide), the oldest first:
    /// one entry per known job, one per pool with statistics.
    pub(crate) fn waiting(&self) -> Vec<WaitingJobs> {
        let mut taken: HashMap<PoolId, u32> = HashMap::new();
        for mark in self.taken.values() {
            *taken.entry(mark.pool).or_default() += 1;
        }
        let mut waiting = Vec::new();
        for (pool, statistics) in &self.statistics {
            let running = taken.remove(pool).unwrap_or(0);
            let count = statistics.waiting.saturating_sub(running);
            if count > 0 {
                waiting.push(WaitingJobs::Runners { pool: *pool, count, since: statistics.since });
            }
        }
        let mut jobs: Vec<(Millis, ForgeJob, PoolId)> = self.queued().collect();
        jobs.retain(|(_, _, pool)| !self.statistics.contains_key(pool));
        jobs.sort_unstable();
        for (since, _, pool) in jobs {
            // It is not known yet which job a runner took: most likely the oldest.
            match taken.get_mut(&pool).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => waiting.push(WaitingJobs::Runners { pool, count: 1, since }),
            }
        }
        waiting.sort_by_key(WaitingJobs::since);
        waiting
    }

    /// Returns the known waiting jobs in any order: since when, which, and for which pool.
    pub(crate) fn queued(&self) -> impl Iterator<Item = (Millis, ForgeJob, PoolId)> + '_ {
        self.jobs.iter().filter_map(|(job, known)| match known.state {
            KnownState::Queued { pool, since, .. } => Some((since, *job, pool)),
            _ => None,
        })
    }

    /// Forgets jobs of pools that are gone.
    pub(crate) fn keep_pools(&mut self, is_there: impl Fn(PoolId) -> bool) {
        self.jobs.retain(|_, known| match known.state {
            KnownState::Queued { pool, .. } => is_there(pool),
            _ => true,
        });
        self.taken.retain(|_, taken| is_there(taken.pool));
        self.statistics.retain(|pool, _| is_there(*pool));
    }
}
