//! The JSON types of the API.
//!
//! Server and client have the same version, but other programs use the API too: fields are added,
//! never renamed.

mod job;
mod service;
mod time;

pub use job::{
    DestinationView, EgressView, Explanation, JobFilter, JobSource, JobState, JobView, PhaseView,
    Submission,
};
pub use service::{
    ApiError, ApiErrorKind, BlockerView, BudgetView, DaemonStatus, DrainReport, DrainRequest,
    MicrovmView, Overview, PoolView, Readiness, ReadinessCheck, ReloadReport,
};
pub use time::Time;

/// A job's number in the ledger.
pub type JobId = u64;
