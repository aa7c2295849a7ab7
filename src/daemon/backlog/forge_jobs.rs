//! The forge's reports about its jobs: how they change the demand and the ledger.

use super::{Backlog, BacklogContext, forge_job};
use crate::decide::PoolId;
use crate::demand::{DemandEvent, ForgeJob};
use crate::error::DaemonError;
use crate::runner_end::RunnerJobEnd;
use crate::time::Millis;
use mayfly_forge::{JobChange, JobDelivery, RemoteJob};
use mayfly_ledger::{
    DeliveryEffect, ForgeJobUpdate, ForgeState, JobId, JobState, Ledger, RecordedJob, RunnerMatch,
};
use mayfly_shepherd::runner::RunnerResult;

/// How far a forge's lists may lag behind its deliveries, in milliseconds.
const LAG_MS: u64 = 10_000;

/// What a report of the forge says about a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunnerUpdate {
    /// The runner has a job.
    HasJob {
        /// Its name.
        runner: String,
        /// The job's name.
        job: String,
    },
    /// The runner's job ended.
    JobEnded {
        /// Its name.
        runner: String,
    },
}

impl Backlog {
    /// Records a delivery's effect, then updates the demand and acknowledges the delivery.
    pub(crate) fn record_delivery(
        &mut self,
        delivery: JobDelivery,
        context: &mut BacklogContext<'_>,
    ) -> Result<Option<RunnerUpdate>, DaemonError> {
        let JobDelivery { guid, change, job, acknowledge } = delivery;
        let state = change.map(|change| match change {
            JobChange::Queued => ForgeState::Queued,
            JobChange::Running => ForgeState::Running,
            JobChange::Completed => ForgeState::Completed,
        });
        let effect = match state {
            Some(state) if context.is_recorded_here(&job, state)? => {
                Some(context.update_details(&job, state)?)
            }
            _ => None,
        };
        let effect = effect.as_ref().map(|details| details.to_update(&job));
        let update = match context.ledger.record_delivery(&guid, effect.as_ref())? {
            DeliveryEffect::Recorded(Some(recorded)) => {
                self.update_demand(&job, &recorded, context)?
            }
            DeliveryEffect::Recorded(None) | DeliveryEffect::AlreadyRecorded => None,
        };
        acknowledge();
        Ok(update)
    }

    /// Updates the demand from the ledger's state of a job.
    fn update_demand(
        &mut self,
        job: &RemoteJob,
        recorded: &RecordedJob,
        context: &mut BacklogContext<'_>,
    ) -> Result<Option<RunnerUpdate>, DaemonError> {
        let now = context.clock.now();
        let demand_job = ForgeJob { id: job.id, attempt: job.attempt };
        let (runner, name) = (job.runner.clone(), job.name.clone());
        let update = match recorded.state {
            JobState::Queued => {
                if let Some(pool) = context.pool_for(&job.labels) {
                    let repository = job.repository.clone();
                    self.demand
                        .apply(DemandEvent::Queued { job: demand_job, repository, pool }, now);
                }
                None
            }
            JobState::Claimed | JobState::Running => {
                self.demand.apply(
                    DemandEvent::InProgress { job: demand_job, runner: runner.clone() },
                    now,
                );
                runner.map(|runner| RunnerUpdate::HasJob { runner, job: name })
            }
            JobState::Finished | JobState::Failed | JobState::Cancelled => {
                self.demand
                    .apply(DemandEvent::Completed { job: demand_job, runner: runner.clone() }, now);
                runner.map(|runner| RunnerUpdate::JobEnded { runner })
            }
        };
        self.requeue_released(&recorded.released, context)?;
        Ok(update)
    }

    /// Requeues jobs that were wrongly assumed to be running.
    fn requeue_released(
        &mut self,
        released: &[JobId],
        context: &mut BacklogContext<'_>,
    ) -> Result<(), DaemonError> {
        let now = context.clock.now();
        for id in released {
            if let Some(job) = context.ledger.reader().job(*id)?
                && let Some(known) = forge_job(&job)
            {
                tracing::info!(
                    job = id.0,
                    "requeuing the job: its runner has another job with that name"
                );
                self.demand.forget(known);
                self.seed(&job, context, now);
            }
        }
        Ok(())
    }

    /// Applies a list of one repository's jobs.
    pub(crate) fn reconcile_list(
        &mut self,
        repository: String,
        started: Millis,
        (queued, running): (&[RemoteJob], &[RemoteJob]),
        context: &mut BacklogContext<'_>,
    ) -> Result<Vec<RunnerUpdate>, DaemonError> {
        let (mut waiting, mut updates) = (Vec::new(), Vec::new());
        for job in queued {
            self.record_job(job, ForgeState::Queued, context)?;
            if let Some(pool) = context.pool_for(&job.labels) {
                let since = job.since.map(|at| context.clock.at_wall_time(at));
                let known = ForgeJob { id: job.id, attempt: job.attempt };
                waiting.push((known, pool, since.unwrap_or(started)));
            }
        }
        for job in running {
            if let Some(runner) = job.runner.clone().filter(|name| name.starts_with(context.prefix))
            {
                self.record_job(job, ForgeState::Running, context)?;
                let known = ForgeJob { id: job.id, attempt: job.attempt };
                let event = DemandEvent::InProgress { job: known, runner: Some(runner.clone()) };
                self.demand.apply(event, started);
                updates.push(RunnerUpdate::HasJob { runner, job: job.name.clone() });
            }
        }
        close_vanished(&repository, started, (queued, running), context)?;
        self.demand.apply(DemandEvent::Snapshot { repository, queued: waiting }, started);
        Ok(updates)
    }

    /// Records a job of the forge in the ledger.
    fn record_job(
        &mut self,
        job: &RemoteJob,
        state: ForgeState,
        context: &mut BacklogContext<'_>,
    ) -> Result<(), DaemonError> {
        let details = context.update_details(job, state)?;
        let recorded = context.ledger.record_forge_job(&details.to_update(job))?;
        self.requeue_released(&recorded.released, context)
    }

    /// Records that a runner of a pool has a job, if the forge does not report which.
    pub(crate) fn record_busy_runner(&mut self, pool: PoolId, runner: String, now: Millis) {
        self.demand.apply(DemandEvent::Taken { runner, pool }, now);
    }

    /// Records that one of the daemon's runners took a job with a given name. If the forge has not
    /// reported which job, the oldest waiting one with that name is assumed, until the forge
    /// reports otherwise.
    pub(crate) fn record_taken_job(
        &mut self,
        pool: PoolId,
        microvm: &str,
        runner: String,
        name: &str,
        context: &mut BacklogContext<'_>,
    ) -> Result<(), DaemonError> {
        let now = context.clock.now();
        let Some(pool_name) = context.pools.get(pool).map(|pool| pool.name.to_string()) else {
            return Ok(());
        };
        let known = context.ledger.reader().job_of(microvm)?;
        let likely = || -> Result<_, DaemonError> {
            Ok(context.ledger.reader().open_github_jobs()?.into_iter().find(|job| {
                job.state == JobState::Queued
                    && job.pool.as_ref() == Some(&pool_name)
                    && job.name.as_deref() == Some(name)
            }))
        };
        let job = match known {
            Some(job) => Some(job),
            None => match likely()? {
                Some(job) => {
                    record_runner_report(&job, ForgeState::Running, microvm, None, context.ledger)?;
                    Some(job)
                }
                None => None,
            },
        };
        let event = match job.as_ref().and_then(forge_job) {
            Some(job) => DemandEvent::InProgress { job, runner: Some(runner) },
            None => DemandEvent::Taken { runner, pool },
        };
        self.demand.apply(event, now);
        Ok(())
    }

    /// Settles the forge's job of an ended microVM with the runner's report, if the forge has not
    /// reported the job's end.
    pub(crate) fn settle_runner_job(
        microvm: &str,
        end: &RunnerJobEnd,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        for job in ledger.reader().open_github_jobs()? {
            if job.microvm.as_deref() != Some(microvm) || job.state != JobState::Running {
                continue;
            }
            match (end, &job.cause) {
                (RunnerJobEnd::Reported(result), _) => {
                    let conclusion = Some(conclusion(*result));
                    record_runner_report(&job, ForgeState::Completed, microvm, conclusion, ledger)?;
                }
                // It was canceled.
                (_, Some(why)) => ledger.cancel(job.id, why, None)?,
                (RunnerJobEnd::Lost(why), None) => ledger.fail(job.id, why, None)?,
                (RunnerJobEnd::None | RunnerJobEnd::Interrupted, None) => {
                    ledger.fail(job.id, "its microVM ended before the job did", None)?;
                }
            }
        }
        Ok(())
    }
}

impl BacklogContext<'_> {
    /// Returns whether this daemon records a job. It does not record jobs that other machines have.
    /// The end of a job may be reported without its labels.
    fn is_recorded_here(&self, job: &RemoteJob, state: ForgeState) -> Result<bool, DaemonError> {
        let pool = self.pool_for(&job.labels);
        if state == ForgeState::Queued && pool.is_none() {
            tracing::debug!(
                forge_job = job.id,
                labels = job.labels.join(", "),
                "no pool has all of these labels"
            );
        }
        let ours = || job.runner.as_deref().is_some_and(|name| name.starts_with(self.prefix));
        let known = || Ok(self.ledger.reader().forge_job(job.id)?.is_some());
        let is_relevant = state == ForgeState::Queued || pool.is_some() || job.labels.is_empty();
        if is_relevant || ours() { Ok(true) } else { known() }
    }

    /// Determines what this daemon adds to the forge's report about a job.
    fn update_details(
        &self,
        job: &RemoteJob,
        state: ForgeState,
    ) -> Result<UpdateDetails, DaemonError> {
        let pool = self.pool_for(&job.labels).and_then(|pool| self.pools.get(pool));
        let pool = pool.map(|pool| pool.name.to_string());
        let name = job.runner.as_deref().filter(|name| !name.is_empty());
        let microvm = match name {
            Some(name) => self.ledger.reader().registration(name)?.map(|known| known.microvm),
            None => None,
        };
        let runner = if name.is_some() { RunnerMatch::Confirmed } else { RunnerMatch::Unknown };
        Ok(UpdateDetails { pool, microvm, runner, state })
    }
}

/// Ends jobs that wait according to the ledger but are missing from the forge's list: they were
/// canceled there, or another runner took them.
fn close_vanished(
    repository: &str,
    started: Millis,
    (queued, running): (&[RemoteJob], &[RemoteJob]),
    context: &mut BacklogContext<'_>,
) -> Result<(), DaemonError> {
    let listed = |job: &mayfly_ledger::JobRecord| {
        let is = |other: &&RemoteJob| Some(other.id) == job.forge_id;
        queued.iter().find(is).or(running.iter().find(is)).is_some()
    };
    let before = context.clock.wall_time(started).0.saturating_sub(LAG_MS);
    for job in context.ledger.reader().open_github_jobs()? {
        let is_same_repository =
            job.repository.as_deref().is_some_and(|its| its.eq_ignore_ascii_case(repository));
        let old = u64::try_from(job.queued_at.0).unwrap_or_default() < before;
        if is_same_repository && old && job.state == JobState::Queued && !listed(&job) {
            context.ledger.cancel(
                job.id,
                "GitHub no longer lists it: it was canceled there, or another runner took it",
                None,
            )?;
        }
    }
    Ok(())
}

/// Records a runner's report about its job like one of the forge.
fn record_runner_report(
    job: &mayfly_ledger::JobRecord,
    state: ForgeState,
    microvm: &str,
    conclusion: Option<&str>,
    ledger: &mut Ledger,
) -> Result<(), DaemonError> {
    ledger.record_forge_job(&ForgeJobUpdate {
        forge_id: job.forge_id.unwrap_or_default(),
        run_id: None,
        attempt: job.attempt.unwrap_or(1),
        repository: job.repository.as_deref().unwrap_or_default(),
        name: None,
        labels: &[],
        pool: None,
        microvm: Some(microvm),
        runner: RunnerMatch::Guessed,
        state,
        conclusion,
    })?;
    Ok(())
}

/// What this daemon adds to the forge's report about a job.
struct UpdateDetails {
    pool: Option<String>,
    microvm: Option<String>,
    runner: RunnerMatch,
    state: ForgeState,
}

impl UpdateDetails {
    fn to_update<'a>(&'a self, job: &'a RemoteJob) -> ForgeJobUpdate<'a> {
        ForgeJobUpdate {
            forge_id: job.id,
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

/// Converts a runner's result to the forge's conclusion.
fn conclusion(result: RunnerResult) -> &'static str {
    match result {
        RunnerResult::Succeeded | RunnerResult::SucceededWithIssues => "success",
        RunnerResult::Failed | RunnerResult::Abandoned => "failure",
        RunnerResult::Canceled => "cancelled",
        RunnerResult::Skipped => "skipped",
    }
}
