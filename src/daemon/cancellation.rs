//! The cancellation of one job or of all. A runner is interrupted first, ends its job and reports
//! that to the forge; its microVM ends then, or after its farewell time.

use std::time::Duration;

use super::decide::{JobKey, MicrovmKey};
use super::error::DaemonError;
use super::event_loop::Daemon;
use super::fleet::{Assignment, Microvm};
use super::requests::CallResult;
use mayfly_api::types::{ApiError, ApiErrorKind, JobId, JobView};
use mayfly_ledger::JobSource;
use mayfly_shepherd::plan::MicrovmId;

/// How long runners may take to end their jobs when the host shuts down, which does not wait for
/// long.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(20);
/// From the end of a farewell until the microVM is gone and its results are recorded.
const SETTLEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// Returns a readable name of the user who made a request.
pub(super) fn requester(user: Option<u32>) -> String {
    user.map_or_else(|| "an unknown user".to_owned(), |user| format!("user {user}"))
}

impl Daemon {
    pub(super) fn cancel(&mut self, id: JobId, user: Option<u32>) -> CallResult<JobView> {
        let job = match self.job(id)? {
            Ok(job) => job,
            Err(error) => return Ok(Err(error)),
        };
        if job.state.is_over() {
            let error = format!("job {id} has already ended: {}", job.state);
            return Ok(Err(ApiError::new(ApiErrorKind::Conflict, error)));
        }
        let why = format!("canceled by {}", requester(user));
        let key = match job.source {
            JobSource::Local => {
                self.backlog.cancel(JobKey(id), &why, &mut self.ledger)?;
                self.fleet.with_job(JobKey(id)).map(Microvm::key)
            }
            JobSource::Github => match self.microvm_of(&job) {
                None => {
                    let error = ApiError::new(
                        ApiErrorKind::Conflict,
                        format!("GitHub's job {id} has no microVM here"),
                    );
                    return Ok(Err(error.hint("cancel its workflow run at GitHub")));
                }
                key => key,
            },
        };
        self.views.mark_changed();
        if let Some(key) = key {
            let _span = self.log_span(Some(key));
            tracing::info!("ending the job: {why}");
            self.fleet.end(key, &why, self.clock.now());
        }
        self.job_view(id)
    }

    /// Returns the microVM of a job, while it is in the fleet.
    pub(super) fn microvm_of(&self, job: &mayfly_ledger::JobRecord) -> Option<MicrovmKey> {
        let id = job.microvm.as_deref()?;
        let has = |microvm: &&Microvm| microvm.id().map(MicrovmId::as_str) == Some(id);
        self.fleet.iter().find(has).map(Microvm::key)
    }

    /// Ends all jobs and then the daemon, because the host shuts down.
    pub(super) fn shut_down(&mut self) -> Result<(), DaemonError> {
        self.end_jobs("the host is shutting down", SHUTDOWN_GRACE)
    }

    /// Drains, and ends running jobs. Each may take `most`, or its pool's farewell time if that is
    /// shorter.
    pub(super) fn end_jobs(&mut self, why: &str, most: Duration) -> Result<(), DaemonError> {
        self.start_drain();
        let now = self.now();
        tracing::info!("ending all jobs: {why}");
        let assignments =
            self.fleet.iter().map(|microvm| (microvm.key(), microvm.assignment().clone()));
        let mut longest = Duration::ZERO;
        for (key, assignment) in assignments.collect::<Vec<_>>() {
            let _span = self.log_span(Some(key));
            match assignment {
                // MicroVMs without a job end with the drain.
                Assignment::None => continue,
                Assignment::Local(job) => self.backlog.cancel(job, why, &mut self.ledger)?,
                Assignment::Runner(runner) => {
                    if runner.job.is_none() {
                        self.registry.remove(&runner.name, runner.id, &self.ledger, now)?;
                    }
                    longest = longest.max(self.fleet.farewell(key).min(most));
                }
            }
            self.fleet.end_within(key, why, most, now);
        }
        self.limit_drain(now + longest + SETTLEMENT_TIMEOUT);
        Ok(())
    }
}
