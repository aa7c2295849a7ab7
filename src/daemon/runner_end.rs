//! The effects of a runner's end on its registration, its job and the next runner of its pool.
//! Pure.
//!
//! The microVM is gone in any case: a runner is never restarted in it, whatever exit status the
//! listener has, unlike `run.sh` for some. Demand that it did not serve still exists, and gets a
//! new microVM and registration.

use mayfly_protocol::message::JobExit;

use super::backlog::TAKEN_BACK;
use super::fleet::{JobVerdict, Microvm, job_verdict};
use mayfly_shepherd::event::JobOutcome;
use mayfly_shepherd::runner::{
    PROGRAM, RunnerExit, RunnerObservations, RunnerOutcome, RunnerResult,
};

/// The result of a runner's job, as far as the forge has not reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RunnerJobEnd {
    /// It had no job.
    None,
    /// The result that the runner reported.
    Reported(RunnerResult),
    /// The runner was interrupted and reported no result.
    Interrupted,
    /// The job is lost, with the reason.
    Lost(String),
}

/// The effects of a runner's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RunnerEndEffects {
    /// Whether the forge removed the registration with the job. If not, the daemon deletes it.
    pub(super) is_registration_removed: bool,
    /// The result of the job.
    pub(super) job: RunnerJobEnd,
    /// The reason for a back-off of the pool's next registration, if any. The waits grow, so an
    /// outage costs few registrations.
    pub(super) back_off: Option<String>,
}

/// Returns the effects of the end of a microVM with a runner.
pub(super) fn runner_end_effects(
    microvm: &Microvm,
    outcome: &JobOutcome,
) -> Option<RunnerEndEffects> {
    let runner = microvm.runner()?;
    let observed = RunnerObservations {
        running: runner.job.is_some(),
        completed: runner.result,
        interrupted: microvm.was_interrupted(),
    };
    let unexpected = microvm.was_unexpected().then(|| microvm.end_reason().unwrap_or_default());
    Some(effects_of(outcome, observed, unexpected))
}

/// Returns the effects of an outcome. `unexpected` is set if the runner ended otherwise than
/// intended, with the reason if known.
fn effects_of(
    outcome: &JobOutcome,
    observed: RunnerObservations,
    unexpected: Option<&str>,
) -> RunnerEndEffects {
    let status = match outcome {
        JobOutcome::Job { status: JobExit::Code(code), .. } => *code,
        JobOutcome::Job { status: JobExit::Signal(number), .. } => 128_u8.saturating_add(*number),
        JobOutcome::Job { status: JobExit::NotStarted(_), .. } | JobOutcome::Failed(_) => {
            return without_status(outcome, observed, unexpected);
        }
    };
    let conclusion = RunnerOutcome::new(status, observed);
    let job = match conclusion {
        RunnerOutcome::Completed(RunnerResult::Abandoned) => {
            RunnerJobEnd::Lost(format!("{TAKEN_BACK} while it ran"))
        }
        RunnerOutcome::Completed(result) => RunnerJobEnd::Reported(result),
        RunnerOutcome::TakenBack => {
            RunnerJobEnd::Lost(format!("{TAKEN_BACK} before its first step, or its runner died"))
        }
        RunnerOutcome::Lost(meaning) => RunnerJobEnd::Lost(meaning.to_string()),
        RunnerOutcome::Interrupted => RunnerJobEnd::Interrupted,
        RunnerOutcome::Idle | RunnerOutcome::Refused(_) => RunnerJobEnd::None,
    };
    // Also for a clean end without a job: an immediate restart could repeat without end. Not for an
    // end that the daemon wanted, whatever the status: a runner whose registration was just deleted
    // may call that an error.
    let is_failure = conclusion.needs_backoff() || conclusion == RunnerOutcome::Idle;
    let back_off = unexpected.filter(|_| is_failure).map(|why| match why {
        "" => conclusion.to_string(),
        known => known.to_owned(),
    });
    let regular = RunnerExit::from_status(status).is_regular() || observed.interrupted;
    let is_registration_removed = matches!(job, RunnerJobEnd::Reported(_)) && regular;
    RunnerEndEffects { is_registration_removed, job, back_off }
}

/// Returns the effects if the runner never ran, or its microVM ended before it.
fn without_status(
    outcome: &JobOutcome,
    observed: RunnerObservations,
    unexpected: Option<&str>,
) -> RunnerEndEffects {
    let why = match job_verdict(outcome, false, PROGRAM) {
        JobVerdict::Failed { cause, .. } | JobVerdict::Retry { cause } => cause,
        JobVerdict::Finished { result, .. } => result,
    };
    let job = match observed.completed {
        Some(result) => RunnerJobEnd::Reported(result),
        None if observed.running && observed.interrupted => RunnerJobEnd::Interrupted,
        None if observed.running => {
            RunnerJobEnd::Lost("its microVM ended before the job did".to_owned())
        }
        None => RunnerJobEnd::None,
    };
    let back_off = (unexpected.is_some() && !observed.running).then(|| match unexpected {
        Some(known) if !known.is_empty() => known.to_owned(),
        _ => why,
    });
    RunnerEndEffects { is_registration_removed: false, job, back_off }
}

#[cfg(test)]
#[path = "runner_end_tests.rs"]
mod tests;
