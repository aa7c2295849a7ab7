//! What is said of GitHub's jobs: to whom it counts as waiting, and what the ledger keeps of it.

use super::demand::{GithubJob, Heard};
use super::error::DaemonError;
use super::happening::Hint;
use super::millis::Millis;
use super::world::World;
use crate::github::Job;
use crate::github::labels::{Match, compare};
use crate::github::scale_set::{Item, ItemKind};
use crate::github::webhook::{Action, WorkflowJob};
use crate::ledger::{self, GithubNote, GithubState, JobState};
use crate::shepherd::runner::JobResult;

/// How far GitHub's lists may be behind what it delivered, in milliseconds.
const LAG_MS: u64 = 10_000;

impl World {
    /// What is said of GitHub's jobs.
    pub(super) fn hint(&mut self, hint: Hint) -> Result<(), DaemonError> {
        match hint {
            Hint::Delivery(guid, delivery) => {
                if !self.ledger.seen(&guid)? {
                    return Ok(());
                }
                self.delivered(&delivery)
            }
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
                    self.item(pool, &item);
                }
                Ok(())
            }
        }
    }

    fn delivered(&mut self, delivery: &WorkflowJob) -> Result<(), DaemonError> {
        let (now, job) = (self.now(), &delivery.job);
        let github = GithubJob { id: job.id, attempt: job.attempt };
        let runner = job.runner_name.clone();
        let state = match delivery.action {
            Action::Queued => GithubState::Queued,
            Action::InProgress => GithubState::Running,
            Action::Completed => GithubState::Completed,
            Action::Waiting | Action::Other(_) => return Ok(()),
        };
        let pool = self.pool_for(job);
        let ours = runner.as_deref().is_some_and(|name| name.starts_with(&self.prefix));
        match state {
            GithubState::Queued => {
                let Some(pool) = pool else {
                    tracing::debug!(github_job = job.id, labels = ?job.labels, "no pool has these labels");
                    return self.note(job, state);
                };
                let repository = job.repository.clone();
                self.demand.hear(Heard::Queued { job: github, repository, pool }, now);
            }
            GithubState::Running => {
                self.demand.hear(Heard::InProgress { job: github, runner }, now);
            }
            GithubState::Completed => {
                self.demand.hear(Heard::Completed { job: github, runner }, now);
            }
        }
        // Jobs that other machines serve are none of ours to keep. The end of one may be told
        // without its labels.
        let known = || Ok::<_, DaemonError>(self.ledger.reader().github_job(job.id)?.is_some());
        if pool.is_some() || ours || known()? { self.note(job, state) } else { Ok(()) }
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
            if let Some(pool) = self.pool_for(job) {
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
                self.demand.hear(Heard::InProgress { job: github, runner }, begun);
            }
        }
        self.close_vanished(&repository, begun, queued, running)?;
        self.demand.hear(Heard::Snapshot { repository, queued: waiting }, begun);
        Ok(())
    }

    /// Which pool serves a job: the first whose labels do, of those that hear of jobs this way.
    fn pool_for(&self, job: &Job) -> Option<usize> {
        self.pools.iter().position(|pool| {
            pool.settings.trigger != crate::config::Trigger::None
                && compare(&job.labels, &pool.settings.labels) == Match::Served
        })
    }

    /// Takes a job of GitHub's down in the ledger.
    fn note(&mut self, job: &Job, state: GithubState) -> Result<(), DaemonError> {
        let pool = self.pool_for(job).and_then(|pool| self.pools.get(pool));
        let pool = pool.map(|pool| pool.settings.name.as_str().to_owned());
        let microvm = match &job.runner_name {
            Some(name) => self.ledger.reader().registration(name)?.map(|known| known.microvm),
            None => None,
        };
        self.ledger.note_github_job(&GithubNote {
            github_id: job.id,
            run_id: Some(job.run_id),
            attempt: job.attempt,
            repository: &job.repository,
            name: Some(job.name.as_str()).filter(|name| !name.is_empty()),
            labels: &job.labels,
            pool: pool.as_deref(),
            microvm: microvm.as_deref(),
            state,
            conclusion: job.conclusion.as_deref(),
        })?;
        Ok(())
    }

    /// A scale set's job: statistics count; this is for the log.
    fn item(&mut self, pool: usize, item: &Item) {
        let runner = item.runner_name.as_deref().unwrap_or_default();
        let its = self.pools.get(pool).map(|pool| pool.settings.name.as_str());
        let (name, run, kind) = (&item.name, item.run_id, &item.kind);
        tracing::info!(pool = its, name, run, runner, ?kind, "a job of the scale set");
        if let (ItemKind::Started, Some(name)) = (&item.kind, &item.runner_name) {
            let now = self.now();
            self.demand.hear(Heard::Taken { runner: name.clone(), pool }, now);
        }
    }

    /// A runner of ours says that it took a job of that name, which GitHub has not told yet: most
    /// likely the oldest that waits under it.
    pub(super) fn taken(
        &mut self,
        pool: Option<usize>,
        microvm: &str,
        name: &str,
    ) -> Result<(), DaemonError> {
        let pool = pool.and_then(|pool| self.pools.get(pool));
        let Some(pool) = pool.map(|pool| pool.settings.name.to_string()) else { return Ok(()) };
        let open = self.ledger.reader().open_github()?;
        if open.iter().any(|job| job.microvm.as_deref() == Some(microvm)) {
            return Ok(());
        }
        let likely = open.into_iter().find(|job| {
            job.state == JobState::Queued
                && job.pool.as_ref() == Some(&pool)
                && job.name.as_deref() == Some(name)
        });
        match likely {
            Some(job) => self.say(&job, GithubState::Running, Some(microvm), None),
            None => Ok(()),
        }
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
            state,
            conclusion,
        })?;
        Ok(())
    }
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
