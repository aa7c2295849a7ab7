//! Ends of jobs that somebody wants: by name, or all of them. A runner is told first, ends its job and
//! tells the forge; its microVM ends after that, or after its farewell.

use std::time::Duration;

use super::answering::Answered;
use super::decide::{JobKey, MachineKey};
use super::error::DaemonError;
use super::fleet::{Microvm, Work};
use super::running::Daemon;
use crate::api::types::{JobId, JobView, Problem, ProblemKind};
use crate::ledger::{self, Source};
use crate::shepherd::plan::Id;

/// How long runners may take to end their jobs where the host shuts down: it does not wait for long.
const SHUTDOWN: Duration = Duration::from_secs(20);
/// From the end of a farewell until a microVM is gone, and what it had is recorded.
const GONE: Duration = Duration::from_secs(20);

/// Who asks for something, for people.
pub(super) fn person(user: Option<u32>) -> String {
    user.map_or_else(|| "somebody".to_owned(), |user| format!("the user {user}"))
}

impl Daemon {
    pub(super) fn cancel(&mut self, id: JobId, user: Option<u32>) -> Answered<JobView> {
        let job = match self.job(id)? {
            Ok(job) => job,
            Err(problem) => return Ok(Err(problem)),
        };
        if job.state.is_over() {
            let problem = format!("job {id} is over: {}", job.state);
            return Ok(Err(Problem::new(ProblemKind::Conflict, problem)));
        }
        let why = format!("cancelled by {}", person(user));
        let key = match job.source {
            Source::Local => {
                self.backlog.cancel(JobKey(id), &why, &mut self.ledger)?;
                self.fleet.with_job(JobKey(id)).map(Microvm::key)
            }
            Source::Github => match self.runner_of(&job) {
                None => {
                    let problem = Problem::new(ProblemKind::Conflict, "this job is GitHub's");
                    return Ok(Err(problem.hint("it has no microVM here: cancel its run there")));
                }
                key => key,
            },
        };
        self.views.change();
        if let Some(key) = key {
            let _about = self.about(Some(key));
            tracing::info!("the job is {why}");
            self.fleet.end(key, &why, self.clock.now());
        }
        self.view(id)
    }

    /// The microVM whose runner has that job of the forge's.
    fn runner_of(&self, job: &ledger::Job) -> Option<MachineKey> {
        let id = job.microvm.as_deref()?;
        let has = |microvm: &&Microvm| microvm.id().map(Id::as_str) == Some(id);
        self.fleet.iter().find(has).map(Microvm::key)
    }

    /// The host shuts down: jobs are ended, and the daemon with them.
    pub(super) fn shut_down(&mut self) -> Result<(), DaemonError> {
        self.end_jobs("the host shuts down", SHUTDOWN)
    }

    /// Drains, and ends the jobs that run: each has `most`, or its pool's farewell if that is shorter.
    pub(super) fn end_jobs(&mut self, why: &str, most: Duration) -> Result<(), DaemonError> {
        self.drain();
        let now = self.now();
        tracing::info!("jobs are ended: {why}");
        let works = self.fleet.iter().map(|microvm| (microvm.key(), microvm.work().clone()));
        let mut longest = Duration::ZERO;
        for (key, work) in works.collect::<Vec<_>>() {
            let _about = self.about(Some(key));
            match work {
                // Those without work end with the drain.
                Work::None => continue,
                Work::Local(job) => self.backlog.cancel(job, why, &mut self.ledger)?,
                Work::Runner(runner) => {
                    if runner.job.is_none() {
                        self.registry.remove(&runner.name, runner.id, &self.ledger, now)?;
                    }
                    longest = longest.max(self.fleet.farewell(key).min(most));
                }
            }
            self.fleet.end_within(key, why, most, now);
        }
        self.end_by(now + longest + GONE);
        Ok(())
    }
}
