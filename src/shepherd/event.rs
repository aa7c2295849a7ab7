//! Events of a microVM's life, as they are recorded and reported.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mayfly_protocol::message::{JobExit, StartFailure, Statistics};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::plan::{InterruptRequest, MicrovmId, monotonic};
use super::runner::RunnerProgress;
use mayfly_egress::record::EgressReport;
use mayfly_failure::Code;

/// Maximum length, in characters, of an unreadable end event that is quoted in a report.
const MAX_UNKNOWN_TEXT: usize = 256;

/// Maximum length, in characters, of a program's name in a message.
const MAX_PROGRAM: usize = 256;

/// One line of the record (`events.jsonl`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Time by the host's clock (RFC 3339, UTC).
    pub time: String,
    /// The microVM.
    pub microvm: MicrovmId,
    /// Milliseconds since the microVM was requested.
    pub elapsed_ms: f64,
    /// What happened.
    #[serde(rename = "happened")]
    pub kind: EventKind,
}

/// The kind of an event, with its data.
///
/// A daemon receives events from shepherds of other versions and reads what those versions
/// recorded. It keeps an unknown kind as it is and otherwise skips it ([`Self::Unknown`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A phase began.
    Phase(Phase),
    /// The guest's agent sent its hello.
    Greeted {
        /// Version of the agent, as the agent reports it.
        agent: String,
        /// Release of the guest's kernel, as the agent reports it.
        kernel: String,
    },
    /// The final egress report: what the guest reached and what was refused.
    Egress(EgressReport),
    /// The microVM ended. Always the last event; missing only if the shepherd was killed.
    Ended(JobOutcome),
    /// The job is a runner and reported its progress.
    Runner(RunnerProgress),
    /// An interim egress report while the job runs: a destination was reached or refused for the
    /// first time. Not every such change is reported.
    Reached(EgressReport),
    /// The job was interrupted; its microVM ends after the grace period.
    Interrupted(InterruptRequest),
    /// A kind, or fields of a known kind, that this version does not understand.
    #[serde(untagged)]
    Unknown(serde_json::Value),
}

/// The phases of a microVM's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Everything is decided, nothing is created.
    Planned,
    /// Overlay, network and sockets exist.
    Prepared,
    /// QEMU is about to start.
    Booting,
    /// The guest is up and waits for a job.
    Ready,
    /// A job was assigned.
    Claimed,
    /// The job runs.
    Running,
    /// The job ended and all of its output was delivered.
    Finished,
    /// All processes of the microVM have ended.
    Destroyed,
    /// The microVM failed.
    Failed,
}

impl fmt::Display for Phase {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Planned => "planned",
            Self::Prepared => "prepared",
            Self::Booting => "booting",
            Self::Ready => "ready",
            Self::Claimed => "claimed",
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Destroyed => "destroyed",
            Self::Failed => "failed",
        })
    }
}

/// How a microVM ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobOutcome {
    /// The job ended by itself.
    Job {
        /// The job's exit status.
        status: JobExit,
        /// Trees that were not copied out, each with the reason.
        not_copied: Vec<String>,
        /// Processes that the guest's kernel killed when memory ran out, as the guest reports it.
        #[serde(default)]
        oom_kills: u64,
    },
    /// The microVM failed or was ended.
    Failed(FailureReport),
}

/// A failure, as it is reported and recorded. Fields that another version omits get defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureReport {
    /// The phase in which it failed.
    pub phase: Phase,
    /// The cause's short name, for programs.
    pub cause: String,
    /// The cause as a message for people.
    pub message: String,
    /// What to do about it, if known.
    pub hint: Option<String>,
    /// The corresponding exit code.
    pub code: u8,
    /// The last statistics from the guest.
    #[serde(deserialize_with = "lenient_statistics")]
    pub statistics: Option<Statistics>,
    /// The directory with the evidence.
    pub black_box: PathBuf,
}

/// Reads statistics that another version wrote: missing fields are 0, unknown fields are skipped.
fn lenient_statistics<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Statistics>, D::Error> {
    let Some(fields) = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(from)?
    else {
        return Ok(None);
    };
    let defaults = serde_json::to_value(Statistics::default()).map_err(D::Error::custom)?;
    let serde_json::Value::Object(mut merged) = defaults else { return Ok(None) };
    merged.extend(fields);
    Ok(serde_json::from_value(merged.into()).ok())
}

impl Default for FailureReport {
    /// Returns the report for an end event that this version can't read.
    fn default() -> Self {
        Self {
            phase: Phase::Failed,
            cause: "unknown".to_owned(),
            message: "this version of Mayfly can't read how the microVM ended".to_owned(),
            hint: None,
            code: Code::MachineFailed as u8,
            statistics: None,
            black_box: PathBuf::new(),
        }
    }
}

impl Event {
    /// Parses a line of JSON. Any `ended` event is accepted, even in an unknown format, so that no
    /// job waits forever because its shepherd has another version.
    pub fn parse(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line).map(Self::normalize)
    }

    /// Turns an `ended` event in an unknown format into a failure.
    pub(super) fn normalize(mut self) -> Self {
        if let EventKind::Unknown(value) = &self.kind
            && value.get("ended").is_some()
        {
            let mut report = FailureReport::default();
            let text: String = value.to_string().chars().take(MAX_UNKNOWN_TEXT).collect();
            report.message = format!("{}: {text}", report.message);
            self.kind = EventKind::Ended(JobOutcome::Failed(report));
        }
        self
    }

    /// Creates an event that happens now. `requested_at` is when the microVM was requested
    /// (monotonic nanoseconds).
    pub fn now(microvm: &MicrovmId, requested_at: u64, kind: EventKind) -> Self {
        let elapsed = Duration::from_nanos(monotonic().saturating_sub(requested_at));
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            microvm: microvm.clone(),
            elapsed_ms: (elapsed.as_secs_f64() * 1e6).round() / 1e3,
            kind,
        }
    }
}

/// Returns why a job did not start, with the exit code. `program` is the name of its program.
pub fn describe_start_failure(failure: &StartFailure, program: &str) -> (Code, String) {
    let program: String = program.chars().take(MAX_PROGRAM).collect();
    match failure {
        StartFailure::CommandNotFound => {
            (Code::CommandNotFound, format!("command {program:?} not found in the image"))
        }
        StartFailure::CommandNotExecutable(why) => {
            (Code::CommandNotExecutable, format!("can't execute {program:?}: {why}"))
        }
        StartFailure::UserNotFound(user) => {
            (Code::NotFound, format!("user {user:?} not found in the image"))
        }
        StartFailure::DirectoryNotEntered(why) => {
            (Code::NotFound, format!("can't enter the working directory: {why}"))
        }
        StartFailure::CopyInFailed(_, why) | StartFailure::Other(why) => {
            (Code::MachineFailed, format!("the command did not start: {why}"))
        }
    }
}

/// Returns a note that the guest ran out of memory, if that may be why the job failed. `None` for a
/// job that succeeded anyway.
pub fn out_of_memory_note(status: &JobExit, kills: u64) -> Option<String> {
    let processes = if kills == 1 { "a process" } else { "processes" };
    let count = if kills == 1 { String::new() } else { format!("{kills} ") };
    (kills > 0 && *status != JobExit::Code(0))
        .then(|| format!("the guest ran out of memory: its kernel killed {count}{processes}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_did_not_start_has_its_reason_and_exit_code() {
        let why = || "a reason".to_owned();
        for (failure, code, message) in [
            (StartFailure::CommandNotFound, 127, r#"command "make" not found in the image"#),
            (StartFailure::CommandNotExecutable(why()), 126, r#"can't execute "make": a reason"#),
            (StartFailure::UserNotFound("x".into()), 66, r#"user "x" not found in the image"#),
            (
                StartFailure::DirectoryNotEntered(why()),
                66,
                "can't enter the working directory: a reason",
            ),
            (StartFailure::CopyInFailed(0, why()), 125, "the command did not start: a reason"),
            (StartFailure::Other(why()), 125, "the command did not start: a reason"),
        ] {
            let (described, text) = describe_start_failure(&failure, "make");
            assert_eq!((described as u8, text.as_str()), (code, message));
        }
        let (_, text) =
            describe_start_failure(&StartFailure::CommandNotFound, &"x".repeat(1 << 20));
        assert!(text.len() < 300, "{}", text.len());
    }
}
