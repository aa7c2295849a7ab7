//! Handlers for the requests of the local API. The loop handles those that change something or need
//! only its own state; a task handles those that read the ledger.

use std::time::Duration;

use super::cancellation::requester;
use super::decide::JobKey;
use super::error::DaemonError;
use super::event_loop::Daemon;
use super::views::{job_view, job_view_with_warning, unknown_job};
use mayfly_api::types::{
    ApiError, ApiErrorKind, DrainReport, JobFilter, JobId, JobState, JobView, Submission,
};
use mayfly_api::{Call, JobLog, Responder};
use mayfly_failure::chain;
use mayfly_ledger::{CommandBytes, JobCommand, JobQuery};

/// The result of a call: the response, or an error that ends the daemon.
pub(super) type CallResult<T> = Result<Result<T, ApiError>, DaemonError>;

impl Daemon {
    /// Handles a call. The caller handles [`Call::Reload`], because it has the function that reads
    /// the settings.
    pub(super) fn handle_call(&mut self, call: Call) -> Result<(), DaemonError> {
        match call {
            Call::Submit { submission, responder } => respond(responder, self.submit(submission)?),
            Call::Cancel { job, user, responder } => respond(responder, self.cancel(job, user)?),
            Call::Drain { request, user, responder } => {
                if request.end_jobs {
                    let most = request.within_ms.map_or(Duration::MAX, Duration::from_millis);
                    self.end_jobs(&format!("drained by {}", requester(user)), most)?;
                }
                respond(responder, Ok(self.drain_and_report()));
            }
            Call::Log { job, responder } => respond(responder, self.job_log(job)?),
            Call::Microvms { responder } => respond(responder, Ok(self.view().snapshot().microvms)),
            Call::Pools { responder } => respond(responder, Ok(self.view().pools())),
            Call::Status { responder } => respond(responder, Ok(self.view().status())),
            Call::Ready { responder } => respond(responder, Ok(self.view().readiness())),
            Call::Jobs { filter, responder } => self.list(filter, responder),
            Call::Job { job, responder } => {
                let github = self.settings.github.clone();
                self.views.respond_from_ledger(responder, &mut self.tasks, move |reader| {
                    let found = reader.job(mayfly_ledger::JobId(job))?;
                    let view =
                        found.map(|found| job_view_with_warning(&found, github.as_ref(), reader));
                    Ok(view.transpose()?.ok_or_else(|| unknown_job(job)))
                });
            }
            Call::Explain { job, responder } => {
                let snapshot = self.view().snapshot();
                let explain = move |reader: &_| snapshot.explain(job, reader);
                self.views.respond_from_ledger(responder, &mut self.tasks, explain);
            }
            Call::Overview { responder } => {
                let snapshot = self.view().snapshot();
                let overview = move |reader: &_| Ok(Ok(Box::new(snapshot.overview(reader)?)));
                self.views.respond_from_ledger(responder, &mut self.tasks, overview);
            }
            Call::Reload { responder } => {
                respond(
                    responder,
                    Err(ApiError::new(
                        ApiErrorKind::Internal,
                        "the settings can't be reloaded here",
                    )),
                );
            }
        }
        Ok(())
    }

    fn list(&mut self, filter: JobFilter, responder: Responder<Vec<JobView>>) {
        let github = self.settings.github.clone();
        self.views.respond_from_ledger(responder, &mut self.tasks, move |reader| {
            let state = filter.state.map(ledger_state);
            let query = JobQuery { state, pool: filter.pool.clone(), source: None };
            let jobs = reader.jobs(&query, filter.limit())?;
            let view = |job| job_view_with_warning(job, github.as_ref(), reader);
            Ok(Ok(jobs.iter().map(view).collect::<Result<_, _>>()?))
        });
    }

    fn drain_and_report(&mut self) -> DrainReport {
        let drain = self.start_drain();
        DrainReport {
            running: count(self.fleet.running()),
            queued: count(self.backlog.queued()),
            until: self.clock.wall_time(drain.until),
        }
    }

    fn submit(&mut self, submission: Submission) -> CallResult<JobView> {
        if self.is_draining() {
            let error = ApiError::new(
                ApiErrorKind::Conflict,
                "the daemon is draining and takes no new jobs",
            );
            return Ok(Err(error));
        }
        let Some(pool) = self.pools.find(&submission.pool) else {
            let known: Vec<_> = self.pools.iter().map(|(_, pool)| pool.name.as_str()).collect();
            let error = format!("unknown pool {:?}", submission.pool);
            let error = ApiError::new(ApiErrorKind::NotFound, error);
            return Ok(Err(error.hint(format!("use one of these pools: {}", known.join(", ")))));
        };
        let name = submission.pool.clone();
        let command = command(submission);
        let (backlog, mut context) = self.backlog_and_context();
        let id = backlog.submit(pool, &name, &command, &mut context)?;
        self.views.mark_changed();
        self.job_view(id.0)
    }

    /// Returns the API's view of a job.
    pub(super) fn job_view(&self, id: JobId) -> CallResult<JobView> {
        let github = self.settings.github.as_ref();
        Ok(self.job(id)?.map(|job| job_view(&job, github)))
    }

    pub(super) fn job(&self, id: JobId) -> CallResult<mayfly_ledger::JobRecord> {
        Ok(self.find_job(JobKey(id))?.ok_or_else(|| unknown_job(id)))
    }

    fn job_log(&self, id: JobId) -> CallResult<JobLog> {
        Ok(self.job(id)?.map(|job| {
            let path = self.current_log_path(JobKey(id), job.microvm.as_deref());
            // GitHub may report a job's end before its runner has written its last lines.
            let growing = !job.state.is_over() || self.microvm_of(&job).is_some();
            JobLog { path, growing }
        }))
    }
}

/// Returns the command of a submitted job.
fn command(submission: Submission) -> JobCommand {
    JobCommand {
        arguments: submission.command.iter().map(CommandBytes::from).collect(),
        environment: submission
            .environment
            .iter()
            .map(|(name, value)| (CommandBytes::from(name), CommandBytes::from(value)))
            .collect(),
        directory: submission.working_directory.as_ref().map(CommandBytes::from),
        user: submission.user,
        timeout: submission.timeout_ms.map(Duration::from_millis),
    }
}

/// Sends a response. The client may have hung up.
pub(super) fn respond<T>(responder: Responder<T>, result: Result<T, ApiError>) {
    let _ = responder.send(result);
}

/// Returns the API error for settings that can't be used.
pub(super) fn settings_error(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::new(ApiErrorKind::BadSettings, chain(error))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn ledger_state(state: JobState) -> mayfly_ledger::JobState {
    match state {
        JobState::Queued => mayfly_ledger::JobState::Queued,
        JobState::Claimed => mayfly_ledger::JobState::Claimed,
        JobState::Running => mayfly_ledger::JobState::Running,
        JobState::Finished => mayfly_ledger::JobState::Finished,
        JobState::Failed => mayfly_ledger::JobState::Failed,
        JobState::Cancelled => mayfly_ledger::JobState::Cancelled,
    }
}
