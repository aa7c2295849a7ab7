//! What the end of a runner means for its registration, its job and the next runner of its pool. Pure.
//!
//! The microVM is gone in any case: a runner is never started again in it, whatever status the
//! listener ends with, as `run.sh` would for some. Demand that it did not serve is still there, and
//! gets a microVM and a registration of its own.

use mayfly_protocol::message::JobStatus;

use super::backlog::TAKEN_BACK;
use super::fleet::{Microvm, Verdict, verdict};
use crate::shepherd::event::Outcome;
use crate::shepherd::runner::{Conclusion, Heard, JobResult, Meaning};

/// What became of a runner's job, where the forge has not told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JobEnd {
    /// There was none.
    None,
    /// The runner said so.
    Said(JobResult),
    /// It was told to end, and did not say how it did.
    Interrupted,
    /// It is lost: why.
    Lost(String),
}

/// What follows from a runner's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Consequence {
    /// Whether the forge removed the registration with the job. If not, it is to be deleted.
    pub(super) is_spent: bool,
    /// What became of the job.
    pub(super) job: JobEnd,
    /// Why the pool's next registration has to wait, each time longer, where it has: what may be an
    /// outage costs few of them.
    pub(super) back_off: Option<String>,
}

/// What the end of a microVM with a runner means.
pub(super) fn consequence(microvm: &Microvm, outcome: &Outcome) -> Option<Consequence> {
    let runner = microvm.runner()?;
    let heard = Heard {
        running: runner.job.is_some(),
        completed: runner.result,
        interrupted: microvm.was_interrupted(),
    };
    let unexpected = microvm.was_unexpected().then(|| microvm.ended_for().unwrap_or_default());
    Some(of(outcome, heard, unexpected))
}

/// The same from what counts of it: `unexpected` is why it ended otherwise than it should, if that is
/// known.
fn of(outcome: &Outcome, heard: Heard, unexpected: Option<&str>) -> Consequence {
    let status = match outcome {
        Outcome::Job { status: JobStatus::Code(code), .. } => *code,
        Outcome::Job { status: JobStatus::Signal(number), .. } => 128_u8.saturating_add(*number),
        Outcome::Job { status: JobStatus::NotStarted(_), .. } | Outcome::Failed(_) => {
            return without_status(outcome, heard, unexpected);
        }
    };
    let conclusion = Conclusion::of(status, heard);
    let job = match conclusion {
        Conclusion::Completed(JobResult::Abandoned) => {
            JobEnd::Lost(format!("{TAKEN_BACK} while it ran"))
        }
        Conclusion::Completed(result) => JobEnd::Said(result),
        Conclusion::TakenBack => {
            JobEnd::Lost(format!("{TAKEN_BACK} before its first step, or its runner died"))
        }
        Conclusion::Lost(meaning) => JobEnd::Lost(meaning.to_string()),
        Conclusion::Interrupted => JobEnd::Interrupted,
        Conclusion::Idle | Conclusion::Refused(_) => JobEnd::None,
    };
    // Also one without a job that ended well: made again at once, it would do the same for ever.
    let idle = conclusion == Conclusion::Idle && unexpected.is_some();
    let why = unexpected.filter(|why| !why.is_empty());
    let back_off = (conclusion.backs_off() || idle)
        .then(|| why.map_or_else(|| conclusion.to_string(), str::to_owned));
    let regular = Meaning::of(status).is_regular() || heard.interrupted;
    let is_spent = matches!(job, JobEnd::Said(_)) && regular;
    Consequence { is_spent, job, back_off }
}

/// The same where the runner never ran, or its microVM ended before it.
fn without_status(outcome: &Outcome, heard: Heard, unexpected: Option<&str>) -> Consequence {
    let why = match verdict(outcome, false) {
        Verdict::Failed { cause, .. } | Verdict::Again { cause } => cause,
        Verdict::Finished { result, .. } => result,
    };
    let job = match heard.completed {
        Some(result) => JobEnd::Said(result),
        None if heard.running && heard.interrupted => JobEnd::Interrupted,
        None if heard.running => JobEnd::Lost("its microVM ended before it".to_owned()),
        None => JobEnd::None,
    };
    let back_off = (unexpected.is_some() && !heard.running).then(|| match unexpected {
        Some(known) if !known.is_empty() => known.to_owned(),
        _ => why,
    });
    Consequence { is_spent: false, job, back_off }
}

#[cfg(test)]
#[path = "concluding_tests.rs"]
mod tests;
