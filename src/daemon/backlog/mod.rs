//! The backlog: jobs that wait, and what becomes of jobs.
//!
//! Owns the queue of local jobs, what is known of the forge's waiting jobs ([`Demand`]), and of the
//! ledger the jobs and the deliveries. Which microVM a job gets is decided elsewhere.

mod settling;
mod words;

use std::collections::VecDeque;

use super::clock::Clock;
use super::decide::{JobKey, PoolId, Waiting};
use super::demand::{self, Demand, ForgeJob, Heard};
use super::error::DaemonError;
use super::millis::Millis;
use super::pools::Pools;
use crate::config::Trigger;
use crate::failure::Code;
use crate::forge::Forge;
use crate::ledger::{self, Command, JobId, JobState, Ledger, Source};
pub(super) use words::Word;

/// How the cause begins of a job that the forge took from its runner.
pub(super) const TAKEN_BACK: &str = "GitHub took the job back";
/// Why a local job can't be served any more.
const NO_POOL: &str = "its pool is no longer configured";
/// How long a forge keeps a job queued.
const QUEUED: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// What waits.
pub(super) struct Backlog {
    /// Local jobs, the oldest first.
    queue: VecDeque<Queued>,
    demand: Demand,
}

/// A local job that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Queued {
    job: JobKey,
    pool: PoolId,
    since: Millis,
}

/// What the backlog is told with each word: who serves which job, and where it is written down.
pub(super) struct Desk<'a> {
    pub(super) pools: &'a Pools,
    pub(super) forge: Option<&'a dyn Forge>,
    /// How the names of this daemon's runners begin.
    pub(super) prefix: &'a str,
    pub(super) ledger: &'a mut Ledger,
    pub(super) clock: Clock,
}

impl Desk<'_> {
    /// Which pool serves a job of the forge: the first whose labels do, of those that hear of jobs
    /// this way.
    fn pool_for(&self, labels: &[String]) -> Option<PoolId> {
        let forge = self.forge?;
        let serves = |pool: &crate::config::Pool| {
            pool.trigger != Trigger::None && forge.serves(labels, &pool.labels)
        };
        self.pools.iter().find(|(_, pool)| serves(pool)).map(|(id, _)| id)
    }

    fn known(&self, job: JobKey) -> Result<Option<ledger::Job>, DaemonError> {
        Ok(self.ledger.reader().job(JobId(job.0))?)
    }
}

impl Backlog {
    /// Nothing waits yet. Where nothing confirms that a job of the forge waits, it is believed for
    /// as long as the forge keeps it.
    pub(super) fn new(forge: Option<&dyn Forge>) -> Self {
        let usual = demand::Settings::default();
        let settings = match forge {
            Some(forge) if !forge.confirms() => demand::Settings { expiry: QUEUED, ..usual },
            _ => usual,
        };
        Self { queue: VecDeque::new(), demand: Demand::new(settings) }
    }

    /// Local jobs that wait.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Local jobs that wait with their pools, in the order in which they are served.
    pub(super) fn queue(&self) -> impl Iterator<Item = (JobKey, PoolId)> {
        self.queue.iter().map(|queued| (queued.job, queued.pool))
    }

    /// Everything that waits, the oldest first.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let local = self.queue.iter().map(|queued| Waiting::Local {
            job: queued.job,
            pool: queued.pool,
            since: queued.since,
        });
        let mut waiting: Vec<Waiting> = self.demand.waiting().into_iter().chain(local).collect();
        waiting.sort_by_key(Waiting::since);
        waiting
    }

    /// Forgets what is too old to count.
    pub(super) fn expire(&mut self, now: Millis) {
        self.demand.expire(now);
    }

    /// Takes in a local job that a person submits.
    pub(super) fn submit(
        &mut self,
        pool: PoolId,
        name: &str,
        command: &Command,
        desk: &mut Desk<'_>,
    ) -> Result<JobId, DaemonError> {
        let job = desk.ledger.submit_local(name, command)?;
        self.enqueue(JobKey(job.0), pool, desk.clock.now());
        Ok(job)
    }

    /// Puts a local job (back) into the queue, at its place.
    fn enqueue(&mut self, job: JobKey, pool: PoolId, since: Millis) {
        let place = self.queue.partition_point(|other| other.since <= since);
        self.queue.insert(place, Queued { job, pool, since });
    }

    /// Gives a local job away to a microVM; in the ledger first: it can't be given twice.
    pub(super) fn claim(
        &mut self,
        job: JobKey,
        microvm: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        self.queue.retain(|queued| queued.job != job);
        Ok(ledger.claim(JobId(job.0), microvm)?)
    }

    /// Ends a local job as somebody wants it. One that is over stays as it is.
    pub(super) fn cancel(
        &mut self,
        job: JobKey,
        why: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        self.queue.retain(|queued| queued.job != job);
        let known = ledger.reader().job(JobId(job.0))?;
        if known.is_some_and(|known| !known.state.is_over()) {
            ledger.cancel(JobId(job.0), why, Some(Code::Interrupted as u8))?;
        }
        Ok(())
    }

    /// What the ledger says waits, waits here, too: what was acknowledged is never said again. To be
    /// called at the start, once what has a job is known, and after each change of the pools: a
    /// pool that is new may serve what waited for one.
    pub(super) fn take_back(&mut self, desk: &mut Desk<'_>) -> Result<(), DaemonError> {
        let now = desk.clock.now();
        self.demand.keep_pools(|pool| desk.pools.get(pool).is_some());
        for job in desk.ledger.reader().open_github()? {
            if job.state == JobState::Queued {
                self.seed(&job, desk, now);
            }
        }
        self.queue.clear();
        for job in desk.ledger.reader().queued_local()? {
            match job.pool.as_deref().and_then(|pool| desk.pools.named(pool)) {
                Some(pool) => {
                    let since = desk.clock.at(job.queued_at.into());
                    self.enqueue(JobKey(job.id.0), pool, since);
                }
                None => desk.ledger.fail(job.id, NO_POOL, Some(Code::BadConfiguration as u8))?,
            }
        }
        Ok(())
    }

    fn seed(&mut self, job: &ledger::Job, desk: &Desk<'_>, now: Millis) {
        let since = desk.clock.at(job.queued_at.into());
        let (Some(known), Some(pool)) = (forge_job(job), desk.pool_for(&job.labels)) else {
            return;
        };
        let repository = job.repository.clone().unwrap_or_default();
        self.demand.seed(known, repository, pool, since, now);
    }

    /// Local jobs that were claimed for a microVM that nobody knows any more.
    pub(super) fn requeue_lost(
        is_served: impl Fn(JobKey) -> bool,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        for job in ledger.reader().unfinished()? {
            if job.source != Source::Local || is_served(JobKey(job.id.0)) {
                continue;
            }
            match job.state {
                JobState::Claimed => ledger.requeue(job.id, "its microVM never came to be")?,
                JobState::Running => {
                    let code = Some(Code::MachineFailed as u8);
                    ledger.fail(job.id, "its microVM is gone", code)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A scale set, or the like, counts so many jobs that wait.
    pub(super) fn counted(&mut self, pool: PoolId, waiting: u32, now: Millis) {
        self.demand.hear(Heard::Statistics { pool, waiting }, now);
    }
}

/// Which attempt of which job of the forge's it is.
fn forge_job(job: &ledger::Job) -> Option<ForgeJob> {
    Some(ForgeJob { id: job.forge_id?, attempt: job.attempt.unwrap_or(1) })
}
