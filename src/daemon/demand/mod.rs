//! The forge's waiting jobs: hints and snapshots, folded into counts.
//!
//! Webhooks arrive twice, late, out of order, or not at all, so they are *hints*. The list from a
//! poll of a repository is a *snapshot*, which reconciles. For a scale set there are statistics
//! instead. Marks of the daemon's own runners ("Running job: X") arrive first, but do not identify
//! the job.
//!
//! Rules:
//! - Hints move a job only forward: queued, gone, running, done. Done is final.
//! - A snapshot decides whether a job waits, if the last information about it is older than the
//!   snapshot by [`DemandSettings::lag`]: the forge's lists may lag behind its webhooks.
//! - A queued job that no snapshot confirms is forgotten after [`DemandSettings::expiry`].
//! - A mark of an own runner counts as one job less until its job is known to run, or a later
//!   snapshot arrives.
//!
//! Pure: no clock, no input or output. Knows nothing of microVMs.

mod fold;

#[cfg(test)]
mod properties;

use std::time::Duration;

use super::decide::PoolId;
use super::time::Millis;
pub(super) use fold::Demand;

/// One attempt of a job at the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct ForgeJob {
    /// The job's id.
    pub id: u64,
    /// The attempt of its run.
    pub attempt: u32,
}

/// How long information counts, and how much is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DemandSettings {
    /// How far the forge's lists may lag behind its webhooks and the runners' marks.
    pub lag: Duration,
    /// How long a queued job counts without confirmation. Longer than the polling interval; without
    /// polling, as long as the forge keeps a job queued (24 hours).
    pub expiry: Duration,
    /// How long jobs that no longer wait are remembered, against late hints.
    pub memory: Duration,
    /// The maximum number of known jobs.
    pub capacity: usize,
}

impl Default for DemandSettings {
    fn default() -> Self {
        Self {
            lag: Duration::from_secs(10),
            expiry: Duration::from_secs(30 * 60),
            memory: Duration::from_secs(6 * 3600),
            capacity: 100_000,
        }
    }
}

/// An event about waiting jobs. `at` is its time on the daemon's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DemandEvent {
    /// A webhook: the job waits for a runner.
    Queued {
        /// The job.
        job: ForgeJob,
        /// Its repository, as `owner/name`.
        repository: String,
        /// The pool that matches its labels. Jobs without a pool must not be passed.
        pool: PoolId,
    },
    /// A webhook: the job runs.
    InProgress {
        /// The job.
        job: ForgeJob,
        /// The runner that has it.
        runner: Option<String>,
    },
    /// A webhook: the job ended, or was canceled before it started.
    Completed {
        /// The job.
        job: ForgeJob,
        /// The runner that had it.
        runner: Option<String>,
    },
    /// A poll: exactly these jobs of the repository wait. `at` is when the poll *started*.
    Snapshot {
        /// The repository, as `owner/name`.
        repository: String,
        /// The jobs, each with its pool and since when it waits.
        queued: Vec<(ForgeJob, PoolId, Millis)>,
    },
    /// A scale set's statistics, which replace known jobs in this pool.
    Statistics {
        /// The pool.
        pool: PoolId,
        /// Jobs that are assigned to the scale set and are not running (`totalAssignedJobs` minus
        /// `totalRunningJobs`).
        waiting: u32,
    },
    /// A runner of this daemon took a job.
    Taken {
        /// The runner's name.
        runner: String,
        /// Its pool.
        pool: PoolId,
    },
}
