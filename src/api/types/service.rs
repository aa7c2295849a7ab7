//! The daemon: its pools and microVMs, what it is told, and how it answers.

use serde::{Deserialize, Serialize};

use super::{Explanation, JobId, Time};

/// A microVM of the daemon's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MicrovmView {
    /// Its id.
    pub id: String,
    /// The pool.
    pub pool: String,
    /// What the daemon takes it for: `booting`, `warm`, `assigned`, `registering`,
    /// `registered`, `busy`, `ending`.
    pub stage: String,
    /// Since when.
    pub since: Time,
    /// The name of its runner at GitHub.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<String>,
    /// The job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

/// A pool and how it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<String>,
    /// Its image.
    pub image: String,
    /// How it learns of jobs.
    pub trigger: String,
    /// How many are kept warm.
    pub min_idle: u32,
    /// How many there may be.
    pub max: u32,
    /// How many boot.
    pub booting: u32,
    /// How many are up and have no job.
    pub warm: u32,
    /// How many are being registered or have a runner that waits for a job.
    pub registered: u32,
    /// How many have a job.
    pub busy: u32,
    /// How many are about to be gone.
    pub ending: u32,
    /// How many jobs wait.
    pub waiting: u32,
    /// Why they wait, or why nothing boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocker: Option<Blocker>,
}

/// Why something waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The reason's short name, for programs.
    pub code: String,
    /// The reason in words.
    pub message: String,
    /// When it is over, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// What is wanted of a drain.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainWish {
    /// Whether jobs that run are ended, too: told first, so that GitHub hears of it.
    pub end_jobs: bool,
    /// How long they may take for that, in milliseconds; no longer than `deadlines.farewell`.
    pub within_ms: Option<u64>,
}

/// What a drain waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReport {
    /// How many jobs still run.
    pub running: u32,
    /// How many local jobs stay queued for the next start.
    pub queued: u32,
    /// When the daemon ends at the latest.
    pub until: Time,
}

/// What became of changed settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReloadReport {
    /// The keys that are in effect.
    pub applied: Vec<String>,
    /// The keys that take a restart.
    pub needs_restart: Vec<String>,
    /// What is allowed but likely not meant.
    pub warnings: Vec<String>,
}

/// How the daemon is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub started: Time,
    /// Whether it takes no more jobs.
    pub draining: bool,
    /// The settings file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<String>,
    /// The web address that runners are registered with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<String>,
    /// How many jobs wait.
    pub waiting: u32,
    /// How many jobs run.
    pub running: u32,
    /// How many microVMs there are.
    pub microvms: u32,
}

/// Everything that the status page shows, as of one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overview {
    /// The moment.
    pub at: Time,
    /// How the daemon is.
    pub status: Status,
    /// Whether it can do its work.
    pub readiness: Readiness,
    /// What of the host is in use.
    pub budget: Budget,
    /// The pools.
    pub pools: Vec<PoolView>,
    /// Jobs that wait, the oldest first, [`Overview::JOBS`] at most.
    pub waiting: Vec<Explanation>,
    /// Jobs that have a microVM, the oldest first.
    pub active: Vec<Explanation>,
    /// Jobs that ended, the last first, [`Overview::JOBS`] at most.
    pub ended: Vec<Explanation>,
    /// The microVMs.
    pub microvms: Vec<MicrovmView>,
}

impl Overview {
    /// How many waiting jobs, and how many ended ones, there are at most.
    pub const JOBS: u32 = 50;
}

/// What all microVMs together use of the host, and may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Budget {
    /// Processors in use.
    pub cpus_used: u32,
    /// Processors that may be used.
    pub cpus: u32,
    /// Bytes of memory in use.
    pub memory_used: u64,
    /// Bytes of memory that may be used.
    pub memory: u64,
}

/// Whether the daemon can do its work, and what it is that it can't.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readiness {
    /// Whether all checks are well.
    pub ready: bool,
    /// The checks: `settings`, `jobs`, `github` (where it is configured), `pools`.
    pub checks: Vec<Check>,
}

/// One thing that work depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// Whether it is well.
    pub ok: bool,
    /// How it is, in words.
    pub message: String,
}

/// Why a request could not be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// What kind of problem it is.
    pub kind: ProblemKind,
    /// The problem in words.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// The kinds of problems, each with a status of HTTP and an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The request makes no sense: 400.
    Invalid,
    /// No or a wrong token: 401.
    Unauthorized,
    /// There is no such job, pool or path: 404.
    NotFound,
    /// This method isn't there, e.g. changes over TCP: 405.
    NotAllowed,
    /// The state does not allow it, e.g. a job that is over: 409.
    Conflict,
    /// The request is too long: 413.
    TooLarge,
    /// The settings are wrong: 422.
    BadSettings,
    /// A mistake in Mayfly: 500.
    Internal,
    /// Not now: the daemon drains, or has too much to do: 503.
    Unavailable,
}
