//! Jobs: how they are asked for, and what became of them.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Blocker, JobId, Time};

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
