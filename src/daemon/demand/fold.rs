//! The fold itself.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{ForgeJob, Heard, Settings};
use crate::daemon::decide::{PoolId, Waiting};
use crate::daemon::millis::Millis;

/// What is known.
#[derive(Debug, Clone)]
pub struct Demand {
    settings: Settings,
    jobs: HashMap<ForgeJob, Known>,
    /// Our runners that took a job, until it is known which one.
    taken: HashMap<String, Taken>,
    /// Runners of which it is known which job they took.
    met: HashMap<String, Millis>,
    statistics: BTreeMap<PoolId, Statistics>,
}

#[derive(Debug, Clone)]
struct Known {
    state: State,
    /// When this was heard.
    at: Millis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
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
struct Taken {
    pool: PoolId,
    at: Millis,
}

#[derive(Debug, Clone, Copy)]
struct Statistics {
    waiting: u32,
    at: Millis,
    /// Since when something waits.
    since: Millis,
}

impl State {
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
    /// Nothing is known yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            jobs: HashMap::new(),
            taken: HashMap::new(),
            met: HashMap::new(),
            statistics: BTreeMap::new(),
        }
    }

    /// Takes in what was heard at that moment.
    pub fn hear(&mut self, heard: Heard, at: Millis) {
        match heard {
            Heard::Queued { job, repository, pool } => {
                self.forward(job, State::Queued { repository, pool, since: at }, at);
            }
            Heard::InProgress { job, runner } => {
                self.forward(job, State::Running, at);
                self.meet(runner, at);
            }
            Heard::Completed { job, runner } => {
                self.forward(job, State::Done, at);
                self.meet(runner, at);
            }
            Heard::Snapshot { repository, queued } => self.reconcile(&repository, queued, at),
            Heard::Statistics { pool, waiting } => self.count(pool, waiting, at),
            Heard::Taken { runner, pool } => {
                if !self.met.contains_key(&runner) {
                    self.taken.entry(runner).or_insert(Taken { pool, at });
                }
            }
        }
    }

    /// A job that is known from before this daemon to wait since then. What is known better stays;
    /// what is too old to count is not taken in.
    pub fn seed(
        &mut self,
        job: ForgeJob,
        repository: String,
        pool: PoolId,
        since: Millis,
        now: Millis,
    ) {
        if since + self.settings.expiry > now && !self.jobs.contains_key(&job) {
            self.forward(job, State::Queued { repository, pool, since }, since);
        }
    }

    /// Forgets what is known of a job: it was wrong.
    pub fn forget(&mut self, job: ForgeJob) {
        self.jobs.remove(&job);
    }

    /// Moves a job forward, never back.
    fn forward(&mut self, job: ForgeJob, state: State, at: Millis) {
        let full = self.jobs.len() >= self.settings.capacity;
        match self.jobs.get_mut(&job) {
            Some(known) if state.rank() > known.state.rank() => *known = Known { state, at },
            // A duplicate; what a job waited since is what was heard first.
            Some(known) if state.rank() == known.state.rank() => known.at = known.at.max(at),
            Some(_) => {}
            None if full => {}
            None => _ = self.jobs.insert(job, Known { state, at }),
        }
    }

    /// A job of that runner is known: its mark no longer stands for an unknown one.
    fn meet(&mut self, runner: Option<String>, at: Millis) {
        if let Some(runner) = runner.filter(|runner| !runner.is_empty()) {
            self.taken.remove(&runner);
            if self.met.len() < self.settings.capacity {
                self.met.insert(runner, at);
            }
        }
    }

    fn reconcile(
        &mut self,
        repository: &str,
        queued: Vec<(ForgeJob, PoolId, Millis)>,
        begun: Millis,
    ) {
        let lag = self.settings.lag;
        let listed: HashSet<ForgeJob> = queued.iter().map(|(job, ..)| *job).collect();
        let mut pools: HashSet<PoolId> = queued.iter().map(|(_, pool, _)| *pool).collect();
        for (job, known) in &mut self.jobs {
            let State::Queued { repository: its, pool, .. } = &known.state else { continue };
            if its.eq_ignore_ascii_case(repository) {
                pools.insert(*pool);
                if !listed.contains(job) && known.at + lag <= begun {
                    *known = Known { state: State::Gone, at: begun };
                }
            }
        }
        for (job, pool, since) in queued {
            let full = self.jobs.len() >= self.settings.capacity;
            let state = State::Queued { repository: repository.to_owned(), pool, since };
            match self.jobs.get_mut(&job) {
                Some(Known { state: State::Done, .. }) => {}
                Some(known) if matches!(known.state, State::Queued { .. }) => {
                    *known = Known { state, at: known.at.max(begun) };
                }
                Some(known) if known.at + lag <= begun => *known = Known { state, at: begun },
                Some(_) => {}
                None if full => {}
                None => _ = self.jobs.insert(job, Known { state, at: begun }),
            }
        }
        self.taken.retain(|_, taken| !pools.contains(&taken.pool) || taken.at + lag > begun);
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

    /// Forgets what is too old to count.
    pub fn expire(&mut self, now: Millis) {
        let Settings { lag, expiry, memory, .. } = self.settings;
        self.jobs.retain(|_, known| {
            if matches!(known.state, State::Queued { .. }) && known.at + expiry <= now {
                *known = Known { state: State::Gone, at: now };
            }
            matches!(known.state, State::Queued { .. }) || known.at + memory > now
        });
        self.statistics.retain(|_, statistics| statistics.at + expiry > now);
        self.taken.retain(|_, taken| taken.at + expiry.min(lag * 30) > now);
        self.met.retain(|_, at| *at + memory > now);
    }

    /// What waits, for [`decide`](crate::daemon::decide::decide), the oldest first: one entry per
    /// known job, one per pool with statistics.
    pub fn waiting(&self) -> Vec<Waiting> {
        let mut taken: HashMap<PoolId, u32> = HashMap::new();
        for mark in self.taken.values() {
            *taken.entry(mark.pool).or_default() += 1;
        }
        let mut waiting = Vec::new();
        for (pool, statistics) in &self.statistics {
            let running = taken.remove(pool).unwrap_or(0);
            let count = statistics.waiting.saturating_sub(running);
            if count > 0 {
                waiting.push(Waiting::Runners { pool: *pool, count, since: statistics.since });
            }
        }
        let mut jobs: Vec<(Millis, ForgeJob, PoolId)> = self.queued().collect();
        jobs.retain(|(_, _, pool)| !self.statistics.contains_key(pool));
        jobs.sort_unstable();
        for (since, _, pool) in jobs {
            // Which job a runner took is not known yet: most likely the oldest.
            match taken.get_mut(&pool).filter(|count| **count > 0) {
                Some(count) => *count -= 1,
                None => waiting.push(Waiting::Runners { pool, count: 1, since }),
            }
        }
        waiting.sort_by_key(Waiting::since);
        waiting
    }

    /// The known jobs that wait: since when, which, for which pool; in no order.
    pub fn queued(&self) -> impl Iterator<Item = (Millis, ForgeJob, PoolId)> + '_ {
        self.jobs.iter().filter_map(|(job, known)| match known.state {
            State::Queued { pool, since, .. } => Some((since, *job, pool)),
            _ => None,
        })
    }

    /// Forgets what waits for pools that are gone.
    pub fn keep_pools(&mut self, is_there: impl Fn(PoolId) -> bool) {
        self.jobs.retain(|_, known| match known.state {
            State::Queued { pool, .. } => is_there(pool),
            _ => true,
        });
        self.taken.retain(|_, taken| is_there(taken.pool));
        self.statistics.retain(|pool, _| is_there(*pool));
    }
}
