//! Jobs: submission, listing, state and explanation.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{BlockerView, JobId, Time};

/// A request to run a local job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submission {
    /// The pool.
    pub pool: String,
    /// The program and its arguments. Must not be empty.
    pub command: Vec<String>,
    /// Environment variables, in addition to the pool's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// The time limit in milliseconds, at most the pool's job deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
    /// The user to run as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
}

/// Selects the jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JobFilter {
    /// Only jobs in this state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Only jobs of this pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The maximum number of jobs. Default: [`JobFilter::DEFAULT_LIMIT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

impl JobFilter {
    /// The default limit.
    pub const DEFAULT_LIMIT: u32 = 50;
    /// The maximum limit.
    pub const MAX_LIMIT: u32 = 1000;

    /// Returns the number of jobs to list.
    pub fn limit(&self) -> u32 {
        self.limit.unwrap_or(Self::DEFAULT_LIMIT).clamp(1, Self::MAX_LIMIT)
    }
}

/// The origin of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobSource {
    /// `mayfly submit`.
    Local,
    /// GitHub.
    Github,
}

/// The state of a job. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waiting for a microVM.
    Queued,
    /// Assigned to a microVM.
    Claimed,
    /// Running.
    Running,
    /// Ended by itself, with success or failure.
    Finished,
    /// Mayfly or the host failed before the job ended.
    Failed,
    /// Canceled by a person.
    Cancelled,
}

impl JobState {
    /// Returns whether this state is final.
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
    /// The job's number.
    pub id: JobId,
    /// The origin.
    pub source: JobSource,
    /// The pool; `None` if no pool has the job's labels.
    pub pool: Option<String>,
    /// The state.
    pub state: JobState,
    /// The command line, or the job's name at GitHub.
    pub name: String,
    /// The repository of a GitHub job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// GitHub's ID of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github_id: Option<u64>,
    /// The job's page at GitHub, with its log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The microVM that the job runs or ran in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microvm: Option<String>,
    /// When it was queued.
    pub queued: Time,
    /// When it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Time>,
    /// The exit code of a local job: the command's, or one of Mayfly's if Mayfly failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
    /// The result as a short text: `exit 1`, `signal 9`, `success`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why it failed or was canceled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// The connections that the runner needs and the policy refused, and the rule that allows them.
    /// GitHub may lack the job's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning: Option<String>,
}

/// The full history of a job, and what it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The job.
    pub job: JobView,
    /// The phases so far, in order.
    pub phases: Vec<PhaseView>,
    /// What the job waits for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocker: Option<BlockerView>,
    /// The black box directory, if the microVM failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub black_box: Option<String>,
    /// The egress of its microVM. Known once the microVM has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressView>,
}

/// The egress of a microVM. Counts are of connections, requests, lookups and packets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressView {
    /// Passed.
    pub allowed: u64,
    /// Refused.
    pub refused: u64,
    /// Would have been refused if the policy were enforced.
    pub would_refuse: u64,
    /// Total bytes from the guest.
    #[serde(default)]
    pub up: u64,
    /// Total bytes to the guest.
    #[serde(default)]
    pub down: u64,
    /// Destinations without a row of their own, because there were too many. The totals above
    /// include them, and a row `(others)` per verdict and cause.
    #[serde(default)]
    pub omitted: u64,
    /// Lines missing from the egress record, because there were too many.
    #[serde(default)]
    pub unrecorded: u64,
    /// One row per destination and verdict; omitted in an overview.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub destinations: Vec<DestinationView>,
}

/// One destination of a microVM, with one verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationView {
    /// The name or address as the guest sent it.
    pub host: String,
    /// The port; 0 for protocols without ports.
    pub port: u16,
    /// `allowed`, `refused` or `would-refuse`.
    pub verdict: String,
    /// The cause of a refusal (docs/guide/egress.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Number of connections, requests, lookups or packets.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

/// One phase of a job or its microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseView {
    /// The phase.
    pub phase: String,
    /// When it started.
    pub at: Time,
    /// The duration in milliseconds; `None` while the phase goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lasted_ms: Option<u64>,
    /// Additional information.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
