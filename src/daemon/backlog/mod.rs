//! The backlog: waiting jobs, and the results of jobs.
//!
//! Owns the queue of local jobs, the forge's known waiting jobs ([`Demand`]), and of the ledger the
//! jobs and the deliveries. Which microVM a job gets is decided elsewhere.

mod forge_jobs;
mod settlement;

use std::collections::VecDeque;

use super::clock::Clock;
use super::decide::{JobKey, PoolId, WaitingJobs};
use super::demand::{Demand, DemandEvent, DemandSettings, ForgeJob};
use super::error::DaemonError;
use super::pools::Pools;
use super::time::Millis;
pub(super) use forge_jobs::RunnerUpdate;
use mayfly_config::Trigger;
use mayfly_failure::Code;
use mayfly_forge::Forge;
use mayfly_ledger::{JobCommand, JobId, JobSource, JobState, Ledger};

/// The start of the cause of a job that the forge took back from its runner.
pub(super) const TAKEN_BACK: &str = "GitHub took the job back";
/// The cause of a local job that can't be served any more.
const NO_POOL: &str = "its pool is no longer configured";
/// How long a forge keeps a job queued.
const FORGE_QUEUE_LIMIT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// The waiting jobs.
pub(super) struct Backlog {
    /// Local jobs, the oldest first.
    queue: VecDeque<QueuedJob>,
    demand: Demand,
}

/// A waiting local job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct QueuedJob {
    job: JobKey,
    pool: PoolId,
    since: Millis,
}

/// What the backlog's methods need from the other parts.
pub(super) struct BacklogContext<'a> {
    pub(super) pools: &'a Pools,
    pub(super) forge: Option<&'a dyn Forge>,
    /// The prefix of the names of this daemon's runners.
    pub(super) prefix: &'a str,
    pub(super) ledger: &'a mut Ledger,
    pub(super) clock: Clock,
}

impl BacklogContext<'_> {
    /// Returns the pool that serves a job of the forge: the first whose labels match, of those that
    /// receive jobs this way.
    fn pool_for(&self, labels: &[String]) -> Option<PoolId> {
        let forge = self.forge?;
        let serves = |pool: &mayfly_config::PoolConfig| {
            pool.trigger != Trigger::None && forge.serves(labels, &pool.labels)
        };
        self.pools.iter().find(|(_, pool)| serves(pool)).map(|(id, _)| id)
    }

    fn job(&self, job: JobKey) -> Result<Option<mayfly_ledger::JobRecord>, DaemonError> {
        Ok(self.ledger.reader().job(JobId(job.0))?)
    }
}

impl Backlog {
    /// Creates an empty backlog. If the forge does not list waiting jobs again, each counts for as
    /// long as the forge keeps it.
    pub(super) fn new(forge: Option<&dyn Forge>) -> Self {
        let usual = DemandSettings::default();
        let settings = match forge {
            Some(forge) if !forge.relists_waiting_jobs() => {
                DemandSettings { expiry: FORGE_QUEUE_LIMIT, ..usual }
            }
            _ => usual,
        };
        Self { queue: VecDeque::new(), demand: Demand::new(settings) }
    }

    /// Returns the number of waiting local jobs.
    pub(super) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Returns the waiting local jobs with their pools, in the order in which they are served.
    pub(super) fn queue(&self) -> impl Iterator<Item = (JobKey, PoolId)> {
        self.queue.iter().map(|queued| (queued.job, queued.pool))
    }

    /// Returns everything that waits, the oldest first.
    pub(super) fn waiting(&self) -> Vec<WaitingJobs> {
        let local = self.queue.iter().map(|queued| WaitingJobs::Local {
            job: queued.job,
            pool: queued.pool,
            since: queued.since,
        });
        let mut waiting: Vec<WaitingJobs> =
            self.demand.waiting().into_iter().chain(local).collect();
        waiting.sort_by_key(WaitingJobs::since);
        waiting
    }

    /// Forgets jobs that are too old to count.
    pub(super) fn expire(&mut self, now: Millis) {
        self.demand.expire(now);
    }

    /// Records and queues a submitted local job.
    pub(super) fn submit(
        &mut self,
        pool: PoolId,
        name: &str,
        command: &JobCommand,
        context: &mut BacklogContext<'_>,
    ) -> Result<JobId, DaemonError> {
        let job = context.ledger.submit_local(name, command)?;
        self.enqueue(JobKey(job.0), pool, context.clock.now());
        Ok(job)
    }

    /// Inserts a local job into the queue by its age.
    fn enqueue(&mut self, job: JobKey, pool: PoolId, since: Millis) {
        let position = self.queue.partition_point(|other| other.since <= since);
        self.queue.insert(position, QueuedJob { job, pool, since });
    }

    /// Takes a local job from the queue for a microVM. The ledger records it first, so that it
    /// can't be assigned twice.
    pub(super) fn claim(
        &mut self,
        job: JobKey,
        microvm: &str,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        self.queue.retain(|queued| queued.job != job);
        Ok(ledger.claim(JobId(job.0), microvm)?)
    }

    /// Cancels a local job. A job that has ended stays as it is.
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

    /// Restores the waiting jobs from the ledger, because acknowledged deliveries are never
    /// repeated. To be called at the start, once the microVMs with jobs are known, and after each
    /// change of the pools: a new pool may serve jobs that had none.
    pub(super) fn restore(&mut self, context: &mut BacklogContext<'_>) -> Result<(), DaemonError> {
        let now = context.clock.now();
        self.demand.keep_pools(|pool| context.pools.get(pool).is_some());
        for job in context.ledger.reader().open_github_jobs()? {
            if job.state == JobState::Queued {
                self.seed(&job, context, now);
            }
        }
        self.queue.clear();
        for job in context.ledger.reader().queued_local_jobs()? {
            match job.pool.as_deref().and_then(|pool| context.pools.find(pool)) {
                Some(pool) => {
                    let since = context.clock.at_wall_time(job.queued_at.into());
                    self.enqueue(JobKey(job.id.0), pool, since);
                }
                None => context.ledger.fail(job.id, NO_POOL, Some(Code::BadConfiguration as u8))?,
            }
        }
        Ok(())
    }

    fn seed(&mut self, job: &mayfly_ledger::JobRecord, context: &BacklogContext<'_>, now: Millis) {
        let since = context.clock.at_wall_time(job.queued_at.into());
        let (Some(known), Some(pool)) = (forge_job(job), context.pool_for(&job.labels)) else {
            return;
        };
        let repository = job.repository.clone().unwrap_or_default();
        self.demand.seed(known, repository, pool, since, now);
    }

    /// Requeues or fails local jobs whose microVM does not exist any more.
    pub(super) fn requeue_lost(
        is_served: impl Fn(JobKey) -> bool,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        for job in ledger.reader().unfinished_jobs()? {
            if job.source != JobSource::Local || is_served(JobKey(job.id.0)) {
                continue;
            }
            match job.state {
                JobState::Claimed => ledger.requeue(job.id, "its microVM was never started")?,
                JobState::Running => {
                    let code = Some(Code::MachineFailed as u8);
                    ledger.fail(job.id, "its microVM is gone", code)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets the number of waiting jobs that the forge counted for a pool.
    pub(super) fn set_waiting_count(&mut self, pool: PoolId, waiting: u32, now: Millis) {
        self.demand.apply(DemandEvent::Statistics { pool, waiting }, now);
    }
}

/// Returns the forge's id and attempt of a job.
fn forge_job(job: &mayfly_ledger::JobRecord) -> Option<ForgeJob> {
    Some(ForgeJob { id: job.forge_id?, attempt: job.attempt.unwrap_or(1) })
}
