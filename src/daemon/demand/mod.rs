//! What is known of the forge's waiting jobs: hints and snapshots, folded into counts.
//!
//! Webhooks come twice, late, in the wrong order, or not at all; they are *hints*. What a poll of
//! a repository lists is a *snapshot*: it is what reconciles. Of a scale set there are statistics
//! instead. The marks of our own runners ("Running job: X") come first of all, but name no job.
//!
//! Rules:
//! - Hints move a job forward only: queued, gone, running, done. What is done stays done.
//! - A snapshot decides whether a job waits, where what is known of it is older than the snapshot
//!   by [`Settings::lag`]: the forge's lists may be behind its webhooks.
//! - A queued job that no snapshot confirms is forgotten after [`Settings::expiry`].
//! - A mark of our own counts as one job less until the job that it meant is known to run, or a
//!   snapshot of later tells.
//!
//! Pure: no clock, no input or output. Knows nothing of machines.

mod fold;

#[cfg(test)]
mod properties;

use std::time::Duration;

use super::decide::PoolId;
use super::millis::Millis;
pub use fold::Demand;

/// One attempt of one job at the forge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ForgeJob {
    /// The job's id.
    pub id: u64,
    /// The attempt of its run.
    pub attempt: u32,
}

/// How much is believed for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// How far the forge's lists may be behind its webhooks and our runners.
    pub lag: Duration,
    /// How long a queued job counts without being confirmed. Longer than the interval of polls;
    /// where nothing polls, as long as the forge keeps a job queued (24 hours).
    pub expiry: Duration,
    /// How long what is known of jobs that no longer wait is kept, against late hints.
    pub memory: Duration,
    /// Jobs that are known at the most.
    pub capacity: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lag: Duration::from_secs(10),
            expiry: Duration::from_secs(30 * 60),
            memory: Duration::from_secs(6 * 3600),
            capacity: 100_000,
        }
    }
}

/// Something that was heard. `at` is when, by the daemon's clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A webhook: the job waits for a runner.
    Queued {
        /// The job.
        job: ForgeJob,
        /// Its repository, as `owner/name`.
        repository: String,
        /// The pool that matches its labels; such without a pool are not to be told.
        pool: PoolId,
    },
    /// A webhook: the job runs.
    InProgress {
        /// The job.
        job: ForgeJob,
        /// The runner that has it.
        runner: Option<String>,
    },
    /// A webhook: the job ended, or was cancelled before it began.
    Completed {
        /// The job.
        job: ForgeJob,
        /// The runner that had it.
        runner: Option<String>,
    },
    /// A poll: these and no other jobs of the repository wait. `at` is when it was *begun*.
    Snapshot {
        /// The repository, as `owner/name`.
        repository: String,
        /// The jobs, with the pool and since when each waits.
        queued: Vec<(ForgeJob, PoolId, Millis)>,
    },
    /// A scale set's statistics; they count instead of jobs in this pool.
    Statistics {
        /// The pool.
        pool: PoolId,
        /// Jobs that are assigned to the scale set and don't run (`totalAssignedJobs` less
        /// `totalRunningJobs`).
        waiting: u32,
    },
    /// One of our own runners took a job.
    Taken {
        /// The runner's name.
        runner: String,
        /// Its pool.
        pool: PoolId,
    },
}
