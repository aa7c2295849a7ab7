//! Changes of jobs.

use rusqlite::params;
use serde_json::json;

use super::open::Change;
use super::{
    Command, ForgeNote, ForgeState, JobId, JobResult, JobState, Ledger, LedgerError, Noted,
    RunnerKnown, Source,
};

/// The longest text of another's that is kept, in characters. GitHub's own names are shorter.
const MAX_TEXT: usize = 256;

/// The most labels of a job that are kept: one more than a runner can have, so that no runner has all
/// labels of a job of which some were cut.
const MAX_LABELS: usize = 101;

/// A text that others wrote, no longer than is kept.
pub fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

/// A step of a job, and the states from which it follows.
struct Step {
    action: &'static str,
    wanted: &'static str,
    from: &'static [JobState],
    to: JobState,
}

const CLAIM: Step = Step {
    action: "job.claimed",
    wanted: "claimed",
    from: &[JobState::Queued],
    to: JobState::Claimed,
};
const START: Step = Step {
    action: "job.started",
    wanted: "started",
    from: &[JobState::Claimed],
    to: JobState::Running,
};
const FINISH: Step = Step {
    action: "job.finished",
    wanted: "finished",
    from: &[JobState::Claimed, JobState::Running],
    to: JobState::Finished,
};
const FAIL: Step = Step {
    action: "job.failed",
    wanted: "failed",
    from: &[JobState::Queued, JobState::Claimed, JobState::Running],
    to: JobState::Failed,
};
const REQUEUE: Step = Step {
    action: "job.requeued",
    wanted: "put back into the queue",
    from: &[JobState::Claimed],
    to: JobState::Queued,
};
const CANCEL: Step = Step {
    action: "job.cancelled",
    wanted: "cancelled",
    from: &[JobState::Queued, JobState::Claimed, JobState::Running],
    to: JobState::Cancelled,
};

impl Ledger {
    /// Queues a command for a pool.
    pub fn submit_local(&mut self, pool: &str, command: &Command) -> Result<JobId, LedgerError> {
        let text = serde_json::to_string(command)
            .map_err(|error| LedgerError::Json("a command", error))?;
        self.change("queue a job", |change| {
            change.execute(
                "INSERT INTO jobs (source, pool, state, command, queued_at)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![Source::Local, pool, JobState::Queued, text, change.now],
            )?;
            let id = newest(change)?;
            let detail = json!({ "source": "local", "pool": pool });
            change.audit("job.queued", &id.to_string(), &detail)?;
            Ok(id)
        })
    }

    /// Takes down what GitHub says of a job; nothing goes back but what was guessed.
    pub fn note_forge_job(&mut self, told: &ForgeNote<'_>) -> Result<Noted, LedgerError> {
        self.change("note a job of GitHub's", |change| note(change, told))
    }

    /// A microVM was chosen for a queued job.
    pub fn claim(&mut self, job: JobId, microvm: &str) -> Result<(), LedgerError> {
        self.change("claim a job", |change| {
            take(change, job, &CLAIM)?;
            change.execute(
                "UPDATE jobs SET microvm = ?2, claimed_at = ?3 WHERE id = ?1",
                params![job, microvm, change.now],
            )?;
            change.audit(CLAIM.action, &job.to_string(), &json!({ "microvm": microvm }))
        })
    }

    /// A claimed job began.
    pub fn start(&mut self, job: JobId) -> Result<(), LedgerError> {
        self.change("start a job", |change| {
            take(change, job, &START)?;
            change.execute(
                "UPDATE jobs SET started_at = ?2 WHERE id = ?1",
                params![job, change.now],
            )?;
            change.audit(START.action, &job.to_string(), &json!({}))
        })
    }

    /// A job ended by itself.
    pub fn finish(&mut self, job: JobId, result: &JobResult) -> Result<(), LedgerError> {
        let text =
            serde_json::to_string(result).map_err(|error| LedgerError::Json("a result", error))?;
        self.change("finish a job", |change| {
            take(change, job, &FINISH)?;
            change.execute(
                "UPDATE jobs SET result = ?2, exit_code = ?3 WHERE id = ?1",
                params![job, text, result.exit_code()],
            )?;
            change.audit(FINISH.action, &job.to_string(), &json!({ "result": result }))
        })
    }

    /// A job can't be begun, or its microVM failed. The exit code is what stands for that; a job of
    /// GitHub's has none.
    pub fn fail(
        &mut self,
        job: JobId,
        cause: &str,
        exit_code: Option<u8>,
    ) -> Result<(), LedgerError> {
        self.change("fail a job", |change| {
            with_cause(change, job, &FAIL, cause)?;
            with_code(change, job, exit_code)
        })
    }

    /// A person ended a job.
    pub fn cancel(
        &mut self,
        job: JobId,
        why: &str,
        exit_code: Option<u8>,
    ) -> Result<(), LedgerError> {
        self.change("cancel a job", |change| {
            with_cause(change, job, &CANCEL, why)?;
            with_code(change, job, exit_code)
        })
    }

    /// A job that was claimed and certainly never began waits again, at its old place.
    pub fn requeue(&mut self, job: JobId, why: &str) -> Result<(), LedgerError> {
        self.change("put back a job", |change| {
            with_cause(change, job, &REQUEUE, why)?;
            change.execute(
                "UPDATE jobs SET requeued = requeued + 1, microvm = NULL, claimed_at = NULL
                 WHERE id = ?1",
                [job],
            )?;
            Ok(())
        })
    }
}

/// Takes a job from one state to another, if that is a step.
fn take(change: &Change<'_>, job: JobId, step: &Step) -> Result<(), LedgerError> {
    let state: Option<JobState> =
        change.first("SELECT state FROM jobs WHERE id = ?1", [job], |row| row.get(0))?;
    let Some(state) = state else {
        return Err(LedgerError::Unknown { what: "job", name: job.to_string() });
    };
    if !step.from.contains(&state) {
        return Err(LedgerError::WrongState {
            what: "job",
            name: job.to_string(),
            state: state.to_string(),
            wanted: step.wanted,
        });
    }
    let ended = step.to.is_over().then_some(change.now);
    change.execute(
        "UPDATE jobs SET state = ?2, ended_at = ?3 WHERE id = ?1",
        params![job, step.to, ended],
    )?;
    if step.to.is_over() {
        wipe(change, job)?;
    }
    Ok(())
}

/// Removes the environment of a command that is over.
fn wipe(change: &Change<'_>, job: JobId) -> Result<(), LedgerError> {
    change.execute(
        "UPDATE jobs SET command = json_set(command, '$.environment', json('[]'))
         WHERE id = ?1 AND command IS NOT NULL",
        [job],
    )?;
    Ok(())
}

fn with_cause(
    change: &Change<'_>,
    job: JobId,
    step: &Step,
    cause: &str,
) -> Result<(), LedgerError> {
    take(change, job, step)?;
    change.execute("UPDATE jobs SET cause = ?2 WHERE id = ?1", params![job, cause])?;
    change.audit(step.action, &job.to_string(), &json!({ "cause": cause }))
}

fn with_code(change: &Change<'_>, job: JobId, code: Option<u8>) -> Result<(), LedgerError> {
    change.execute("UPDATE jobs SET exit_code = ?2 WHERE id = ?1", params![job, code])?;
    Ok(())
}

/// Takes down what is told of a job of GitHub's.
pub(super) fn note(change: &Change<'_>, note: &ForgeNote<'_>) -> Result<Noted, LedgerError> {
    let (name, conclusion) = (note.name.map(cut), note.conclusion.map(cut));
    let repository = cut(note.repository);
    let labels: Vec<_> = note.labels.iter().take(MAX_LABELS).map(|label| cut(label)).collect();
    let note = &ForgeNote {
        name: name.as_deref(),
        conclusion: conclusion.as_deref(),
        repository: &repository,
        labels: &labels,
        ..*note
    };
    let (id, state) = match known(change, note)? {
        None => insert(change, note)?,
        Some(known) => update(change, note, &known)?,
    };
    let released = match (note.runner, note.microvm) {
        (RunnerKnown::Told, Some(microvm)) => release(change, id, microvm)?,
        _ => Vec::new(),
    };
    Ok(Noted { id, state, released })
}

/// GitHub says which job a microVM has: others that were guessed to be that one wait again.
fn release(change: &Change<'_>, its: JobId, microvm: &str) -> Result<Vec<JobId>, LedgerError> {
    const GUESSED: &str = "SELECT id FROM jobs WHERE microvm = ?1 AND guessed AND id <> ?2 LIMIT 1";
    let mut released = Vec::new();
    while let Some(id) = change.first(GUESSED, params![microvm, its], |row| row.get(0))? {
        change.execute(
            "UPDATE jobs SET state = ?2, microvm = NULL, guessed = 0, started_at = NULL,
                 ended_at = NULL, result = NULL, cause = NULL
             WHERE id = ?1",
            params![id, JobState::Queued],
        )?;
        let id: JobId = id;
        let cause = format!("GitHub says that its microVM has job {its} instead");
        change.audit(REQUEUE.action, &id.to_string(), &json!({ "cause": cause }))?;
        released.push(id);
    }
    Ok(released)
}

/// What is known of a job of GitHub's.
struct Known {
    id: JobId,
    state: JobState,
    /// Whether Mayfly told it to end.
    interrupted: bool,
}

fn known(change: &Change<'_>, note: &ForgeNote<'_>) -> Result<Option<Known>, LedgerError> {
    change.first(
        "SELECT id, state, cause IS NOT NULL AND state = ?3 FROM jobs
         WHERE github_id = ?1 AND attempt = ?2",
        params![note.forge_id, note.attempt, JobState::Running],
        |row| Ok(Known { id: row.get(0)?, state: row.get(1)?, interrupted: row.get(2)? }),
    )
}

/// Where a job is by what GitHub says. One that Mayfly told to end counts as cancelled, although
/// GitHub calls it failed; one that succeeded all the same does not.
fn state(note: &ForgeNote<'_>, interrupted: bool) -> JobState {
    match (note.state, note.conclusion) {
        (ForgeState::Queued, _) => JobState::Queued,
        (ForgeState::Running, _) => JobState::Running,
        (ForgeState::Completed, Some("cancelled")) => JobState::Cancelled,
        (ForgeState::Completed, Some("success")) => JobState::Finished,
        (ForgeState::Completed, _) if interrupted => JobState::Cancelled,
        (ForgeState::Completed, _) => JobState::Finished,
    }
}

/// How far a state is on the way.
fn rank(state: JobState) -> u8 {
    match state {
        JobState::Queued => 0,
        JobState::Claimed => 1,
        JobState::Running => 2,
        JobState::Finished | JobState::Failed | JobState::Cancelled => 3,
    }
}

/// The number of the job that was just added.
fn newest(change: &Change<'_>) -> Result<JobId, LedgerError> {
    let id = change.first("SELECT max(id) FROM jobs", [], |row| row.get(0))?;
    id.ok_or_else(|| LedgerError::Unknown { what: "job", name: "the newest".to_owned() })
}

fn insert(change: &Change<'_>, note: &ForgeNote<'_>) -> Result<(JobId, JobState), LedgerError> {
    change.execute(
        "INSERT INTO jobs (source, state, github_id, attempt, repository, queued_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            Source::Github,
            JobState::Queued,
            note.forge_id,
            note.attempt,
            note.repository,
            change.now
        ],
    )?;
    let id = newest(change)?;
    describe(change, note, id)?;
    let detail = json!({
        "source": "github",
        "pool": note.pool,
        "repository": note.repository,
        "github_id": note.forge_id,
        "attempt": note.attempt,
    });
    change.audit("job.queued", &id.to_string(), &detail)?;
    update(change, note, &Known { id, state: JobState::Queued, interrupted: false })
}

fn update(
    change: &Change<'_>,
    note: &ForgeNote<'_>,
    known: &Known,
) -> Result<(JobId, JobState), LedgerError> {
    let Known { id, state: before, interrupted } = *known;
    describe(change, note, id)?;
    let to = state(note, interrupted);
    if rank(to) <= rank(before) {
        return Ok((id, before));
    }
    let began = (to == JobState::Running).then_some(change.now);
    let ended = to.is_over().then_some(change.now);
    let result = note.conclusion.map(|conclusion| JobResult::Concluded(conclusion.to_owned()));
    let result = result.map(|result| serde_json::to_string(&result)).transpose();
    let result = result.map_err(|error| LedgerError::Json("a result", error))?;
    change.execute(
        "UPDATE jobs SET state = ?2, started_at = coalesce(started_at, ?3), ended_at = ?4,
             result = coalesce(?5, result)
         WHERE id = ?1",
        params![id, to, began, ended, result],
    )?;
    let action = match to {
        JobState::Running => "job.started",
        JobState::Cancelled => "job.cancelled",
        _ => "job.finished",
    };
    let detail = json!({ "conclusion": note.conclusion, "microvm": note.microvm });
    change.audit(action, &id.to_string(), &detail)?;
    Ok((id, to))
}

/// Takes down what describes a job; what is not told stays.
fn describe(change: &Change<'_>, note: &ForgeNote<'_>, id: JobId) -> Result<(), LedgerError> {
    let labels = (!note.labels.is_empty()).then(|| json!(note.labels).to_string());
    change.execute(
        "UPDATE jobs SET name = coalesce(?2, name), labels = coalesce(?3, labels),
             pool = coalesce(?4, pool), run_id = coalesce(?5, run_id)
         WHERE id = ?1",
        params![id, note.name, labels, note.pool, note.run_id],
    )?;
    // Whom GitHub names is right; what was only guessed is not kept beside it.
    let told = note.runner == RunnerKnown::Told;
    change.execute(
        "UPDATE jobs SET microvm = CASE WHEN ?3 AND guessed THEN ?2 ELSE coalesce(?2, microvm) END,
             guessed = CASE WHEN ?3 THEN 0 WHEN ?4 THEN 1 ELSE guessed END
         WHERE id = ?1",
        params![id, note.microvm, told, note.runner == RunnerKnown::Guessed],
    )?;
    Ok(())
}
