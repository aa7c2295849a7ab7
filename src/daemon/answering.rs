//! Answers to what the local API asks. The loop answers what changes something, and what it knows by
//! itself; what has to be read from the ledger is read by a task.

use std::time::Duration;

use super::decide::JobKey;
use super::error::DaemonError;
use super::running::Daemon;
use super::stopping::person;
use super::views::{job_view, judged_view, no_job};
use crate::api::types::{
    DrainReport, JobFilter, JobId, JobState, JobView, Problem, ProblemKind, Submission,
};
use crate::api::{Answer, Call, Log};
use crate::failure::chain;
use crate::ledger::{self, Bytes, Command, Filter};

/// How a call came out: what is answered, or the end of the daemon.
pub(super) type Answered<T> = Result<Result<T, Problem>, DaemonError>;

impl Daemon {
    /// Answers a call. [`Call::Reload`] is the caller's, who reads the settings.
    pub(super) fn answer(&mut self, call: Call) -> Result<(), DaemonError> {
        match call {
            Call::Submit { submission, answer } => give(answer, self.submit(submission)?),
            Call::Cancel { job, user, answer } => give(answer, self.cancel(job, user)?),
            Call::Drain { wish, user, answer } => {
                if wish.end_jobs {
                    let most = wish.within_ms.map_or(Duration::MAX, Duration::from_millis);
                    self.end_jobs(&format!("a drain by {}", person(user)), most)?;
                }
                give(answer, Ok(self.report_drain()));
            }
            Call::Log { job, answer } => give(answer, self.job_log(job)?),
            Call::Microvms { answer } => give(answer, Ok(self.look().sight().microvms)),
            Call::Pools { answer } => give(answer, Ok(self.look().pools())),
            Call::Status { answer } => give(answer, Ok(self.look().status())),
            Call::Ready { answer } => give(answer, Ok(self.look().readiness())),
            Call::Jobs { filter, answer } => self.list(filter, answer),
            Call::Job { job, answer } => {
                let github = self.settings.github.clone();
                self.views.answer(answer, &mut self.tasks, move |reader| {
                    let found = reader.job(ledger::JobId(job))?;
                    let view = found.map(|found| judged_view(&found, github.as_ref(), reader));
                    Ok(view.transpose()?.ok_or_else(|| no_job(job)))
                });
            }
            Call::Explain { job, answer } => {
                let sight = self.look().sight();
                let explain = move |reader: &_| sight.explain(job, reader);
                self.views.answer(answer, &mut self.tasks, explain);
            }
            Call::Overview { answer } => {
                let sight = self.look().sight();
                let overview = move |reader: &_| Ok(Ok(Box::new(sight.overview(reader)?)));
                self.views.answer(answer, &mut self.tasks, overview);
            }
            Call::Reload { answer } => {
                give(answer, Err(Problem::new(ProblemKind::Internal, "nobody reads the settings")));
            }
        }
        Ok(())
    }

    fn list(&mut self, filter: JobFilter, answer: Answer<Vec<JobView>>) {
        let github = self.settings.github.clone();
        self.views.answer(answer, &mut self.tasks, move |reader| {
            let state = filter.state.map(ledger_state);
            let wanted = Filter { state, pool: filter.pool.clone(), source: None };
            let jobs = reader.jobs(&wanted, filter.limit())?;
            let view = |job| judged_view(job, github.as_ref(), reader);
            Ok(Ok(jobs.iter().map(view).collect::<Result<_, _>>()?))
        });
    }

    fn report_drain(&mut self) -> DrainReport {
        let drain = self.drain();
        DrainReport {
            running: count(self.fleet.running()),
            queued: count(self.backlog.queued()),
            until: self.clock.wall(drain.until),
        }
    }

    fn submit(&mut self, submission: Submission) -> Answered<JobView> {
        if self.is_draining() {
            let problem =
                Problem::new(ProblemKind::Conflict, "the daemon drains: it takes no new jobs");
            return Ok(Err(problem));
        }
        let Some(pool) = self.pools.named(&submission.pool) else {
            let known: Vec<_> = self.pools.iter().map(|(_, pool)| pool.name.as_str()).collect();
            let problem = format!("there is no pool {:?}", submission.pool);
            let problem = Problem::new(ProblemKind::NotFound, problem);
            return Ok(Err(problem.hint(format!("the pools are {}", known.join(", ")))));
        };
        let name = submission.pool.clone();
        let command = command(submission);
        let (backlog, mut desk) = self.desk();
        let id = backlog.submit(pool, &name, &command, &mut desk)?;
        self.views.change();
        self.view(id.0)
    }

    /// A job as it is now.
    pub(super) fn view(&self, id: JobId) -> Answered<JobView> {
        let github = self.settings.github.as_ref();
        Ok(self.job(id)?.map(|job| job_view(&job, github)))
    }

    pub(super) fn job(&self, id: JobId) -> Answered<ledger::Job> {
        Ok(self.known(JobKey(id))?.ok_or_else(|| no_job(id)))
    }

    fn job_log(&self, id: JobId) -> Answered<Log> {
        Ok(self.job(id)?.map(|job| {
            let path = self.current_log(JobKey(id), job.microvm.as_deref());
            Log { path, growing: !job.state.is_over() && job.source == ledger::Source::Local }
        }))
    }
}

/// What a submitted job runs.
fn command(submission: Submission) -> Command {
    Command {
        arguments: submission.command.iter().map(Bytes::from).collect(),
        environment: submission
            .environment
            .iter()
            .map(|(name, value)| (Bytes::from(name), Bytes::from(value)))
            .collect(),
        directory: submission.working_directory.as_ref().map(Bytes::from),
        user: submission.user,
        timeout: submission.timeout_ms.map(Duration::from_millis),
    }
}

/// Gives an answer. Whoever asked may have hung up.
pub(super) fn give<T>(answer: Answer<T>, answered: Result<T, Problem>) {
    let _ = answer.send(answered);
}

/// What the API tells of an error that ended nothing.
pub(super) fn problem(error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem::new(ProblemKind::BadSettings, chain(error))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn ledger_state(state: JobState) -> ledger::JobState {
    match state {
        JobState::Queued => ledger::JobState::Queued,
        JobState::Claimed => ledger::JobState::Claimed,
        JobState::Running => ledger::JobState::Running,
        JobState::Finished => ledger::JobState::Finished,
        JobState::Failed => ledger::JobState::Failed,
        JobState::Cancelled => ledger::JobState::Cancelled,
    }
}
