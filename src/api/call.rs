//! What the server asks of the daemon's loop.

use std::path::PathBuf;

use tokio::sync::oneshot;

use super::types::{
    DrainReport, DrainWish, Explanation, JobFilter, JobId, JobView, MicrovmView, Overview,
    PoolView, Problem, Readiness, ReloadReport, Status, Submission,
};

/// Where the loop puts its answer. That nobody waits for it any more is no error.
pub type Answer<T> = oneshot::Sender<Result<T, Problem>>;

/// How many calls wait for the loop at most; further ones are told that it is busy.
pub const CAPACITY: usize = 64;

/// One request. Each is answered at once: the loop waits for nothing before it answers.
#[derive(Debug)]
pub enum Call {
    /// Queue a local job.
    Submit {
        /// The job.
        submission: Submission,
        /// The job as it is queued.
        answer: Answer<JobView>,
    },
    /// List jobs, the newest first.
    Jobs {
        /// Which ones.
        filter: JobFilter,
        /// They.
        answer: Answer<Vec<JobView>>,
    },
    /// One job.
    Job {
        /// Which one.
        job: JobId,
        /// It.
        answer: Answer<JobView>,
    },
    /// Where the log of a job is. The server reads it, and asks again while it grows.
    Log {
        /// Which job.
        job: JobId,
        /// The log.
        answer: Answer<Log>,
    },
    /// Why a job is where it is.
    Explain {
        /// Which job.
        job: JobId,
        /// Its story.
        answer: Answer<Explanation>,
    },
    /// List the daemon's microVMs.
    Microvms {
        /// They.
        answer: Answer<Vec<MicrovmView>>,
    },
    /// List the pools.
    Pools {
        /// They.
        answer: Answer<Vec<PoolView>>,
    },
    /// End a job, whether it waits or runs.
    Cancel {
        /// Which job.
        job: JobId,
        /// The user who asks, where that is known.
        user: Option<u32>,
        /// The job as it is then; one that runs ends soon after.
        answer: Answer<JobView>,
    },
    /// Take no more jobs, and end when the running ones have ended.
    Drain {
        /// Whether the running ones are ended.
        wish: DrainWish,
        /// The user who asks, where that is known.
        user: Option<u32>,
        /// What is waited for.
        answer: Answer<DrainReport>,
    },
    /// Read the settings again and apply what can be applied.
    Reload {
        /// What was applied and what was not.
        answer: Answer<ReloadReport>,
    },
    /// How the daemon is.
    Status {
        /// That.
        answer: Answer<Status>,
    },
    /// Everything at once, as of one moment.
    Overview {
        /// That.
        answer: Answer<Box<Overview>>,
    },
    /// Whether the daemon can do its work.
    Ready {
        /// Whether, and why not.
        answer: Answer<Readiness>,
    },
}

/// The log of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// The file; `None` where the job has not begun to write or never will.
    pub path: Option<PathBuf>,
    /// Whether there may be more later.
    pub growing: bool,
}
