//! The forge's word on its jobs: to whom it counts as waiting, and what the ledger keeps of it.

use super::{Backlog, Desk, forge_job};
use crate::daemon::concluding::JobEnd;
use crate::daemon::decide::PoolId;
use crate::daemon::demand::{ForgeJob, Heard};
use crate::daemon::error::DaemonError;
use crate::daemon::millis::Millis;
use crate::forge::{Change, Delivery, Job};
use crate::ledger::{
    self, Delivered, ForgeNote, ForgeState, JobId, JobState, Ledger, Noted, RunnerKnown,
};
use crate::shepherd::runner::JobResult;

/// How far a forge's lists may be behind what it delivered, in milliseconds.
const LAG_MS: u64 = 10_000;

/// What the forge's word says of a runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum Word {
    /// It has a job.
    Has {
        /// Its name.
        runner: String,
        /// The job's name.
        job: String,
    },
    /// Its job is over.
    Had {
        /// Its name.
        runner: String,
    },
}

impl Backlog {
    /// Records a delivery's effect, and only then believes and acknowledges it.
    pub(in crate::daemon) fn delivered(
        &mut self,
        delivery: Delivery,
        desk: &mut Desk<'_>,
    ) -> Result<Option<Word>, DaemonError> {
        let Delivery { guid, change, job, acknowledge } = delivery;
        let state = change.map(|change| match change {
            Change::Queued => ForgeState::Queued,
            Change::Running => ForgeState::Running,
            Change::Over => ForgeState::Completed,
        });
        let effect = match state {
            Some(state) if desk.is_noted(&job, state)? => Some(desk.told(&job, state)?),
            _ => None,
        };
        let effect = effect.as_ref().map(|told| told.note(&job));
        let word = match desk.ledger.deliver(&guid, effect.as_ref())? {
            Delivered::Now(Some(noted)) => self.believe(&job, &noted, desk)?,
            Delivered::Now(None) | Delivered::Before => None,
        };
        acknowledge();
        Ok(word)
    }

    /// What the ledger says of a job now counts as demand, or no longer does.
    fn believe(
        &mut self,
        job: &Job,
        noted: &Noted,
        desk: &mut Desk<'_>,
    ) -> Result<Option<Word>, DaemonError> {
        let now = desk.clock.now();
        let its = ForgeJob { id: job.id, attempt: job.attempt };
        let (runner, name) = (job.runner.clone(), job.name.clone());
        let word = match noted.state {
            JobState::Queued => {
                if let Some(pool) = desk.pool_for(&job.labels) {
                    let repository = job.repository.clone();
                    self.demand.hear(Heard::Queued { job: its, repository, pool }, now);
                }
                None
            }
            JobState::Claimed | JobState::Running => {
                self.demand.hear(Heard::InProgress { job: its, runner: runner.clone() }, now);
                runner.map(|runner| Word::Has { runner, job: name })
            }
            JobState::Finished | JobState::Failed | JobState::Cancelled => {
                self.demand.hear(Heard::Completed { job: its, runner: runner.clone() }, now);
                runner.map(|runner| Word::Had { runner })
            }
        };
        self.wait_again(&noted.released, desk)?;
        Ok(word)
    }

    /// Jobs that were guessed to run, and don't, wait again.
    fn wait_again(&mut self, released: &[JobId], desk: &mut Desk<'_>) -> Result<(), DaemonError> {
        let now = desk.clock.now();
        for id in released {
            if let Some(job) = desk.ledger.reader().job(*id)?
                && let Some(known) = forge_job(&job)
            {
                tracing::info!(
                    job = id.0,
                    "its runner has another job of that name: it waits again"
                );
                self.demand.forget(known);
                self.seed(&job, desk, now);
            }
        }
        Ok(())
    }

    /// A list of one repository's jobs.
    pub(in crate::daemon) fn listed(
        &mut self,
        repository: String,
        begun: Millis,
        (queued, running): (&[Job], &[Job]),
        desk: &mut Desk<'_>,
    ) -> Result<Vec<Word>, DaemonError> {
        let (mut waiting, mut words) = (Vec::new(), Vec::new());
        for job in queued {
            self.note(job, ForgeState::Queued, desk)?;
            if let Some(pool) = desk.pool_for(&job.labels) {
                let since = job.since.map(|at| desk.clock.at(at));
                let known = ForgeJob { id: job.id, attempt: job.attempt };
                waiting.push((known, pool, since.unwrap_or(begun)));
            }
        }
        for job in running {
            if let Some(runner) = job.runner.clone().filter(|name| name.starts_with(desk.prefix)) {
                self.note(job, ForgeState::Running, desk)?;
                let known = ForgeJob { id: job.id, attempt: job.attempt };
                let heard = Heard::InProgress { job: known, runner: Some(runner.clone()) };
                self.demand.hear(heard, begun);
                words.push(Word::Has { runner, job: job.name.clone() });
            }
        }
        close_vanished(&repository, begun, (queued, running), desk)?;
        self.demand.hear(Heard::Snapshot { repository, queued: waiting }, begun);
        Ok(words)
    }

    /// Takes a job of the forge's down in the ledger.
    fn note(
        &mut self,
        job: &Job,
        state: ForgeState,
        desk: &mut Desk<'_>,
    ) -> Result<(), DaemonError> {
        let told = desk.told(job, state)?;
        let noted = desk.ledger.note_forge_job(&told.note(job))?;
        self.wait_again(&noted.released, desk)
    }

    /// The forge says that a runner of a pool has a job, and not which.
    pub(in crate::daemon) fn took(&mut self, pool: PoolId, runner: String, now: Millis) {
        self.demand.hear(Heard::Taken { runner, pool }, now);
    }

    /// A runner of ours says that it took a job of that name. Where the forge has not told which, it
    /// is most likely the oldest that waits under it, until the forge says otherwise.
    pub(in crate::daemon) fn taken(
        &mut self,
        pool: PoolId,
        microvm: &str,
        runner: String,
        name: &str,
        desk: &mut Desk<'_>,
    ) -> Result<(), DaemonError> {
        let now = desk.clock.now();
        let Some(its) = desk.pools.get(pool).map(|pool| pool.name.to_string()) else {
            return Ok(());
        };
        let told = desk.ledger.reader().job_of(microvm)?;
        let likely = || -> Result<_, DaemonError> {
            Ok(desk.ledger.reader().open_github()?.into_iter().find(|job| {
                job.state == JobState::Queued
                    && job.pool.as_ref() == Some(&its)
                    && job.name.as_deref() == Some(name)
            }))
        };
        let job = match told {
            Some(job) => Some(job),
            None => match likely()? {
                Some(job) => {
                    say(&job, ForgeState::Running, microvm, None, desk.ledger)?;
                    Some(job)
                }
                None => None,
            },
        };
        let heard = match job.as_ref().and_then(forge_job) {
            Some(job) => Heard::InProgress { job, runner: Some(runner) },
            None => Heard::Taken { runner, pool },
        };
        self.demand.hear(heard, now);
        Ok(())
    }

    /// A microVM that had a job of the forge's is over: where the forge has not told the job's end,
    /// its runner has.
    pub(in crate::daemon) fn runner_over(
        microvm: &str,
        end: &JobEnd,
        ledger: &mut Ledger,
    ) -> Result<(), DaemonError> {
        for job in ledger.reader().open_github()? {
            if job.microvm.as_deref() != Some(microvm) || job.state != JobState::Running {
                continue;
            }
            match (end, &job.cause) {
                (JobEnd::Said(result), _) => {
                    let conclusion = Some(conclusion(*result));
                    say(&job, ForgeState::Completed, microvm, conclusion, ledger)?;
                }
                // It was told to end.
                (_, Some(why)) => ledger.cancel(job.id, why, None)?,
                (JobEnd::Lost(why), None) => ledger.fail(job.id, why, None)?,
                (JobEnd::None | JobEnd::Interrupted, None) => {
                    ledger.fail(job.id, "its microVM ended before it", None)?;
                }
            }
        }
        Ok(())
    }
}

impl Desk<'_> {
    /// Whether a job is this daemon's to keep: jobs that other machines serve are not, once they
    /// have them. The end of one may be told without its labels.
    fn is_noted(&self, job: &Job, state: ForgeState) -> Result<bool, DaemonError> {
        let pool = self.pool_for(&job.labels);
        if state == ForgeState::Queued && pool.is_none() {
            tracing::debug!(
                forge_job = job.id,
                labels = job.labels.join(", "),
                "no pool has these labels"
            );
        }
        let ours = || job.runner.as_deref().is_some_and(|name| name.starts_with(self.prefix));
        let known = || Ok(self.ledger.reader().forge_job(job.id)?.is_some());
        let told = state == ForgeState::Queued || pool.is_some() || job.labels.is_empty();
        if told || ours() { Ok(true) } else { known() }
    }

    /// What the forge's word on a job means here.
    fn told(&self, job: &Job, state: ForgeState) -> Result<Told, DaemonError> {
        let pool = self.pool_for(&job.labels).and_then(|pool| self.pools.get(pool));
        let pool = pool.map(|pool| pool.name.to_string());
        let name = job.runner.as_deref().filter(|name| !name.is_empty());
        let microvm = match name {
            Some(name) => self.ledger.reader().registration(name)?.map(|known| known.microvm),
            None => None,
        };
        let runner = if name.is_some() { RunnerKnown::Told } else { RunnerKnown::Not };
        Ok(Told { pool, microvm, runner, state })
    }
}

/// Jobs that wait by what is known here and that the forge no longer lists are over: cancelled
/// there, or some other runner had them.
fn close_vanished(
    repository: &str,
    begun: Millis,
    (queued, running): (&[Job], &[Job]),
    desk: &mut Desk<'_>,
) -> Result<(), DaemonError> {
    let listed = |job: &ledger::Job| {
        let is = |other: &&Job| Some(other.id) == job.forge_id;
        queued.iter().find(is).or(running.iter().find(is)).is_some()
    };
    let before = desk.clock.wall(begun).0.saturating_sub(LAG_MS);
    for job in desk.ledger.reader().open_github()? {
        let its = job.repository.as_deref().is_some_and(|its| its.eq_ignore_ascii_case(repository));
        let old = u64::try_from(job.queued_at.0).unwrap_or_default() < before;
        if its && old && job.state == JobState::Queued && !listed(&job) {
            desk.ledger.cancel(
                job.id,
                "GitHub no longer lists it: it was cancelled there, or another runner had it",
                None,
            )?;
        }
    }
    Ok(())
}

/// Notes what a runner said of its job as if the forge had.
fn say(
    job: &ledger::Job,
    state: ForgeState,
    microvm: &str,
    conclusion: Option<&str>,
    ledger: &mut Ledger,
) -> Result<(), DaemonError> {
    ledger.note_forge_job(&ForgeNote {
        forge_id: job.forge_id.unwrap_or_default(),
        run_id: None,
        attempt: job.attempt.unwrap_or(1),
        repository: job.repository.as_deref().unwrap_or_default(),
        name: None,
        labels: &[],
        pool: None,
        microvm: Some(microvm),
        runner: RunnerKnown::Guessed,
        state,
        conclusion,
    })?;
    Ok(())
}

/// The forge's word on a job, as far as this daemon adds to it.
struct Told {
    pool: Option<String>,
    microvm: Option<String>,
    runner: RunnerKnown,
    state: ForgeState,
}

impl Told {
    fn note<'a>(&'a self, job: &'a Job) -> ForgeNote<'a> {
        ForgeNote {
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

/// A runner's word as the forge's.
fn conclusion(result: JobResult) -> &'static str {
    match result {
        JobResult::Succeeded | JobResult::SucceededWithIssues => "success",
        JobResult::Failed | JobResult::Abandoned => "failure",
        JobResult::Canceled => "cancelled",
        JobResult::Skipped => "skipped",
    }
}
