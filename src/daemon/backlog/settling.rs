//! What the end of a microVM means for the local job that it had.

use super::{Backlog, Desk};
use crate::daemon::decide::JobKey;
use crate::daemon::error::DaemonError;
use crate::daemon::fleet::{Verdict, verdict};
use crate::failure::Code;
use crate::ledger::{JobId, JobResult, JobState, Ledger};
use crate::shepherd::event::Outcome;

/// How often a job is given to another microVM after one failed before it began.
const TRIES: u32 = 3;

impl Backlog {
    /// A local job began. One that was taken back tells it again.
    pub(in crate::daemon) fn started(job: JobKey, ledger: &mut Ledger) -> Result<(), DaemonError> {
        if let Some(job) = ledger.reader().job(JobId(job.0))?
            && job.state == JobState::Claimed
        {
            ledger.start(job.id)?;
        }
        Ok(())
    }

    /// The microVM of a local job is gone: the job is over, or waits again. `ended_for` is why the
    /// daemon ended that microVM, where it did.
    pub(in crate::daemon) fn settle(
        &mut self,
        key: JobKey,
        outcome: &Outcome,
        ended_for: Option<&str>,
        desk: &mut Desk<'_>,
    ) -> Result<(), DaemonError> {
        let Some(job) = desk.known(key)? else { return Ok(()) };
        if job.state.is_over() {
            return Ok(());
        }
        let started = job.state == JobState::Running;
        match (verdict(outcome, started), ended_for) {
            (Verdict::Finished { exit_code, result }, _) => {
                if !started {
                    desk.ledger.start(job.id)?;
                }
                tracing::info!(result, "the job ended");
                desk.ledger.finish(job.id, &finished(exit_code, outcome))?;
            }
            // A job is ended with its microVM when it is cancelled, and is over then, or when it
            // took too long.
            (_, Some(why)) => desk.ledger.fail(job.id, why, Some(Code::TimedOut as u8))?,
            (Verdict::Again { cause }, None) if job.requeued < TRIES => {
                tracing::warn!("the job waits again: {cause}");
                desk.ledger.requeue(job.id, &cause)?;
                let pool = job.pool.as_deref().and_then(|pool| desk.pools.named(pool));
                if let Some(pool) = pool {
                    self.enqueue(key, pool, desk.clock.now());
                } else {
                    let code = Some(Code::BadConfiguration as u8);
                    desk.ledger.fail(job.id, super::NO_POOL, code)?;
                }
            }
            (Verdict::Again { cause }, None) => {
                tracing::warn!("the job failed for the last time: {cause}");
                desk.ledger.fail(job.id, &cause, Some(Code::MachineFailed as u8))?;
            }
            (Verdict::Failed { exit_code, cause }, None) => {
                tracing::warn!("the job failed: {cause}");
                desk.ledger.fail(job.id, &cause, Some(exit_code))?;
            }
        }
        Ok(())
    }
}

fn finished(exit_code: u8, outcome: &Outcome) -> JobResult {
    use mayfly_protocol::message::JobStatus;
    match outcome {
        Outcome::Job { status: JobStatus::Signal(number), .. } => {
            JobResult::Signalled(i32::from(*number))
        }
        _ => JobResult::Exited(i32::from(exit_code)),
    }
}
