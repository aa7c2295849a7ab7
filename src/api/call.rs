//! Calls from the API server to the daemon's event loop.

use std::path::PathBuf;

use tokio::sync::oneshot;

use super::types::{
    ApiError, DaemonStatus, DrainReport, DrainRequest, Explanation, JobFilter, JobId, JobView,
    MicrovmView, Overview, PoolView, Readiness, ReloadReport, Submission,
};

/// The sender for the loop's response. The loop ignores a receiver that has gone away.
pub type Responder<T> = oneshot::Sender<Result<T, ApiError>>;

/// The maximum number of calls that wait for the loop. Further ones fail as overloaded.
pub const CAPACITY: usize = 64;

/// A request to the loop. The loop responds without waiting for anything else.
#[derive(Debug)]
pub enum Call {
    /// Queues a local job.
    Submit {
        /// The job.
        submission: Submission,
        /// Receives the queued job.
        responder: Responder<JobView>,
    },
    /// Lists jobs, newest first.
    Jobs {
        /// Which jobs.
        filter: JobFilter,
        /// Receives the jobs.
        responder: Responder<Vec<JobView>>,
    },
    /// Returns one job.
    Job {
        /// Which job.
        job: JobId,
        /// Receives the job.
        responder: Responder<JobView>,
    },
    /// Returns where the log of a job is. The server reads the file, and calls again while it
    /// grows.
    Log {
        /// Which job.
        job: JobId,
        /// Receives the log's location.
        responder: Responder<JobLog>,
    },
    /// Returns the history of a job and what it waits for.
    Explain {
        /// Which job.
        job: JobId,
        /// Receives the explanation.
        responder: Responder<Explanation>,
    },
    /// Lists the daemon's microVMs.
    Microvms {
        /// Receives the microVMs.
        responder: Responder<Vec<MicrovmView>>,
    },
    /// Lists the pools.
    Pools {
        /// Receives the pools.
        responder: Responder<Vec<PoolView>>,
    },
    /// Cancels a waiting or running job.
    Cancel {
        /// Which job.
        job: JobId,
        /// The requesting user, if known.
        user: Option<u32>,
        /// Receives the job. A running one ends soon after.
        responder: Responder<JobView>,
    },
    /// Takes no more jobs, and exits when the running ones have ended.
    Drain {
        /// The drain options.
        request: DrainRequest,
        /// The requesting user, if known.
        user: Option<u32>,
        /// Receives what the daemon waits for.
        responder: Responder<DrainReport>,
    },
    /// Reads the settings again and applies what can be applied.
    Reload {
        /// Receives what was applied and what was not.
        responder: Responder<ReloadReport>,
    },
    /// Returns the state of the daemon.
    Status {
        /// Receives the status.
        responder: Responder<DaemonStatus>,
    },
    /// Returns the content of the status page at one moment.
    Overview {
        /// Receives the overview.
        responder: Responder<Box<Overview>>,
    },
    /// Returns the readiness checks.
    Ready {
        /// Receives the checks.
        responder: Responder<Readiness>,
    },
}

/// Where the log of a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobLog {
    /// The file; `None` if the job has not written anything yet, or never will.
    pub path: Option<PathBuf>,
    /// Whether the log may still grow.
    pub growing: bool,
}
