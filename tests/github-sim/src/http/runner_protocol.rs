//! Calls of the stand-in runner in the guest. A custom protocol in plain text, so that a shell
//! script can use it.
//!
//! | call | body | response |
//! |---|---|---|
//! | `POST session` | | 200; 401 expired or unknown, 404 gone, 409 a session is open |
//! | `GET message` (long poll) | | 200 with the job, 204 none yet, 404 the registration is gone |
//! | `POST started?run=ID` | | 200; 409 another run of this job was started |
//! | `POST log?from=BYTES` | text from that offset | 200; known bytes are skipped |
//! | `POST renew` | | 200 with `cancel` or `go on` |
//! | `POST completed?result=success` | | 200, also the second time |
//! | `DELETE session` | | 200 |
//!
//! A job consists of lines with a key and a value: `job NUMBER`, `name TEXT`, and for each step
//! `step BASE64`.

use data_encoding::BASE64;

use super::{Attempt, Reply, ReplyOrWait, Request};
use crate::state::State;
use crate::state::jobs::{Conclusion, Job};
use crate::state::runners::RunnerRejection;
use crate::time::Millis;

/// The maximum size of a stored job log.
const MAX_LOG_BYTES: usize = 4 << 20;

/// GitHub's annotation of a job whose runner was interrupted.
const SHUTDOWN: &str = "The runner has received a shutdown signal. This can happen when the runner \
                        service is stopped, or a manually started runner is canceled.";

/// Handles a call below `_sim/runner`.
pub(super) fn handle(
    state: &mut State,
    request: &Request,
    parts: &[&str],
    attempt: Attempt,
    now: Millis,
) -> ReplyOrWait {
    let Some(credential) = request.token(&["bearer"]).map(str::to_owned) else {
        return rejected(RunnerRejection::Unauthorized).into();
    };
    match (request.method.as_str(), parts) {
        ("POST", ["session"]) => match state.connect(&credential, now) {
            Ok(_) => return Reply::text(200, "connected\n").into(),
            Err(why) => return rejected(why).into(),
        },
        ("DELETE", ["session"]) => match state.disconnect(&credential, now) {
            Ok(()) => return Reply::text(200, "bye\n").into(),
            Err(why) => return rejected(why).into(),
        },
        // The response to its first report was lost.
        ("POST", ["completed"]) if state.has_completed(&credential) => {
            return Reply::text(200, "noted before\n").into();
        }
        _ => {}
    }
    let runner = match state.record_contact(&credential, now) {
        Ok(runner) => runner,
        Err(why) => return rejected(why).into(),
    };
    state.assign_jobs(now);
    let Some(id) = state.runners.get(&runner).and_then(|runner| runner.job) else {
        return match parts {
            ["message"] if !attempt.is_final => ReplyOrWait::Wait,
            _ => Reply::empty(204).into(),
        };
    };
    let Some(job) = state.jobs.get_mut(&id) else { return Reply::not_found().into() };
    match (request.method.as_str(), parts) {
        ("GET", ["message"]) => Reply::text(200, job_message(job)).into(),
        ("POST", ["started"]) => started(job, &request.parameter("run").unwrap_or_default()).into(),
        ("POST", ["log"]) => {
            // If a response was lost, the runner resends the bytes, followed by new ones.
            let from = request.parameter("from").and_then(|from| from.parse().ok());
            let known = job.logged.saturating_sub(from.unwrap_or(job.logged));
            let known = known.min(request.body.len());
            let new = &request.body[known..];
            job.logged += new.len();
            if job.log.len() < MAX_LOG_BYTES {
                job.log.push_str(&String::from_utf8_lossy(new));
            }
            Reply::text(200, "kept\n").into()
        }
        ("POST", ["renew"]) => {
            Reply::text(200, if job.cancel_requested { "cancel" } else { "go on" }).into()
        }
        ("POST", ["completed"]) => {
            let conclusion = match request.parameter("result").as_deref() {
                Some("success") => Conclusion::Success,
                Some("cancelled") => Conclusion::Cancelled,
                _ => Conclusion::Failure,
            };
            let note = request.parameter("note").map(|_| SHUTDOWN);
            job.reported = true;
            state.complete(id, conclusion, note, now);
            Reply::text(200, "noted\n").into()
        }
        _ => Reply::not_found().into(),
    }
}

fn rejected(why: RunnerRejection) -> Reply {
    match why {
        RunnerRejection::Unauthorized => Reply::text(401, "the configuration has expired\n"),
        RunnerRejection::Gone => Reply::text(404, "the registration is gone\n"),
        RunnerRejection::Conflict => Reply::text(409, "a session already exists\n"),
    }
}

/// Returns a job in the runner's format.
fn job_message(job: &Job) -> String {
    let steps = job.steps.iter().map(|step| format!("step {}\n", BASE64.encode(step.as_bytes())));
    format!("job {}\nname {}\n{}", job.id, job.name, steps.collect::<String>())
}

/// Records a run once, however often it is reported.
fn started(job: &mut Job, run: &str) -> Reply {
    if job.started_runs.iter().any(|known| known == run) {
        return Reply::text(200, "known\n");
    }
    job.started_runs.push(run.to_owned());
    if job.started_runs.len() > 1 {
        return Reply::text(409, "the job was started before\n");
    }
    Reply::text(200, "go\n")
}
