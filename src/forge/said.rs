//! What a forge says.

use std::fmt;
use std::time::SystemTime;

use tokio::time::Instant;

use super::ForgeError;
use crate::config::PoolName;

/// Something that a forge said.
#[derive(Debug)]
pub enum Said {
    /// A job changed, by a delivery that is to be acknowledged.
    Delivered(Box<Delivery>),
    /// A list of one repository's jobs.
    Listed {
        /// The repository, as `owner/name`.
        repository: String,
        /// When it was asked for: what happened since may be missing.
        begun: Instant,
        /// Jobs that wait.
        queued: Vec<Job>,
        /// Jobs that a runner has.
        running: Vec<Job>,
    },
    /// So many jobs wait for a pool. It counts instead of what is known of single jobs.
    Counted {
        /// The pool.
        pool: PoolName,
        /// How many.
        waiting: u32,
    },
    /// A runner has a job.
    Took {
        /// The pool whose runner it is.
        pool: PoolName,
        /// The runner's name.
        runner: String,
        /// The job's name.
        job: String,
    },
    /// The job of a runner is over.
    Ended {
        /// The runner's name.
        runner: String,
    },
    /// Runners of a pool can be registered from now on.
    Ready(PoolName),
    /// In this place it is about to have something for a pool that outlives the daemon. It waits
    /// until [`super::Wanted::held`] has it.
    Holds {
        /// The pool's name.
        pool: String,
        /// Where, in the forge's own words.
        place: String,
    },
    /// It has removed what it had there.
    Left {
        /// The pool's name; there may be no such pool any more.
        pool: String,
        /// Where.
        place: String,
    },
    /// It answered.
    Answers,
    /// It can't be listened to: for that pool, or at all.
    Fails(Option<PoolName>, ForgeError),
}

/// A delivery, not acknowledged yet.
pub struct Delivery {
    /// Its name; the same when it is delivered again.
    pub guid: String,
    /// What became of the job; none where that needs nothing.
    pub change: Option<Change>,
    /// The job.
    pub job: Job,
    /// To be called once the effect is recorded. Dropped, the delivery was not taken.
    pub acknowledge: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guid, change, job, .. } = self;
        write!(formatter, "Delivery {{ {guid} {change:?} {job:?} }}")
    }
}

/// What became of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It waits for a runner.
    Queued,
    /// A runner has it.
    Running,
    /// It is over.
    Over,
}

/// A job, as far as a forge says. What is not told is empty or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Job {
    /// Its number.
    pub id: u64,
    /// The run that it belongs to.
    pub run_id: u64,
    /// Which attempt of that run, from 1.
    pub attempt: u32,
    /// Its repository, as `owner/name`.
    pub repository: String,
    /// Its name.
    pub name: String,
    /// The labels that it asks for.
    pub labels: Vec<String>,
    /// The name of the runner that has or had it.
    pub runner: Option<String>,
    /// How it ended, in the forge's word.
    pub conclusion: Option<String>,
    /// Since when it waits.
    pub since: Option<SystemTime>,
}
