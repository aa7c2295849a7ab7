//! Changes of jobs.

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{
    ForgeJobUpdate, ForgeState, JobCommand, JobId, JobResult, JobSource, JobState, Ledger,
    LedgerError, RecordedJob, RunnerMatch,
};

/// The maximum length of an untrusted text, in characters. GitHub's own names are shorter.
const MAX_TEXT: usize = 256;

/// The maximum number of labels of a job: one more than a runner can have, so that no runner
/// matches a job whose labels were truncated.
const MAX_LABELS: usize = 101;

/// Truncates an untrusted text to the maximum length.
pub fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A state change of a job, and the states from which it is allowed.
struct Transition {
    action: &'static str,
    requested: &'static str,
    from: &'static [JobState],
    to: JobState,
}

const CLAIM: Transition = Transition {
    action: "job.claimed",
    requested: "claimed",
    from: &[JobState::Queued],
    to: JobState::Claimed,
};
const START: Transition = Transition {
    action: "job.started",
    requested: "started",
    from: &[JobState::Claimed],
    to: JobState::Running,
};
const FINISH: Transition = Transition {
    action: "job.finished",
    requested: "finished",
    from: &[JobState::Claimed, JobState::Running],
    to: JobState::Finished,
};
const FAIL: Transition = Transition {
    action: "job.failed",
    requested: "failed",
    from: &[JobState::Queued, JobState::Claimed, JobState::Running],
    to: JobState::Failed,
};
const REQUEUE: Transition = Transition {
    action: "job.requeued",
    requested: "requeued",
    from: &[JobState::Claimed],
    to: JobState::Queued,
};
const CANCEL: Transition = Transition {
    action: "job.cancelled",
    requested: "canceled",
    from: &[JobState::Queued, JobState::Claimed, JobState::Running],
    to: JobState::Cancelled,
};

impl Ledger {
    /// Queues a local job.
    pub fn submit_local(&mut self, pool: &str, command: &JobCommand) -> Result<JobId, LedgerError> {
        let text = serde_json::to_string(command)
            .map_err(|error| LedgerError::Json("a command", error))?;
        self.change("queue a job", |change| {
            change.execute(
                "INSERT INTO jobs (source, pool, state, command, queued_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![JobSource::Local, pool, JobState::Queued, text, change.now],
            )?;
            let id = newest(change)?;
            let detail = json!({ "source": "local", "pool": pool });
            change.audit("job.queued", &id.to_string(), &detail)?;
            Ok(id)
        })
    }

    /// Records an update of a job from GitHub. States only move forward, except guesses that turn
    /// out wrong.
    pub fn record_forge_job(
        &mut self,
        update: &ForgeJobUpdate<'_>,
    ) -> Result<RecordedJob, LedgerError> {
        self.change("record a GitHub job", |change| record_update(change, update))
    }

    /// Assigns a queued job to a microVM.
    pub fn claim(&mut self, job: JobId, microvm: &str) -> Result<(), LedgerError> {
        self.change("claim a job", |change| {
            apply(change, job, &CLAIM)?;
            change.execute(
                "UPDATE jobs SET microvm = ?2, claimed_at = ?3 WHERE id = ?1",
                params![job, microvm, change.now],
            )?;
            change.audit(CLAIM.action, &job.to_string(), &json!({ "microvm": microvm }))
        })
    }

    /// Records the start of a claimed job.
    pub fn start(&mut self, job: JobId) -> Result<(), LedgerError> {
        self.change("start a job", |change| {
            apply(change, job, &START)?;
            change.execute(
                "UPDATE jobs SET started_at = ?2 WHERE id = ?1",
                params![job, change.now],
            )?;
            change.audit(START.action, &job.to_string(), &json!({}))
        })
    }

    /// Records that a job ended by itself.
    pub fn finish(&mut self, job: JobId, result: &JobResult) -> Result<(), LedgerError> {
        let text =
            serde_json::to_string(result).map_err(|error| LedgerError::Json("a result", error))?;
        self.change("finish a job", |change| {
            apply(change, job, &FINISH)?;
            change.execute(
                "UPDATE jobs SET result = ?2, exit_code = ?3 WHERE id = ?1",
                params![job, text, result.exit_code()],
            )?;
            change.audit(FINISH.action, &job.to_string(), &json!({ "result": result }))
        })
    }

    /// Records that a job could not be started, or that its microVM failed. `exit_code` stands for
    /// that; a GitHub job has none.
    pub fn fail(
        &mut self,
        job: JobId,
        cause: &str,
        exit_code: Option<u8>,
    ) -> Result<(), LedgerError> {
        self.change("fail a job", |change| {
            apply_with_cause(change, job, &FAIL, cause)?;
            set_exit_code(change, job, exit_code)
        })
    }

    /// Records that a person canceled a job.
    pub fn cancel(
        &mut self,
        job: JobId,
        why: &str,
        exit_code: Option<u8>,
    ) -> Result<(), LedgerError> {
        self.change("cancel a job", |change| {
            apply_with_cause(change, job, &CANCEL, why)?;
            set_exit_code(change, job, exit_code)
        })
    }

    /// Requeues a claimed job that certainly never started, at its old position.
    pub fn requeue(&mut self, job: JobId, why: &str) -> Result<(), LedgerError> {
        self.change("requeue a job", |change| {
            apply_with_cause(change, job, &REQUEUE, why)?;
            change.execute(
                "UPDATE jobs SET requeued = requeued + 1, microvm = NULL, claimed_at = NULL
                 WHERE id = ?1",
                [job],
            )?;
            Ok(())
        })
    }
}

/// Moves a job to another state if the transition is allowed.
fn apply(change: &Change<'_>, job: JobId, transition: &Transition) -> Result<(), LedgerError> {
    let state: Option<JobState> =
        change.first("SELECT state FROM jobs WHERE id = ?1", [job], |row| row.get(0))?;
    let Some(state) = state else {
        return Err(LedgerError::Unknown { what: "job", name: job.to_string() });
    };
    if !transition.from.contains(&state) {
        return Err(LedgerError::WrongState {
            what: "job",
            name: job.to_string(),
            state: state.to_string(),
            requested: transition.requested,
        });
    }
    let ended = transition.to.is_over().then_some(change.now);
    change.execute(
        "UPDATE jobs SET state = ?2, ended_at = ?3 WHERE id = ?1",
        params![job, transition.to, ended],
    )?;
    if transition.to.is_over() {
        wipe_environment(change, job)?;
    }
    Ok(())
}

/// Removes the environment of an ended job's command.
fn wipe_environment(change: &Change<'_>, job: JobId) -> Result<(), LedgerError> {
    change.execute(
        "UPDATE jobs SET command = json_set(command, '$.environment', json('[]'))
         WHERE id = ?1 AND command IS NOT NULL",
        [job],
    )?;
    Ok(())
}

fn apply_with_cause(
    change: &Change<'_>,
    job: JobId,
    transition: &Transition,
    cause: &str,
) -> Result<(), LedgerError> {
    apply(change, job, transition)?;
    change.execute("UPDATE jobs SET cause = ?2 WHERE id = ?1", params![job, cause])?;
    change.audit(transition.action, &job.to_string(), &json!({ "cause": cause }))
}

fn set_exit_code(change: &Change<'_>, job: JobId, code: Option<u8>) -> Result<(), LedgerError> {
    change.execute("UPDATE jobs SET exit_code = ?2 WHERE id = ?1", params![job, code])?;
    Ok(())
}

/// Records an update of a job from GitHub.
pub(super) fn record_update(
    change: &Change<'_>,
    update: &ForgeJobUpdate<'_>,
) -> Result<RecordedJob, LedgerError> {
    let (name, conclusion) = (update.name.map(truncate), update.conclusion.map(truncate));
    let repository = truncate(update.repository);
    let labels: Vec<_> =
        update.labels.iter().take(MAX_LABELS).map(|label| truncate(label)).collect();
    let update = &ForgeJobUpdate {
        name: name.as_deref(),
        conclusion: conclusion.as_deref(),
        repository: &repository,
        labels: &labels,
        ..*update
    };
    let (id, state) = match find(change, update)? {
        None => insert_job(change, update)?,
        Some(known) => update_job(change, update, &known)?,
    };
    let released = match (update.runner, update.microvm) {
        (RunnerMatch::Confirmed, Some(microvm)) => release(change, id, microvm)?,
        _ => Vec::new(),
    };
    Ok(RecordedJob { id, state, released })
}

/// GitHub confirmed which job a microVM has: requeues other jobs that were guessed to be that one.
fn release(
    change: &Change<'_>,
    confirmed: JobId,
    microvm: &str,
) -> Result<Vec<JobId>, LedgerError> {
    const GUESSED: &str = "SELECT id FROM jobs WHERE microvm = ?1 AND guessed AND id <> ?2 LIMIT 1";
    let mut released = Vec::new();
    while let Some(id) = change.first(GUESSED, params![microvm, confirmed], |row| row.get(0))? {
        change.execute(
            "UPDATE jobs SET state = ?2, microvm = NULL, guessed = 0, started_at = NULL,
                 ended_at = NULL, result = NULL, cause = NULL
             WHERE id = ?1",
            params![id, JobState::Queued],
        )?;
        let id: JobId = id;
        let cause = format!("GitHub says that its microVM has job {confirmed} instead");
        change.audit(REQUEUE.action, &id.to_string(), &json!({ "cause": cause }))?;
        released.push(id);
    }
    Ok(released)
}

/// The stored state of a GitHub job.
struct StoredJob {
    id: JobId,
    state: JobState,
    /// Whether Mayfly interrupted it.
    interrupted: bool,
}

fn find(
    change: &Change<'_>,
    update: &ForgeJobUpdate<'_>,
) -> Result<Option<StoredJob>, LedgerError> {
    change.first(
        "SELECT id, state, cause IS NOT NULL AND state = ?3 FROM jobs
         WHERE github_id = ?1 AND attempt = ?2",
        params![update.forge_id, update.attempt, JobState::Running],
        |row| Ok(StoredJob { id: row.get(0)?, state: row.get(1)?, interrupted: row.get(2)? }),
    )
}

/// Returns the state of a job according to GitHub. An interrupted job counts as canceled although
/// GitHub calls it failed, unless it succeeded.
fn new_state(update: &ForgeJobUpdate<'_>, interrupted: bool) -> JobState {
    match (update.state, update.conclusion) {
        (ForgeState::Queued, _) => JobState::Queued,
        (ForgeState::Running, _) => JobState::Running,
        (ForgeState::Completed, Some("cancelled")) => JobState::Cancelled,
        (ForgeState::Completed, Some("success")) => JobState::Finished,
        (ForgeState::Completed, _) if interrupted => JobState::Cancelled,
        (ForgeState::Completed, _) => JobState::Finished,
    }
}

/// Returns the order of a state.
fn rank(state: JobState) -> u8 {
    match state {
        JobState::Queued => 0,
        JobState::Claimed => 1,
        JobState::Running => 2,
        JobState::Finished | JobState::Failed | JobState::Cancelled => 3,
    }
}

/// Returns the number of the job that was just added.
fn newest(change: &Change<'_>) -> Result<JobId, LedgerError> {
    let id = change.first("SELECT max(id) FROM jobs", [], |row| row.get(0))?;
    id.ok_or_else(|| LedgerError::Unknown { what: "job", name: "the newest".to_owned() })
}

fn insert_job(
    change: &Change<'_>,
    update: &ForgeJobUpdate<'_>,
) -> Result<(JobId, JobState), LedgerError> {
    change.execute(
        "INSERT INTO jobs (source, state, github_id, attempt, repository, queued_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            JobSource::Github,
            JobState::Queued,
            update.forge_id,
            update.attempt,
            update.repository,
            change.now
        ],
    )?;
    let id = newest(change)?;
    describe(change, update, id)?;
    let detail = json!({
        "source": "github",
        "pool": update.pool,
        "repository": update.repository,
        "github_id": update.forge_id,
        "attempt": update.attempt,
    });
    change.audit("job.queued", &id.to_string(), &detail)?;
    update_job(change, update, &StoredJob { id, state: JobState::Queued, interrupted: false })
}

fn update_job(
    change: &Change<'_>,
    update: &ForgeJobUpdate<'_>,
    known: &StoredJob,
) -> Result<(JobId, JobState), LedgerError> {
    let StoredJob { id, state: before, interrupted } = *known;
    describe(change, update, id)?;
    let to = new_state(update, interrupted);
    if rank(to) <= rank(before) {
        return Ok((id, before));
    }
    let started = (to == JobState::Running).then_some(change.now);
    let ended = to.is_over().then_some(change.now);
    let result = update.conclusion.map(|conclusion| JobResult::Concluded(conclusion.to_owned()));
    let result = result.map(|result| serde_json::to_string(&result)).transpose();
    let result = result.map_err(|error| LedgerError::Json("a result", error))?;
    change.execute(
        "UPDATE jobs SET state = ?2, started_at = coalesce(started_at, ?3), ended_at = ?4,
             result = coalesce(?5, result)
         WHERE id = ?1",
        params![id, to, started, ended, result],
    )?;
    let action = match to {
        JobState::Running => "job.started",
        JobState::Cancelled => "job.cancelled",
        _ => "job.finished",
    };
    let detail = json!({ "conclusion": update.conclusion, "microvm": update.microvm });
    change.audit(action, &id.to_string(), &detail)?;
    Ok((id, to))
}

/// Updates the description of a job. Missing values keep the known ones.
fn describe(
    change: &Change<'_>,
    update: &ForgeJobUpdate<'_>,
    id: JobId,
) -> Result<(), LedgerError> {
    let labels = (!update.labels.is_empty()).then(|| json!(update.labels).to_string());
    change.execute(
        "UPDATE jobs SET name = coalesce(?2, name), labels = coalesce(?3, labels),
             pool = coalesce(?4, pool), run_id = coalesce(?5, run_id)
         WHERE id = ?1",
        params![id, update.name, labels, update.pool, update.run_id],
    )?;
    // GitHub's information replaces a guess.
    let is_confirmed = update.runner == RunnerMatch::Confirmed;
    change.execute(
        "UPDATE jobs SET microvm = CASE WHEN ?3 AND guessed THEN ?2 ELSE coalesce(?2, microvm) END,
             guessed = CASE WHEN ?3 THEN 0 WHEN ?4 THEN 1 ELSE guessed END
         WHERE id = ?1",
        params![id, update.microvm, is_confirmed, update.runner == RunnerMatch::Guessed],
    )?;
    Ok(())
}
