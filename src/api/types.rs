//! What goes over the API, as JSON.
//!
//! Both ends are of the same version, but programs read it, too: fields are added, not renamed.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A job's number in the ledger.
pub type JobId = u64;

/// A time by the host's clock, in milliseconds since 1970; in JSON RFC 3339, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

impl Time {
    /// Now.
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// How long after `earlier` this is; nothing if it is before.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// The last millisecond of the year 9999, after which RFC 3339 has no dates.
const LAST: u64 = 253_402_300_799_999;

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = UNIX_EPOCH + Duration::from_millis(self.0.min(LAST));
        humantime::format_rfc3339_millis(time).fmt(formatter)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = humantime::parse_rfc3339(&text).map_err(serde::de::Error::custom)?;
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self(u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// A local job as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The pool.
    pub pool: String,
    /// The program and its arguments, at least the former.
    pub command: Vec<String>,
    /// Variables, beside those of the pool.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// How long it may run, in milliseconds; the pool's deadline is the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Where the command starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// The user it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Which jobs are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobFilter {
    /// Those in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Those of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// How many at most; [`JobFilter::DEFAULT_LIMIT`] where it isn't said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl JobFilter {
    /// How many are listed where nothing is said.
    pub const DEFAULT_LIMIT: u32 = 50;
    /// How many are listed at most.
    pub const MAX_LIMIT: u32 = 1000;

    /// How many jobs to list.
    pub fn limit(&self) -> u32 {
        self.limit.unwrap_or(Self::DEFAULT_LIMIT).clamp(1, Self::MAX_LIMIT)
    }
}

/// Where a job comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobSource {
    /// `mayfly submit`.
    Local,
    /// GitHub.
    Github,
}

/// How far a job is. It moves forward only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits.
    Queued,
    /// A microVM has been chosen for it.
    Claimed,
    /// It runs.
    Running,
    /// It ended by itself, well or not.
    Finished,
    /// It could not be run to its end.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing more happens to the job.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Queued => "queued",
            Self::Claimed => "claimed",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// Where it comes from.
    pub source: JobSource,
    /// The pool; `None` where no pool has its labels.
    pub pool: Option<String>,
    /// How far it is.
    pub state: JobState,
    /// What it is called: the command line, or the name at GitHub.
    pub name: String,
    /// The repository of a job of GitHub's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// GitHub's id of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github_id: Option<u64>,
    /// Its page at GitHub, where its log is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The microVM it runs in, or ran in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microvm: Option<String>,
    /// When it was queued.
    pub queued: Time,
    /// When it began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When it was over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// A local job's exit code: its own, or one of Mayfly's where Mayfly failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// How it ended, in a word or two: `exit 1`, `signal 9`, `success`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why it could not be run to its end, or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What its runner needed and was refused, so that GitHub may lack its log, and what allows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

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

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub job: JobView,
    /// What has happened so far, in order.
    pub phases: Vec<PhaseView>,
    /// What it waits for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocker: Option<Blocker>,
    /// Where the evidence of an abnormal end is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub black_box: Option<String>,
    /// What its microVM reached and was refused; known once that has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressView>,
}

/// What a microVM reached, and what it was refused. What is counted are connections, requests,
/// lookups and packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressView {
    /// How many passed.
    pub allowed: u64,
    /// How many did not.
    pub refused: u64,
    /// How many passed as the policy only watches.
    pub would_refuse: u64,
    /// Bytes from the guest, in all.
    #[serde(default)]
    pub up: u64,
    /// Bytes to the guest, in all.
    #[serde(default)]
    pub down: u64,
    /// How many destinations have no row of their own, as there were too many. They are in the
    /// numbers above, and in a row `(others)` for each verdict and cause.
    #[serde(default)]
    pub omitted: u64,
    /// How many lines the egress record lacks, as there were too many.
    #[serde(default)]
    pub unrecorded: u64,
    /// A row per destination and verdict; left out in an overview.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<DestinationView>,
}

/// One destination of a microVM, with one verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// The name or address, as the guest said it.
    pub host: String,
    /// The port; 0 where there is none.
    pub port: u16,
    /// `allowed`, `refused` or `would-refuse`.
    pub verdict: String,
    /// Why not, in a word (docs/guide/egress.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// How many connections, requests, lookups or packets.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

/// Something that happened to a job, or to its microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    /// What began.
    pub phase: String,
    /// When.
    pub at: Time,
    /// How long it lasted, in milliseconds; `None` is still going on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
    /// What more there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
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
