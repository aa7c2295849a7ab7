//! What is said of GitHub's jobs: to whom it counts as waiting, and what the ledger keeps of it.

use super::demand::{GithubJob, Heard};
use super::error::DaemonError;
use super::happening::{Delivery, Hint};
use super::millis::Millis;
use super::world::World;
use crate::api::webhook;
use crate::github::Job;
use crate::github::labels::{Match, compare};
use crate::github::scale_set::{Item, ItemKind};
use crate::github::webhook::Action;
use crate::ledger::{
    self, Delivered, GithubNote, GithubState, JobId, JobState, Noted, RunnerKnown,
};
use crate::shepherd::runner::JobResult;

/// How far GitHub's lists may be behind what it delivered, in milliseconds.
const LAG_MS: u64 = 10_000;

impl World {
    /// What is said of GitHub's jobs.
    pub(super) fn hint(&mut self, hint: Hint) -> Result<(), DaemonError> {
        match hint {
            Hint::Delivery(delivery) => self.delivered(*delivery),
            Hint::Snapshot { repository, begun, queued, running } => {
                self.snapshot(repository, begun, &queued, &running)
            }
            Hint::Statistics(pool, waiting) => {
                let now = self.now();
                if let Some(pool) = self.pool_named(pool.as_str()) {
                    self.demand.hear(Heard::Statistics { pool, waiting }, now);
                }
                Ok(())
            }
            Hint::Item(pool, item) => {
                if let Some(pool) = self.pool_named(pool.as_str()) {
                    self.item(pool, &item)?;
                }
                Ok(())
            }
        }
    }

    /// Records a delivery's effect, and only then believes and acknowledges it.
    fn delivered(&mut self, delivery: Delivery) -> Result<(), DaemonError> {
        let Delivery { guid, change, recorded } = delivery;
        let state = match change.action {
            Action::Queued => Some(GithubState::Queued),
            Action::InProgress => Some(GithubState::Running),
            Action::Completed => Some(GithubState::Completed),
            Action::Waiting | Action::Other(_) => None,
        };
        let job = &change.job;
        let effect = match state {
            Some(state) if self.is_noted(job, state)? => Some(self.told(job, state)?),
            _ => None,
        };
        let effect = effect.as_ref().map(|told| told.note(job));
        let delivered = self.ledger.deliver(&guid, effect.as_ref())?;
        if let Delivered::Now(Some(noted)) = delivered {
            self.believe(job, &noted)?;
        }
        // The listener may have given up waiting; a redelivery then finds that it is done.
        let _ = recorded.send(webhook::Answer::Taken);
        Ok(())
    }

    /// Whether a job is this daemon's to keep: jobs that other machines serve are not, once they
    /// have them. The end of one may be told without its labels.
    fn is_noted(&self, job: &Job, state: GithubState) -> Result<bool, DaemonError> {
        let pool = self.pool_for(&job.labels);
        if state == GithubState::Queued && pool.is_none() {
            tracing::debug!(github_job = job.id, labels = ?job.labels, "no pool has these labels");
        }
        let ours = || job.runner_name.as_deref().is_some_and(|name| name.starts_with(&self.prefix));
        let known = || Ok(self.ledger.reader().github_job(job.id)?.is_some());
        let told = state == GithubState::Queued || pool.is_some() || job.labels.is_empty();
        if told || ours() { Ok(true) } else { known() }
    }

    /// What the ledger says of a job now counts as demand, or no longer does.
    fn believe(&mut self, job: &Job, noted: &Noted) -> Result<(), DaemonError> {
        let now = self.now();
        let github = GithubJob { id: job.id, attempt: job.attempt };
        let runner = job.runner_name.clone();
        let name = runner.as_deref().unwrap_or_default();
        match noted.state {
            JobState::Queued => {
                if let Some(pool) = self.pool_for(&job.labels) {
                    let repository = job.repository.clone();
                    self.demand.hear(Heard::Queued { job: github, repository, pool }, now);
                }
            }
            JobState::Claimed | JobState::Running => {
                self.has_job(name, &job.name)?;
                self.demand.hear(Heard::InProgress { job: github, runner }, now);
            }
            JobState::Finished | JobState::Failed | JobState::Cancelled => {
                self.had_job(name);
                self.demand.hear(Heard::Completed { job: github, runner }, now);
            }
        }
        self.wait_again(&noted.released)
    }

    /// Jobs that were guessed to run, and don't, wait again.
    fn wait_again(&mut self, released: &[JobId]) -> Result<(), DaemonError> {
        let now = self.now();
        for id in released {
            if let Some(job) = self.ledger.reader().job(*id)?
                && let Some(github) = github(&job)
            {
                tracing::info!(
                    job = id.0,
                    "its runner has another job of that name: it waits again"
                );
                self.demand.forget(github);
                self.seed(&job, now);
            }
        }
        Ok(())
    }

    /// Jobs of GitHub's that wait by what the ledger knows wait here, too: what was acknowledged
    /// is never said again.
    pub(super) fn seed_demand(&mut self) -> Result<(), DaemonError> {
        let now = self.now();
        for job in self.ledger.reader().open_github()? {
            if job.state == JobState::Queued {
                self.seed(&job, now);
            }
        }
        Ok(())
    }

    fn seed(&mut self, job: &ledger::Job, now: Millis) {
        let since = self.clock.at(job.queued_at.into());
        let (Some(github), Some(pool)) = (github(job), self.pool_for(&job.labels)) else { return };
        let repository = job.repository.clone().unwrap_or_default();
        self.demand.seed(github, repository, pool, since, now);
    }

    fn snapshot(
        &mut self,
        repository: String,
        begun: Millis,
        queued: &[Job],
        running: &[Job],
    ) -> Result<(), DaemonError> {
        let mut waiting = Vec::new();
        for job in queued {
            self.note(job, GithubState::Queued)?;
            if let Some(pool) = self.pool_for(&job.labels) {
                let since = job.started_at.or(job.created_at).map(|at| self.clock.at(at));
                let github = GithubJob { id: job.id, attempt: job.attempt };
                waiting.push((github, pool, since.unwrap_or(begun)));
            }
        }
        for job in running {
            let ours =
                job.runner_name.as_deref().is_some_and(|name| name.starts_with(&self.prefix));
            if ours {
                self.note(job, GithubState::Running)?;
                let github = GithubJob { id: job.id, attempt: job.attempt };
                let runner = job.runner_name.clone();
                self.has_job(runner.as_deref().unwrap_or_default(), &job.name)?;
                self.demand.hear(Heard::InProgress { job: github, runner }, begun);
            }
        }
        self.close_vanished(&repository, begun, queued, running)?;
        self.demand.hear(Heard::Snapshot { repository, queued: waiting }, begun);
        Ok(())
    }

    /// Which pool serves a job: the first whose labels do, of those that hear of jobs this way.
    fn pool_for(&self, labels: &[String]) -> Option<usize> {
        self.pools.iter().position(|pool| {
            pool.settings.trigger != crate::config::Trigger::None
                && compare(labels, &pool.settings.labels) == Match::Served
        })
    }

    /// Takes a job of GitHub's down in the ledger.
    fn note(&mut self, job: &Job, state: GithubState) -> Result<(), DaemonError> {
        let told = self.told(job, state)?;
        let noted = self.ledger.note_github_job(&told.note(job))?;
        self.wait_again(&noted.released)
    }

    /// What GitHub's word on a job means here.
    fn told(&self, job: &Job, state: GithubState) -> Result<Told, DaemonError> {
        let pool = self.pool_for(&job.labels).and_then(|pool| self.pools.get(pool));
        let pool = pool.map(|pool| pool.settings.name.as_str().to_owned());
        let name = job.runner_name.as_deref().filter(|name| !name.is_empty());
        let microvm = match name {
            Some(name) => self.ledger.reader().registration(name)?.map(|known| known.microvm),
            None => None,
        };
        let runner = if name.is_some() { RunnerKnown::Told } else { RunnerKnown::Not };
        Ok(Told { pool, microvm, runner, state })
    }

    /// A scale set's job: statistics count; this is for the log.
    fn item(&mut self, pool: usize, item: &Item) -> Result<(), DaemonError> {
        let runner = item.runner_name.as_deref().unwrap_or_default();
        let its = self.pools.get(pool).map(|pool| pool.settings.name.as_str());
        let (name, run, kind) = (&item.name, item.run_id, &item.kind);
        tracing::info!(pool = its, name, run, runner, ?kind, "a job of the scale set");
        match (&item.kind, &item.runner_name) {
            (ItemKind::Started, Some(runner)) => {
                let now = self.now();
                self.has_job(runner, &item.name)?;
                self.demand.hear(Heard::Taken { runner: runner.clone(), pool }, now);
            }
            (ItemKind::Completed, Some(runner)) => self.had_job(runner),
            _ => {}
        }
        Ok(())
    }

    /// The word on which job a runner has; what the runner says on its console is only sooner.
    fn has_job(&mut self, runner: &str, job: &str) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(key) = self.with_runner(runner).map(|microvm| microvm.key) else { return Ok(()) };
        let Some(microvm) = self.microvm(key) else { return Ok(()) };
        microvm.has_job(job, now);
        let pool = microvm.pool;
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(pool)) {
            pool.runner_worked();
        }
        // The console may have told it already, or never will.
        if self.is_open(runner)? {
            self.ledger.job_taken(runner, job)?;
        }
        Ok(())
    }

    /// The job of a runner is over: its microVM has a time of grace to end by itself.
    fn had_job(&mut self, runner: &str) {
        let now = self.now();
        let Some(key) = self.with_runner(runner).map(|microvm| microvm.key) else { return };
        if let Some(microvm) = self.microvm(key) {
            microvm.completed.get_or_insert(now);
        }
    }

    /// A runner of ours says that it took a job of that name. Where GitHub has not told which, it
    /// is most likely the oldest that waits under it, until GitHub says otherwise.
    pub(super) fn taken(
        &mut self,
        pool: Option<usize>,
        microvm: &str,
        runner: String,
        name: &str,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let its = pool.and_then(|pool| self.pools.get(pool));
        let Some(its) = its.map(|pool| pool.settings.name.to_string()) else { return Ok(()) };
        let told = self.ledger.reader().job_of(microvm)?;
        let likely = || -> Result<_, DaemonError> {
            Ok(self.ledger.reader().open_github()?.into_iter().find(|job| {
                job.state == JobState::Queued
                    && job.pool.as_ref() == Some(&its)
                    && job.name.as_deref() == Some(name)
            }))
        };
        let job = match told {
            Some(job) => Some(job),
            None => match likely()? {
                Some(job) => {
                    self.say(&job, GithubState::Running, Some(microvm), None)?;
                    Some(job)
                }
                None => None,
            },
        };
        let heard = match (job.as_ref().and_then(github), pool) {
            (Some(job), _) => Heard::InProgress { job, runner: Some(runner) },
            (None, Some(pool)) => Heard::Taken { runner, pool },
            (None, None) => return Ok(()),
        };
        self.demand.hear(heard, now);
        Ok(())
    }

    /// A microVM that had a job of GitHub's is over: where GitHub has not told the job's end, its
    /// runner has.
    pub(super) fn completed(
        &mut self,
        microvm: &str,
        result: Option<JobResult>,
    ) -> Result<(), DaemonError> {
        for job in self.ledger.reader().open_github()? {
            if job.microvm.as_deref() == Some(microvm) && job.state == JobState::Running {
                match result {
                    Some(result) => {
                        let conclusion = Some(conclusion(result));
                        self.say(&job, GithubState::Completed, Some(microvm), conclusion)?;
                    }
                    None => self.ledger.fail(job.id, "its microVM ended before it", None)?,
                }
            }
        }
        Ok(())
    }

    /// Jobs that wait by what is known here and that GitHub no longer lists are over: cancelled
    /// there, or some other runner had them.
    fn close_vanished(
        &mut self,
        repository: &str,
        begun: Millis,
        queued: &[Job],
        running: &[Job],
    ) -> Result<(), DaemonError> {
        let listed = |job: &ledger::Job| {
            let is = |other: &&Job| Some(other.id) == job.github_id;
            queued.iter().find(is).or(running.iter().find(is)).is_some()
        };
        let before = self.clock.wall(begun).0.saturating_sub(LAG_MS);
        for job in self.ledger.reader().open_github()? {
            let its =
                job.repository.as_deref().is_some_and(|its| its.eq_ignore_ascii_case(repository));
            let old = u64::try_from(job.queued_at.0).unwrap_or_default() < before;
            if its && old && job.state == JobState::Queued && !listed(&job) {
                self.ledger.cancel(
                    job.id,
                    "GitHub no longer lists it: it was cancelled there, or another runner had it",
                    None,
                )?;
            }
        }
        Ok(())
    }

    fn say(
        &mut self,
        job: &ledger::Job,
        state: GithubState,
        microvm: Option<&str>,
        conclusion: Option<&str>,
    ) -> Result<(), DaemonError> {
        self.ledger.note_github_job(&GithubNote {
            github_id: job.github_id.unwrap_or_default(),
            run_id: None,
            attempt: job.attempt.unwrap_or(1),
            repository: job.repository.as_deref().unwrap_or_default(),
            name: None,
            labels: &[],
            pool: None,
            microvm,
            runner: RunnerKnown::Guessed,
            state,
            conclusion,
        })?;
        Ok(())
    }
}

/// GitHub's word on a job, as far as this daemon adds to it.
struct Told {
    pool: Option<String>,
    microvm: Option<String>,
    runner: RunnerKnown,
    state: GithubState,
}

impl Told {
    fn note<'a>(&'a self, job: &'a Job) -> GithubNote<'a> {
        GithubNote {
            github_id: job.id,
            run_id: Some(job.run_id),
            attempt: job.attempt,
            repository: &job.repository,
            name: Some(job.name.as_str()).filter(|name| !name.is_empty()),
            labels: &job.labels,
            pool: self.pool.as_deref(),
            microvm: self.microvm.as_deref(),
            runner: self.runner,
            state: self.state,
            conclusion: job.conclusion.as_deref(),
        }
    }
}

/// Which attempt of which job of GitHub's it is.
fn github(job: &ledger::Job) -> Option<GithubJob> {
    Some(GithubJob { id: job.github_id?, attempt: job.attempt.unwrap_or(1) })
}

/// A runner's word as GitHub's.
fn conclusion(result: JobResult) -> &'static str {
    match result {
        JobResult::Succeeded | JobResult::SucceededWithIssues => "success",
        JobResult::Failed | JobResult::Abandoned => "failure",
        JobResult::Canceled => "cancelled",
        JobResult::Skipped => "skipped",
    }
}
