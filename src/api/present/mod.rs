//! How the daemon's answers read for a person; the terminal and the page only lay them out.
//!
//! Decides words, figures, units and order. The texts may contain untrusted ones (from a guest, a
//! repository, the person who submitted a job): the caller makes them safe.

mod egress;
mod figures;

pub use egress::{DESTINATION_HEADINGS, destinations, traffic, verdict_tone, verdicts};
pub use figures::{ago, brief, bytes, clock, count, millis, moment, ongoing};

use crate::types::{
    BlockerView, Explanation, JobSource, JobState, JobView, PhaseView, PoolView, Time,
};

/// Whether something is good or bad, the worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tone {
    /// Failed or refused.
    Bad,
    /// Needs attention.
    Warning,
    /// In progress.
    Active,
    /// Neither good nor bad.
    Plain,
    /// Succeeded or allowed.
    Good,
}

/// A text, and whether what it says is good or bad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Toned {
    /// The text.
    pub text: String,
    /// The tone.
    pub tone: Tone,
}

/// Returns the state of a job, or its result if it has ended by itself.
pub fn outcome(job: &JobView) -> Toned {
    let success = job.exit_code == Some(0) || job.result.as_deref() == Some("success");
    let tone = match job.state {
        JobState::Queued => Tone::Plain,
        JobState::Claimed | JobState::Running => Tone::Active,
        JobState::Finished if success => Tone::Good,
        JobState::Finished | JobState::Failed => Tone::Bad,
        JobState::Cancelled => Tone::Warning,
    };
    let text = match (job.state, &job.result) {
        (JobState::Finished, Some(result)) => result.clone(),
        (state, _) => state.to_string(),
    };
    Toned { text, tone }
}

/// Returns the name of a job.
pub fn name(job: &JobView) -> &str {
    if job.name.trim().is_empty() { "(no name)" } else { &job.name }
}

/// Returns the origin of a job.
pub fn origin(job: &JobView) -> &str {
    match (&job.repository, job.source) {
        (Some(repository), _) => repository,
        (None, JobSource::Local) => "submitted locally",
        (None, JobSource::Github) => "GitHub",
    }
}

/// Returns how long a job waited, or has waited so far.
pub fn waited(job: &JobView, now: Time) -> String {
    brief(job.started.or(job.ended).unwrap_or(now).since(job.queued))
}

/// Returns how long a job ran, or has run so far.
pub fn ran(job: &JobView, now: Time) -> Option<String> {
    Some(brief(job.ended.unwrap_or(now).since(job.started?)))
}

/// Returns what something waits for, and how much longer.
pub fn reason(blocker: &BlockerView, now: Time) -> String {
    match blocker.until.filter(|until| *until > now) {
        Some(until) => format!("{}; next attempt in {}", blocker.message, brief(until.since(now))),
        None => blocker.message.clone(),
    }
}

/// A fact about a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<'a> {
    /// Its state or result.
    Outcome(Toned),
    /// A text.
    Text(String),
    /// A time in the past.
    Time(Time),
    /// GitHub's ID of the job, and its page there.
    Page(u64, Option<&'a str>),
}

/// Returns the facts about a job, with their names.
pub fn facts(explanation: &Explanation) -> Vec<(&'static str, Fact<'_>)> {
    let job = &explanation.job;
    let text = |text: &str| Fact::Text(text.to_owned());
    let state = if job.state.is_over() { "result" } else { "state" };
    let facts = [
        (state, Some(Fact::Outcome(outcome(job)))),
        ("from", Some(text(origin(job)))),
        ("pool", Some(text(job.pool.as_deref().unwrap_or("none")))),
        ("queued", Some(Fact::Time(job.queued))),
        ("ended", job.ended.map(Fact::Time)),
        ("microVM", job.microvm.as_deref().map(text)),
        ("exit code", job.exit_code.map(|code| Fact::Text(code.to_string()))),
        ("at GitHub", job.github_id.map(|id| Fact::Page(id, job.url.as_deref()))),
        ("evidence", explanation.black_box.as_deref().map(text)),
    ];
    facts.into_iter().filter_map(|(name, fact)| Some((name, fact?))).collect()
}

/// Returns why a job failed, what it was refused, and what it waits for, with labels.
pub fn notes(explanation: &Explanation, now: Time) -> Vec<(&'static str, Toned)> {
    let Explanation { job, blocker, .. } = explanation;
    let (label, tone) = match job.state {
        JobState::Failed => ("Failed", Tone::Bad),
        JobState::Cancelled => ("Cancelled", Tone::Plain),
        JobState::Finished => ("Cause", Tone::Plain),
        // A requeued job keeps the cause of its last attempt.
        _ => ("Last attempt", Tone::Plain),
    };
    let waiting = blocker.as_ref().map(|blocker| reason(blocker, now));
    let notes = [
        (label, tone, job.cause.clone()),
        ("Refused", Tone::Warning, job.warning.clone()),
        ("Waiting", Tone::Warning, waiting),
    ];
    let note = |(label, tone, text): (_, _, Option<_>)| Some((label, Toned { text: text?, tone }));
    notes.into_iter().filter_map(note).collect()
}

/// The headings of the steps.
pub const STEP_HEADINGS: [&str; 4] = ["Phase", "Start (UTC)", "Duration", "Detail"];

/// Returns the rows of a job's steps. The last step of an ended job has no duration.
pub fn steps(explanation: &Explanation, now: Time) -> Vec<[String; 4]> {
    let Explanation { job, phases, .. } = explanation;
    // The job's own microVM is one of the facts already.
    let own = job.microvm.as_ref().map(|microvm| format!("microVM {microvm}"));
    let row = |phase: &PhaseView| {
        let so_far = (!job.state.is_over()).then(|| ongoing(now.since(phase.at)));
        let duration = phase.lasted_ms.map(millis).or(so_far).unwrap_or_default();
        let detail = phase.detail.clone().filter(|_| phase.detail != own).unwrap_or_default();
        [phase.phase.clone(), clock(phase.at), duration, detail]
    };
    phases.iter().map(row).collect()
}

/// Returns the stages of a pool's microVMs, and how many are in each.
pub fn stages(pool: &PoolView) -> [(&'static str, u32); 5] {
    [
        ("busy", pool.busy),
        ("registered", pool.registered),
        ("warm", pool.warm),
        ("booting", pool.booting),
        ("ending", pool.ending),
    ]
}

/// Returns how many microVMs a pool has: `3 of 4: 2 busy, 1 warm`.
pub fn usage(pool: &PoolView) -> String {
    let present = stages(pool).into_iter().filter(|(_, count)| *count > 0);
    let present: Vec<_> = present.map(|(stage, count)| format!("{count} {stage}")).collect();
    match stages(pool).iter().map(|(_, count)| count).sum() {
        0_u32 => format!("none of {}", pool.max),
        used => format!("{used} of {}: {}", pool.max, present.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the explanation of a job with two steps.
    pub(super) fn explanation(state: JobState) -> Explanation {
        let explanation = serde_json::json!({
            "job": {
                "id": 4, "source": "local", "pool": "ci", "state": state, "name": "build",
                "queued": "2026-01-01T00:00:00Z",
            },
            "phases": [
                { "phase": "queued", "at": "2026-01-01T00:00:00Z", "lasted_ms": 2000 },
                { "phase": "destroyed", "at": "2026-01-01T00:00:02Z", "detail": "microVM m-1" },
            ],
        });
        serde_json::from_value(explanation).unwrap()
    }

    #[test]
    fn an_outcome_is_the_state_or_the_result() {
        for (state, result, expected, tone) in [
            (JobState::Running, None, "running", Tone::Active),
            (JobState::Finished, Some("success"), "success", Tone::Good),
            (JobState::Finished, Some("failure"), "failure", Tone::Bad),
            (JobState::Failed, Some("failure"), "failed", Tone::Bad),
        ] {
            let result = result.map(str::to_owned);
            let job = JobView { result, ..explanation(state).job };
            assert_eq!(outcome(&job), Toned { text: expected.to_owned(), tone });
        }
    }

    #[test]
    fn the_last_step_of_an_ended_job_has_no_duration() {
        for (state, last) in [(JobState::Running, "1 min 0 s"), (JobState::Finished, "")] {
            let mut explanation = explanation(state);
            explanation.job.microvm = Some("m-1".to_owned());
            let steps = steps(&explanation, Time(explanation.job.queued.0 + 62_000));
            assert_eq!(steps[0], ["queued", "00:00:00.000", "2.0 s", ""]);
            assert_eq!(steps[1], ["destroyed", "00:00:02.000", last, ""]);
        }
    }

    #[test]
    fn notes_name_the_cause_and_the_blocker_with_its_remaining_time() {
        let mut explanation = explanation(JobState::Queued);
        let (code, message) = ("rate_limit".to_owned(), "GitHub's rate limit".to_owned());
        let until = Some(Time(explanation.job.queued.0 + 60_000));
        explanation.blocker = Some(BlockerView { code, message, until });
        explanation.job.cause = Some("no response".to_owned());
        for (after, waiting) in [
            (15_000, "Waiting: GitHub's rate limit; next attempt in 45 s"),
            (60_000, "Waiting: GitHub's rate limit"),
        ] {
            let notes = notes(&explanation, Time(explanation.job.queued.0 + after));
            let notes = notes.into_iter().map(|(label, note)| format!("{label}: {}", note.text));
            assert_eq!(notes.collect::<Vec<_>>(), ["Last attempt: no response", waiting]);
        }
    }

    #[test]
    fn the_usage_of_a_pool_names_the_stages_that_have_microvms() {
        let mut pool: PoolView = serde_json::from_value(serde_json::json!({
            "name": "ci", "labels": [], "image": "base", "trigger": "none", "min_idle": 1, "max": 4,
            "booting": 0, "warm": 1, "registered": 0, "busy": 2, "ending": 0, "waiting": 0,
        }))
        .unwrap();
        assert_eq!(usage(&pool), "3 of 4: 2 busy, 1 warm");
        (pool.warm, pool.busy) = (0, 0);
        assert_eq!(usage(&pool), "none of 4");
    }
}
