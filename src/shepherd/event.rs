//! What happens to a microVM, as it is recorded and reported.

use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mayfly_protocol::message::{JobStatus, Statistics};
use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize};

use super::plan::{Farewell, Id, monotonic};
use super::runner::RunnerMark;
use crate::egress::record::Report;
use crate::failure::Code;

/// Characters that are shown of an end that can't be read.
const FORM: usize = 256;

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When, by the host's clock (RFC 3339, UTC).
    pub time: String,
    /// The microVM.
    pub microvm: Id,
    /// Milliseconds since the microVM was asked for.
    pub elapsed_ms: f64,
    /// What.
    pub happened: Happened,
}

/// What happened.
///
/// A daemon hears it from shepherds of other versions, and reads what they recorded: a kind that is
/// not known is kept as it is and skipped ([`Self::Unknown`]).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happened {
    /// A phase of its life began.
    Phase(Phase),
    /// The guest's agent said hello.
    Greeted {
        /// Version of the agent.
        agent: String,
        /// Release of the guest's kernel.
        kernel: String,
    },
    /// What the guest reached, and what it was refused.
    Egress(Report),
    /// It is over. The last event, and there is always one, unless the shepherd was killed.
    Ended(Outcome),
    /// The job is a runner, and said something of itself.
    Runner(RunnerMark),
    /// The same as [`Self::Egress`] so far, while it runs: something was reached, or refused, that
    /// was not before. Not every time that is so.
    Reached(Report),
    /// The job was interrupted, and its microVM ends after a while.
    Interrupted(Farewell),
    /// A kind, or the fields of one, that this version does not know: kept, and otherwise skipped.
    #[serde(untagged)]
    Unknown(serde_json::Value),
}

/// The phases of a microVM's life, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Everything is decided, nothing made.
    Planned,
    /// Overlay, network and sockets are there.
    Prepared,
    /// QEMU is about to run.
    Booting,
    /// The guest is up and waits for a job.
    Ready,
    /// The job is known.
    Claimed,
    /// The job runs.
    Running,
    /// The job ended and its output was passed on.
    Finished,
    /// Nothing of it runs any more.
    Destroyed,
    /// It went wrong.
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
pub enum Outcome {
    /// The job ended by itself.
    Job {
        /// How.
        status: JobStatus,
        /// What could not be copied out, and why.
        not_copied: Vec<String>,
        /// Processes that the guest's kernel killed for want of memory, by the guest's own word.
        #[serde(default)]
        oom_kills: u64,
    },
    /// The microVM failed or was ended.
    Failed(FailureReport),
}

/// A failure, for those who were not there. What another version leaves out has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FailureReport {
    /// The phase in which it failed.
    pub phase: Phase,
    /// The cause's short name, for programs.
    pub cause: String,
    /// The cause in words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// The exit code that it stands for.
    pub code: u8,
    /// The last that was heard of the guest.
    #[serde(deserialize_with = "statistics")]
    pub statistics: Option<Statistics>,
    /// Where the evidence is kept.
    pub black_box: PathBuf,
}

/// Statistics of another version: what they lack is 0, what they have beyond is skipped.
fn statistics<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Statistics>, D::Error> {
    let Some(found) = Option::<serde_json::Map<String, serde_json::Value>>::deserialize(from)?
    else {
        return Ok(None);
    };
    let whole = serde_json::to_value(Statistics::default()).map_err(D::Error::custom)?;
    let serde_json::Value::Object(mut whole) = whole else { return Ok(None) };
    whole.extend(found);
    Ok(serde_json::from_value(whole.into()).ok())
}

impl Default for FailureReport {
    /// An end of which nothing is known.
    fn default() -> Self {
        Self {
            phase: Phase::Failed,
            cause: "unknown".to_owned(),
            message: "the microVM ended in a way that this version of Mayfly can't read".to_owned(),
            hint: None,
            code: Code::MachineFailed as u8,
            statistics: None,
            black_box: PathBuf::new(),
        }
    }
}

impl Event {
    /// The event that a line of JSON is. An end is one, whatever its form: a job is not to wait for
    /// it because its shepherd is of another version.
    pub fn parse(line: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(line).map(Self::settle)
    }

    pub(super) fn settle(mut self) -> Self {
        if let Happened::Unknown(value) = &self.happened
            && value.get("ended").is_some()
        {
            let mut report = FailureReport::default();
            let form: String = value.to_string().chars().take(FORM).collect();
            report.message = format!("{}: {form}", report.message);
            self.happened = Happened::Ended(Outcome::Failed(report));
        }
        self
    }

    /// Something that happens now to a microVM that was asked for at `asked` (monotonic
    /// nanoseconds).
    pub fn now(microvm: &Id, asked: u64, happened: Happened) -> Self {
        let elapsed = Duration::from_nanos(monotonic().saturating_sub(asked));
        Self {
            time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            microvm: microvm.clone(),
            elapsed_ms: (elapsed.as_secs_f64() * 1e6).round() / 1e3,
            happened,
        }
    }
}
/// Says that memory was short, where that may be why a job did not end well. A job that ended well in
/// spite of it needs no word.
pub fn out_of_memory(status: &JobStatus, kills: u64) -> Option<String> {
    let processes = if kills == 1 { "a process" } else { "processes" };
    let count = if kills == 1 { String::new() } else { format!("{kills} ") };
    (kills > 0 && *status != JobStatus::Code(0))
        .then(|| format!("the guest ran out of memory: its kernel killed {count}{processes}"))
}
