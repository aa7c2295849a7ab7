//! What goes over the API, as JSON.
//!
//! Both ends are of the same version, but programs read it, too: fields are added, not renamed.

mod job;
mod service;
mod time;

pub use job::{
    DestinationView, EgressView, Explanation, JobFilter, JobSource, JobState, JobView, PhaseView,
    Submission,
};
pub use service::{
    Blocker, Budget, Check, DrainReport, DrainWish, MicrovmView, Overview, PoolView, Problem,
    ProblemKind, Readiness, ReloadReport, Status,
};
pub use time::Time;

/// A job's number in the ledger.
pub type JobId = u64;
