//! Answers to what the local API asks. Each at once: nothing here waits.

use std::time::Duration;

use super::decide::{JobKey, Stage};
use super::error::DaemonError;
use super::explaining::blocker_view;
use super::microvm::Work;
use super::world::{Queued, World};
use crate::api::types::{
    DrainReport, JobFilter, JobId, JobState, JobView, MicrovmView, PoolView, Problem, ProblemKind,
    Status, Submission,
};
use crate::api::{Answer, Call, Log};
use crate::failure::{Code, chain};
use crate::ledger::{self, Bytes, Command, Filter};
use crate::shepherd::plan::Order;

/// How a call came out: what is answered, or the end of the daemon.
type Answered<T> = Result<Result<T, Problem>, DaemonError>;

impl World {
    /// Answers a call. [`Call::Reload`] is the caller's, who reads the settings.
    pub(super) fn answer(&mut self, call: Call) -> Result<(), DaemonError> {
        match call {
            Call::Submit { submission, answer } => {
                let answered = self.submit(submission)?;
                give(answer, answered);
            }
            Call::Jobs { filter, answer } => give(answer, Ok(self.jobs(&filter)?)),
            Call::Job { job, answer } => {
                give(answer, self.job(job)?.map(|job| self.job_view(&job)));
            }
            Call::Log { job, answer } => give(answer, self.job_log(job)?),
            Call::Explain { job, answer } => give(answer, self.explain(job)?),
            Call::Microvms { answer } => give(answer, Ok(self.microvm_views())),
            Call::Pools { answer } => give(answer, Ok(self.pool_views())),
            Call::Cancel { job, answer } => {
                let answered = self.cancel(job)?;
                give(answer, answered);
            }
            Call::Drain { answer } => {
                let drain = self.drain();
                give(
                    answer,
                    Ok(DrainReport {
                        running: count(self.running()),
                        queued: count(self.queue.len()),
                        until: self.clock.wall(drain.until),
                    }),
                );
            }
            Call::Status { answer } => give(answer, Ok(self.status())),
            Call::Overview { answer } => give(answer, Ok(Box::new(self.overview()?))),
            Call::Ready { answer } => give(answer, Ok(self.readiness())),
            Call::Reload { answer } => {
                give(answer, Err(Problem::new(ProblemKind::Internal, "nobody reads the settings")));
            }
        }
        Ok(())
    }

    fn submit(&mut self, submission: Submission) -> Answered<JobView> {
        if self.draining.is_some() {
            let problem =
                Problem::new(ProblemKind::Conflict, "the daemon drains: it takes no new jobs");
            return Ok(Err(problem));
        }
        let Some(pool) = self.pool_named(&submission.pool) else {
            let known: Vec<_> = self.pools.iter().map(|pool| pool.settings.name.as_str()).collect();
            let problem = format!("there is no pool {:?}", submission.pool);
            let problem = Problem::new(ProblemKind::NotFound, problem);
            return Ok(Err(problem.hint(format!("the pools are {}", known.join(", ")))));
        };
        let command = Command {
            arguments: submission.command.iter().map(Bytes::from).collect(),
            environment: submission
                .environment
                .iter()
                .map(|(name, value)| (Bytes::from(name), Bytes::from(value)))
                .collect(),
            directory: submission.working_directory.as_ref().map(Bytes::from),
            user: submission.user,
            timeout: submission.timeout_ms.map(Duration::from_millis),
        };
        let id = self.ledger.submit_local(&submission.pool, &command)?;
        let Some(job) = self.ledger.reader().job(id)? else {
            return Ok(Err(Problem::new(ProblemKind::Internal, "the job is not in the ledger")));
        };
        let since = self.now();
        self.enqueue(Queued { job: JobKey(job.id.0), pool, since });
        self.changed = true;
        Ok(Ok(self.job_view(&job)))
    }

    fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, DaemonError> {
        let wanted = Filter {
            state: filter.state.map(ledger_state),
            pool: filter.pool.clone(),
            source: None,
        };
        let jobs = self.ledger.reader().jobs(&wanted, filter.limit())?;
        Ok(jobs.iter().map(|job| self.job_view(job)).collect())
    }

    pub(super) fn job(&self, job: JobId) -> Answered<ledger::Job> {
        let found = self.ledger.reader().job(ledger::JobId(job))?;
        Ok(found.ok_or_else(|| no_job(job)))
    }

    fn job_log(&self, id: JobId) -> Answered<Log> {
        Ok(self.job(id)?.map(|job| {
            let path = self.current_log(JobKey(id));
            Log { path, growing: !job.state.is_over() && job.source == ledger::Source::Local }
        }))
    }

    fn cancel(&mut self, id: JobId) -> Answered<JobView> {
        let job = match self.job(id)? {
            Ok(job) => job,
            Err(problem) => return Ok(Err(problem)),
        };
        if job.source == ledger::Source::Github {
            let problem = Problem::new(ProblemKind::Conflict, "this job is GitHub's");
            return Ok(Err(problem.hint("cancel its run there; the microVM ends with it")));
        }
        if job.state.is_over() {
            let problem = format!("job {id} is over: {}", job.state);
            return Ok(Err(Problem::new(ProblemKind::Conflict, problem)));
        }
        let code = Some(Code::Interrupted as u8);
        self.ledger.cancel(job.id, "cancelled by a person", code)?;
        self.changed = true;
        self.queue.retain(|queued| queued.job != JobKey(id));
        let key = self.with_job(JobKey(id)).map(|microvm| microvm.key);
        if let Some(key) = key {
            let now = self.now();
            if let Some(microvm) = self.microvm(key) {
                microvm.ended_for = Some("its job was cancelled".to_owned());
                microvm.enter(Stage::Ending, now);
            }
            self.order(key, Order::End);
        }
        Ok(self.job(id)?.map(|job| self.job_view(&job)))
    }

    pub(super) fn microvm_views(&self) -> Vec<MicrovmView> {
        let view = |held: &super::world::Held| {
            let microvm = &held.microvm;
            let (runner, job) = match &microvm.work {
                Work::None => (None, None),
                Work::Local(job) => (None, Some(job.0)),
                Work::Runner(runner) => (Some(runner.name.clone()), None),
            };
            MicrovmView {
                id: microvm.id.as_ref().map_or_else(|| "(planned)".to_owned(), ToString::to_string),
                pool: microvm.pool_name.clone(),
                stage: stage(microvm.stage).to_owned(),
                since: self.clock.wall(microvm.since),
                runner,
                job,
            }
        };
        self.microvms.values().map(view).collect()
    }

    pub(super) fn pool_views(&self) -> Vec<PoolView> {
        let waiting = self.waiting();
        let view = |(index, pool): (usize, &super::pools::Pool)| {
            let stages = |wanted: &[Stage]| {
                let its = self.microvms.values().filter(|held| held.microvm.pool == Some(index));
                count(its.filter(|held| wanted.contains(&held.microvm.stage)).count())
            };
            let waits =
                waiting.iter().filter(|one| one.pool() == index).map(super::decide::Waiting::count);
            PoolView {
                name: pool.settings.name.to_string(),
                labels: pool.settings.labels.clone(),
                image: pool.settings.image.to_string(),
                trigger: pool.settings.trigger.to_string(),
                min_idle: pool.settings.min_idle,
                max: pool.settings.max,
                booting: stages(&[Stage::Booting]),
                warm: stages(&[Stage::Warm]),
                registered: stages(&[Stage::Registering, Stage::Registered]),
                busy: stages(&[Stage::Assigned, Stage::Busy]),
                ending: stages(&[Stage::Ending]),
                waiting: waits.sum(),
                blocker: self
                    .blockers
                    .get(index)
                    .cloned()
                    .flatten()
                    .or_else(|| pool.obstacle())
                    .map(|obstacle| blocker_view(&obstacle, self.clock)),
            }
        };
        self.pools.iter().enumerate().map(view).collect()
    }

    pub(super) fn status(&self) -> Status {
        let waiting: u32 = self.waiting().iter().map(super::decide::Waiting::count).sum();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started: self.clock.started(),
            draining: self.draining.is_some(),
            settings: self.settings.file.as_ref().map(|file| file.display().to_string()),
            github: self.settings.github.as_ref().map(crate::config::GitHub::url),
            waiting,
            running: count(self.running()),
            microvms: count(self.microvms.len()),
        }
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

fn no_job(job: JobId) -> Problem {
    Problem::new(ProblemKind::NotFound, format!("there is no job {job}"))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(super) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Booting => "booting",
        Stage::Warm => "warm",
        Stage::Assigned => "assigned",
        Stage::Registering => "registering",
        Stage::Registered => "registered",
        Stage::Busy => "busy",
        Stage::Ending => "ending",
    }
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
