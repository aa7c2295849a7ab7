//! The settlement of a local job after its microVM ended.

use super::{Backlog, BacklogContext};
use crate::decide::JobKey;
use crate::error::DaemonError;
use crate::fleet::{JobVerdict, job_verdict};
use mayfly_failure::Code;
use mayfly_ledger::{JobId, JobResult, JobState, Ledger};
use mayfly_shepherd::event::JobOutcome;

/// How often a job is assigned to another microVM after one failed before the job started.
const MAX_REQUEUES: u32 = 3;

impl Backlog {
    /// Records that a local job started. An adopted microVM reports it again.
    pub(crate) fn record_start(job: JobKey, ledger: &mut Ledger) -> Result<(), DaemonError> {
        if let Some(job) = ledger.reader().job(JobId(job.0))?
            && job.state == JobState::Claimed
        {
            ledger.start(job.id)?;
        }
        Ok(())
    }

    /// Settles a local job after its microVM ended: the job has ended, or is requeued. `end_reason`
    /// is why the daemon ended the microVM, if it did.
    pub(crate) fn settle(
        &mut self,
        key: JobKey,
        outcome: &JobOutcome,
        end_reason: Option<&str>,
        context: &mut BacklogContext<'_>,
    ) -> Result<(), DaemonError> {
        let Some(job) = context.job(key)? else { return Ok(()) };
        if job.state.is_over() {
            return Ok(());
        }
        let started = job.state == JobState::Running;
        let program = job.command.as_ref().and_then(|command| command.arguments.first());
        let program =
            program.map_or_else(Default::default, |name| String::from_utf8_lossy(&name.0));
        match (job_verdict(outcome, started, &program), end_reason) {
            (JobVerdict::Finished { exit_code, result }, _) => {
                if !started {
                    context.ledger.start(job.id)?;
                }
                tracing::info!(result, "the job ended");
                context.ledger.finish(job.id, &finished(exit_code, outcome))?;
            }
            // The daemon ends a job's microVM if the job is canceled, which has ended it, or if the
            // job took too long.
            (_, Some(why)) => context.ledger.fail(job.id, why, Some(Code::TimedOut as u8))?,
            (JobVerdict::Retry { cause }, None) if job.requeued < MAX_REQUEUES => {
                tracing::warn!("requeuing the job: {cause}");
                context.ledger.requeue(job.id, &cause)?;
                let pool = job.pool.as_deref().and_then(|pool| context.pools.find(pool));
                if let Some(pool) = pool {
                    self.enqueue(key, pool, context.clock.now());
                } else {
                    let code = Some(Code::BadConfiguration as u8);
                    context.ledger.fail(job.id, super::NO_POOL, code)?;
                }
            }
            (JobVerdict::Retry { cause }, None) => {
                tracing::warn!("the job failed on its last try: {cause}");
                context.ledger.fail(job.id, &cause, Some(Code::MachineFailed as u8))?;
            }
            (JobVerdict::Failed { exit_code, cause }, None) => {
                tracing::warn!("the job failed: {cause}");
                context.ledger.fail(job.id, &cause, Some(exit_code))?;
            }
        }
        Ok(())
    }
}

fn finished(exit_code: u8, outcome: &JobOutcome) -> JobResult {
    use mayfly_protocol::message::JobExit;
    match outcome {
        JobOutcome::Job { status: JobExit::Signal(number), .. } => {
            JobResult::Signaled(i32::from(*number))
        }
        _ => JobResult::Exited(i32::from(exit_code)),
    }
}
