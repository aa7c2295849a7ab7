//! Pools, microVMs, status, drain and reload; errors of the API.

use serde::{Deserialize, Serialize};

use super::{Explanation, JobId, Time};

/// A microVM of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicrovmView {
    /// The microVM's ID.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// The stage from the daemon's point of view: `booting`, `warm`, `assigned`, `registering`,
    /// `registered`, `busy`, `ending`.
    pub stage: String,
    /// When it entered the stage.
    pub since: Time,
    /// The name of its GitHub runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// The job it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

/// A pool and its current counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its image.
    pub image: String,
    /// The trigger: how the pool learns about jobs.
    pub trigger: String,
    /// Number of microVMs to keep warm.
    pub min_idle: u32,
    /// Maximum number of microVMs.
    pub max: u32,
    /// Booting microVMs.
    pub booting: u32,
    /// `MicroVMs` that are ready and have no job.
    pub warm: u32,
    /// `MicroVMs` that are being registered, or have a runner that waits for a job.
    pub registered: u32,
    /// `MicroVMs` with a job.
    pub busy: u32,
    /// `MicroVMs` that are being destroyed.
    pub ending: u32,
    /// Jobs that wait.
    pub waiting: u32,
    /// Why jobs wait or no microVM boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocker: Option<BlockerView>,
}

/// The reason why something waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockerView {
    /// The reason's code, for programs.
    pub code: String,
    /// The reason, for people.
    pub message: String,
    /// When the reason ends, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// The options of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainRequest {
    /// Whether to end running jobs too. They are interrupted first, so that GitHub gets a result.
    pub end_jobs: bool,
    /// The time they have to end, in milliseconds; at most `deadlines.farewell`.
    pub within_ms: Option<u64>,
}

/// The state of a drain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// Jobs that still run.
    pub running: u32,
    /// Local jobs that stay queued for the next start.
    pub queued: u32,
    /// The latest time at which the daemon exits.
    pub until: Time,
}

/// The result of a settings reload.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Changed keys that are in effect now.
    pub applied: Vec<String>,
    /// Changed keys that need a restart.
    pub needs_restart: Vec<String>,
    /// Warnings about settings that are valid but probably unintended.
    pub warnings: Vec<String>,
}

/// The state of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// Its version.
    pub version: String,
    /// Its process ID.
    pub pid: u32,
    /// When it was started.
    pub started: Time,
    /// Whether it is draining.
    pub draining: bool,
    /// The settings file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// The URL that runners are registered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<String>,
    /// Waiting jobs.
    pub waiting: u32,
    /// Running jobs.
    pub running: u32,
    /// `MicroVMs`.
    pub microvms: u32,
}

/// The content of the status page at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The time of the snapshot.
    pub at: Time,
    /// The state of the daemon.
    pub status: DaemonStatus,
    /// The readiness checks.
    pub readiness: Readiness,
    /// The host's budget and its use.
    pub budget: BudgetView,
    /// The pools.
    pub pools: Vec<PoolView>,
    /// Waiting jobs, oldest first, at most [`Overview::JOBS`].
    pub waiting: Vec<Explanation>,
    /// Jobs with a microVM, oldest first.
    pub active: Vec<Explanation>,
    /// Ended jobs, latest first, at most [`Overview::JOBS`].
    pub ended: Vec<Explanation>,
    /// The microVMs.
    pub microvms: Vec<MicrovmView>,
}

impl Overview {
    /// The maximum number of waiting jobs and of ended jobs.
    pub const JOBS: u32 = 50;
}

/// The host resources that microVMs may use and do use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BudgetView {
    /// Processors in use.
    pub cpus_used: u32,
    /// Processor limit.
    pub cpus: u32,
    /// Memory in use, in bytes.
    pub memory_used: u64,
    /// Memory limit in bytes.
    pub memory: u64,
}

/// Whether the daemon can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether all checks pass.
    pub ready: bool,
    /// The checks: `settings`, `jobs`, `github` (if configured), `pools`.
    pub checks: Vec<ReadinessCheck>,
}

/// The result of one readiness check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessCheck {
    /// The name of the check.
    pub name: String,
    /// Whether it passes.
    pub ok: bool,
    /// The result, for people.
    pub message: String,
}

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind.
    pub kind: ApiErrorKind,
    /// The message.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// Creates an error without a hint.
    pub fn new(kind: ApiErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The kinds of API errors, each with an HTTP status and an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiErrorKind {
    /// The request is invalid: 400.
    Invalid,
    /// Missing or wrong token: 401.
    Unauthorized,
    /// Unknown job, pool or path: 404.
    NotFound,
    /// Method not allowed, e.g. changes over TCP: 405.
    NotAllowed,
    /// The state does not allow it, e.g. canceling an ended job: 409.
    Conflict,
    /// The request is too large: 413.
    TooLarge,
    /// The settings are wrong: 422.
    BadSettings,
    /// A bug in Mayfly: 500.
    Internal,
    /// The daemon is draining or overloaded: 503.
    Unavailable,
}
