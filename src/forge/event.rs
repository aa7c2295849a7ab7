//! Events that a forge reports.

use std::fmt;
use std::time::SystemTime;

use tokio::time::Instant;

use super::ForgeError;
use mayfly_config::PoolName;

/// An event that a forge reports.
#[derive(Debug)]
pub enum ForgeEvent {
    /// A job changed, reported by a delivery that must be acknowledged.
    JobDelivered(Box<JobDelivery>),
    /// The current jobs of one repository.
    JobsListed {
        /// The repository, as `owner/name`.
        repository: String,
        /// When the list was requested: later changes may be missing.
        requested_at: Instant,
        /// Jobs that wait for a runner.
        queued: Vec<RemoteJob>,
        /// Jobs that a runner has.
        running: Vec<RemoteJob>,
    },
    /// The number of jobs that wait for a pool. Overrides what is known of single jobs.
    JobsCounted {
        /// The pool.
        pool: PoolName,
        /// The number of waiting jobs.
        waiting: u32,
    },
    /// A runner has a job.
    JobStarted {
        /// The runner's pool.
        pool: PoolName,
        /// The runner's name.
        runner: String,
        /// The job's name.
        job: String,
    },
    /// The job of a runner ended.
    JobEnded {
        /// The runner's name.
        runner: String,
    },
    /// Runners of this pool can now be registered.
    PoolReady(PoolName),
    /// The forge is about to create a scale set, which outlives the daemon. It waits until
    /// [`super::ListenRequest::locations`] includes the location.
    ScaleSetPlanned {
        /// The pool's name.
        pool: String,
        /// The location, in the forge's own format.
        location: String,
    },
    /// The forge removed its scale set at this location.
    ScaleSetRemoved {
        /// The pool's name; the pool may no longer exist.
        pool: String,
        /// The location, in the forge's own format.
        location: String,
    },
    /// The forge responded.
    Reachable,
    /// Listening failed, for this pool or for all pools.
    Failed(Option<PoolName>, ForgeError),
}

/// A delivery that is not acknowledged yet.
pub struct JobDelivery {
    /// The delivery's GUID; a redelivery has the same one.
    pub guid: String,
    /// The change of the job; `None` if it needs no reaction.
    pub change: Option<JobChange>,
    /// The job.
    pub job: RemoteJob,
    /// Acknowledges the delivery. Call it once the effect is recorded; if it is dropped instead,
    /// the delivery counts as not accepted.
    pub acknowledge: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for JobDelivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guid, change, job, .. } = self;
        write!(formatter, "JobDelivery {{ {guid} {change:?} {job:?} }}")
    }
}

/// A change of a job's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobChange {
    /// The job waits for a runner.
    Queued,
    /// A runner has the job.
    Running,
    /// The job ended.
    Completed,
}

/// A job as the forge describes it. Unknown values are empty, zero or `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteJob {
    /// The forge's ID of the job.
    pub id: u64,
    /// The ID of its run.
    pub run_id: u64,
    /// The attempt of that run, from 1.
    pub attempt: u32,
    /// Its repository, as `owner/name`.
    pub repository: String,
    /// Its name.
    pub name: String,
    /// The labels that it requests.
    pub labels: Vec<String>,
    /// The name of the runner that has or had it.
    pub runner: Option<String>,
    /// Its conclusion, as the forge names it.
    pub conclusion: Option<String>,
    /// Since when it waits.
    pub since: Option<SystemTime>,
}
