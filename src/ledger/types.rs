//! The records of the ledger.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use super::JobCommand;

/// A wall-clock time of the host, in milliseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    /// Returns the current time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Time {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

impl From<Time> for SystemTime {
    fn from(time: Time) -> Self {
        UNIX_EPOCH + std::time::Duration::from_millis(u64::try_from(time.0).unwrap_or_default())
    }
}

impl ToSql for Time {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Time {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        i64::column_result(value).map(Self)
    }
}

/// The number of a job, in the order in which jobs became known. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl ToSql for JobId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for JobId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        u64::column_result(value).map(Self)
    }
}

/// Defines an enum that is stored as a word.
macro_rules! string_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Returns its name, as stored and as shown to people.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.pad(self.as_str())
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                Ok(self.as_str().into())
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                match value.as_str()? {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(FromSqlError::InvalidType),
                }
            }
        }
    };
}

string_enum! {
    /// The origin of a job.
    JobSource {
        /// `mayfly submit`.
        Local = "local",
        /// GitHub Actions.
        Github = "github",
    }
}

string_enum! {
    /// The state of a job.
    JobState {
        /// Waiting.
        Queued = "queued",
        /// Assigned to a microVM, but not started.
        Claimed = "claimed",
        /// Running.
        Running = "running",
        /// Ended by itself, with success or failure: see its result.
        Finished = "finished",
        /// Its microVM failed, or it could not be started: see its cause.
        Failed = "failed",
        /// Canceled by a person.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Returns whether this state is final.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

string_enum! {
    /// The state of a runner's registration.
    RegistrationState {
        /// The registration call is about to be made, or its result is unknown.
        Intended = "intended",
        /// The runner exists at GitHub.
        Registered = "registered",
        /// The runner took a job. GitHub deletes the runner when the job has ended.
        Taken = "taken",
        /// The runner no longer exists at GitHub.
        Deleted = "deleted",
    }
}

string_enum! {
    /// The state of a job at GitHub.
    ForgeState {
        /// Waiting.
        Queued = "queued",
        /// Running.
        Running = "running",
        /// Ended.
        Completed = "completed",
    }
}

/// The result of a job that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// It exited with this code.
    Exited(i32),
    /// It was ended by this signal.
    Signaled(i32),
    /// The conclusion from GitHub or the runner: `success`, `Failed`, …
    Concluded(String),
}

impl JobResult {
    /// Returns the exit code as a shell reports it.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Exited(code) => u8::try_from(*code).ok(),
            Self::Signaled(number) => u8::try_from(128 + number).ok(),
            Self::Concluded(_) => None,
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// The origin.
    pub source: JobSource,
    /// The pool; `None` if no pool matches.
    pub pool: Option<String>,
    /// The state.
    pub state: JobState,
    /// The command of a local job. Not shown to people: its environment may contain secrets.
    #[serde(skip)]
    pub command: Option<JobCommand>,
    /// GitHub's ID of the job.
    pub forge_id: Option<u64>,
    /// GitHub's ID of the workflow run.
    pub run_id: Option<u64>,
    /// The attempt of the workflow run.
    pub attempt: Option<u32>,
    /// The repository, as `owner/name`.
    pub repository: Option<String>,
    /// The name at GitHub.
    pub name: Option<String>,
    /// The requested labels.
    pub labels: Vec<String>,
    /// The assigned microVM.
    pub microvm: Option<String>,
    /// How often it was requeued.
    pub requeued: u32,
    /// When it became known.
    pub queued_at: Time,
    /// When it was assigned to a microVM.
    pub claimed_at: Option<Time>,
    /// When it started.
    pub started_at: Option<Time>,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// The result.
    pub result: Option<JobResult>,
    /// The exit code of a local job: the command's, or one of Mayfly's
    /// (`docs/reference/exit-codes.md`).
    pub exit_code: Option<u8>,
    /// Why it failed, was requeued or canceled.
    pub cause: Option<String>,
}

/// New information about a job from GitHub. `None` keeps the known value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgeJobUpdate<'a> {
    /// GitHub's ID of the job.
    pub forge_id: u64,
    /// GitHub's ID of the workflow run.
    pub run_id: Option<u64>,
    /// The attempt of the workflow run.
    pub attempt: u32,
    /// The repository, as `owner/name`.
    pub repository: &'a str,
    /// The name at GitHub.
    pub name: Option<&'a str>,
    /// The requested labels; empty keeps the known ones.
    pub labels: &'a [String],
    /// The matching pool.
    pub pool: Option<&'a str>,
    /// The microVM whose runner has the job, if it is ours.
    pub microvm: Option<&'a str>,
    /// How certain it is which runner has the job.
    pub runner: RunnerMatch,
    /// The state. Never moves back.
    pub state: ForgeState,
    /// The conclusion.
    pub conclusion: Option<&'a str>,
}

/// How certain it is which runner has a GitHub job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerMatch {
    /// Unknown.
    Unknown,
    /// One of our runners reported a job of this name. Another job may have the same name.
    Guessed,
    /// GitHub named the runner, ours or another.
    Confirmed,
}

/// The result of recording a [`ForgeJobUpdate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedJob {
    /// The job's number in the ledger.
    pub id: JobId,
    /// The state of the job, from all updates so far.
    pub state: JobState,
    /// Jobs that were wrongly guessed to have this job's microVM. They wait again.
    pub released: Vec<JobId>,
}

/// The result of recording a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryEffect {
    /// Its effect was recorded earlier. Nothing changed.
    AlreadyRecorded,
    /// Its effect, if any, is recorded now.
    Recorded(Option<RecordedJob>),
}

/// Selects the jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobQuery {
    /// Only jobs in this state.
    pub state: Option<JobState>,
    /// Only jobs of this pool.
    pub pool: Option<String>,
    /// Only jobs of this origin.
    pub source: Option<JobSource>,
}

/// A microVM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MicrovmRecord {
    /// Its name.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// Its image, with the digest.
    pub image: String,
    /// The current phase, as the shepherd names it.
    pub phase: String,
    /// When it was planned.
    pub planned_at: Time,
    /// When it ended.
    pub ended_at: Option<Time>,
    /// The outcome, as a word.
    pub outcome: Option<String>,
    /// The cause of a failure.
    pub cause: Option<String>,
    /// The black box directory.
    pub black_box: Option<String>,
}

/// A phase of a microVM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PhaseRecord {
    /// The number of the event in the microVM's record.
    pub event: u64,
    /// The phase, as the shepherd names it.
    pub phase: String,
    /// Milliseconds since the microVM was requested.
    pub elapsed_ms: f64,
    /// The time.
    pub at: Time,
}

/// A runner registration at GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RegistrationRecord {
    /// The runner's name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The microVM of the runner.
    pub microvm: String,
    /// GitHub's ID of the runner.
    pub runner_id: Option<u64>,
    /// The state.
    pub state: RegistrationState,
    /// The name of the job that it took.
    pub job: Option<String>,
    /// When the registration was recorded as intended.
    pub intended_at: Time,
    /// When the deletion was recorded.
    pub deleted_at: Option<Time>,
}
