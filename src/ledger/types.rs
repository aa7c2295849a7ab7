//! What is in the ledger.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

use super::Command;

/// A moment by the host's clock, in milliseconds since 1970 (UTC).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    /// This moment.
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

/// The number of a job, in the order in which they were heard of; never used again.
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

/// An enum that is kept as a word.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Its word, in the ledger and for people.
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

words! {
    /// Where a job comes from.
    Source {
        /// `mayfly submit`.
        Local = "local",
        /// GitHub Actions.
        Github = "github",
    }
}

words! {
    /// Where a job is.
    JobState {
        /// It waits.
        Queued = "queued",
        /// A microVM was chosen for it; it has not begun.
        Claimed = "claimed",
        /// It runs.
        Running = "running",
        /// It ended by itself, well or not: see its result.
        Finished = "finished",
        /// Its microVM failed, or it could not be begun: see its cause.
        Failed = "failed",
        /// A person ended it.
        Cancelled = "cancelled",
    }
}

impl JobState {
    /// Whether nothing follows.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Finished | Self::Failed | Self::Cancelled)
    }
}

words! {
    /// Where a runner's registration is.
    RegistrationState {
        /// GitHub is about to be asked, or was asked and the answer is not known.
        Intended = "intended",
        /// GitHub knows it.
        Registered = "registered",
        /// It took a job: GitHub deletes it by itself once the job ended.
        Taken = "taken",
        /// GitHub no longer knows it.
        Deleted = "deleted",
    }
}

words! {
    /// What is told of a job of GitHub's.
    ForgeState {
        /// It waits.
        Queued = "queued",
        /// It runs.
        Running = "running",
        /// It ended.
        Completed = "completed",
    }
}

/// How a job ended that ended by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobResult {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signalled(i32),
    /// As GitHub or the runner says: `success`, `Failed`, …
    Concluded(String),
}

impl JobResult {
    /// The exit code, as a shell has it.
    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Self::Exited(code) => u8::try_from(*code).ok(),
            Self::Signalled(number) => u8::try_from(128 + number).ok(),
            Self::Concluded(_) => None,
        }
    }
}

/// A job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// Its number.
    pub id: JobId,
    /// Where it comes from.
    pub source: Source,
    /// Its pool; `None` where none matches.
    pub pool: Option<String>,
    /// Where it is.
    pub state: JobState,
    /// What a local job runs. Not shown to people: its environment may hold secrets.
    #[serde(skip)]
    pub command: Option<Command>,
    /// GitHub's id of it.
    pub forge_id: Option<u64>,
    /// GitHub's id of the workflow run that it is a part of.
    pub run_id: Option<u64>,
    /// The attempt of its run at GitHub.
    pub attempt: Option<u32>,
    /// Its repository, as `owner/name`.
    pub repository: Option<String>,
    /// What GitHub calls it.
    pub name: Option<String>,
    /// The labels that it asks for.
    pub labels: Vec<String>,
    /// The microVM that it was given.
    pub microvm: Option<String>,
    /// How often it was put back into the queue.
    pub requeued: u32,
    /// When it was heard of.
    pub queued_at: Time,
    /// When it was given a microVM.
    pub claimed_at: Option<Time>,
    /// When it began.
    pub started_at: Option<Time>,
    /// When it was over.
    pub ended_at: Option<Time>,
    /// How it ended.
    pub result: Option<JobResult>,
    /// The exit code that stands for its end, where it is a local job's: the command's own, else
    /// one of Mayfly's (`docs/reference/exit-codes.md`).
    pub exit_code: Option<u8>,
    /// Why it failed, was put back or cancelled.
    pub cause: Option<String>,
}

/// What GitHub says of a job. What is `None` leaves what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForgeNote<'a> {
    /// GitHub's id of it.
    pub forge_id: u64,
    /// GitHub's id of its workflow run.
    pub run_id: Option<u64>,
    /// The attempt of its run.
    pub attempt: u32,
    /// Its repository, as `owner/name`.
    pub repository: &'a str,
    /// What GitHub calls it.
    pub name: Option<&'a str>,
    /// The labels that it asks for; empty leaves what is known.
    pub labels: &'a [String],
    /// The pool that matches.
    pub pool: Option<&'a str>,
    /// The microVM whose runner has it, where it is ours.
    pub microvm: Option<&'a str>,
    /// How it is known which runner has the job.
    pub runner: RunnerKnown,
    /// Where it is. Never goes back.
    pub state: ForgeState,
    /// How it ended.
    pub conclusion: Option<&'a str>,
}

/// How it is known which runner has a job of GitHub's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerKnown {
    /// Nothing says which.
    Not,
    /// A runner of ours said that it took a job of that name; another may have the same name.
    Guessed,
    /// GitHub named the runner, ours or somebody else's.
    Told,
}

/// What became of a [`ForgeNote`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The job's number here.
    pub id: JobId,
    /// Where the job is now, by all that was ever told of it.
    pub state: JobState,
    /// Jobs that were guessed to have the microVM which turned out to have this one: they wait
    /// again.
    pub released: Vec<JobId>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Delivered {
    /// Its effect was recorded earlier: it has none now.
    Before,
    /// Its effect, if it has one, is recorded now.
    Now(Option<Noted>),
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// In this state only.
    pub state: Option<JobState>,
    /// Of this pool only.
    pub pool: Option<String>,
    /// From there only.
    pub source: Option<Source>,
}

/// A microVM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Microvm {
    /// Its name.
    pub id: String,
    /// Its pool.
    pub pool: String,
    /// Its image, with the digest.
    pub image: String,
    /// The phase it is in, as the shepherd calls it.
    pub phase: String,
    /// When it was decided to boot it.
    pub planned_at: Time,
    /// When it was over.
    pub ended_at: Option<Time>,
    /// How it ended, in a word.
    pub outcome: Option<String>,
    /// Why, where it went wrong.
    pub cause: Option<String>,
    /// Where its evidence is kept.
    pub black_box: Option<String>,
}

/// One phase of a microVM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// Which event of the microVM's record it is.
    pub event: u64,
    /// The phase, as the shepherd calls it.
    pub phase: String,
    /// Milliseconds since the microVM was asked for.
    pub elapsed_ms: f64,
    /// When.
    pub at: Time,
}

/// A runner at GitHub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Registration {
    /// The runner's name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The microVM that it is for.
    pub microvm: String,
    /// GitHub's id of it.
    pub runner_id: Option<u64>,
    /// Where it is.
    pub state: RegistrationState,
    /// What GitHub calls the job that it took.
    pub job: Option<String>,
    /// When its name was chosen.
    pub intended_at: Time,
    /// When GitHub no longer knew it.
    pub deleted_at: Option<Time>,
}
