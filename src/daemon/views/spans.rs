//! Builds the trace of a job from the ledger's records of the job and its microVM. Pure.
//!
//! ```text
//! job         from when the daemon learned of it until it ended
//! ├─ queued   until it was assigned to a microVM
//! └─ microvm  from its plan until it ended: it may have been booted ahead
//!    ├─ planned, prepared, booting, ready, claimed, running, finished, …
//! ```

use std::time::SystemTime;

use mayfly_ledger::{JobRecord, MicrovmRecord, PhaseRecord, Time};
use mayfly_telemetry::metrics::NO_POOL;
use mayfly_telemetry::trace::Trace;

/// Builds the trace of a job that has ended. `instance` is the ledger's name. With the job's number
/// it determines the trace id, so every daemon reports the same trace.
pub(super) fn job_trace(
    instance: &str,
    job: &JobRecord,
    result: &'static str,
    microvm: Option<&MicrovmRecord>,
    phases: &[PhaseRecord],
) -> Trace {
    let mut trace = Trace::named(&format!("mayfly/{instance}/job/{}", job.id));
    let begin = job.queued_at;
    let end = job.ended_at.unwrap_or(begin);
    let root = trace.add_span(None, "job", begin.into(), end.into());
    trace.set_attribute("mayfly.job.id", job.id.0);
    trace.set_attribute("mayfly.job.source", job.source.as_str());
    trace.set_attribute("mayfly.job.result", result);
    trace.set_attribute("mayfly.pool", job.pool.as_deref().unwrap_or(NO_POOL));
    for (name, text) in [
        ("vcs.repository.name", job.repository.as_deref()),
        ("mayfly.job.name", job.name.as_deref()),
        ("mayfly.microvm.id", job.microvm.as_deref()),
        ("mayfly.image", microvm.map(|microvm| microvm.image.as_str())),
        ("mayfly.cause", job.cause.as_deref()),
    ] {
        if let Some(text) = text {
            trace.set_attribute(name, text);
        }
    }
    for (name, number) in [
        ("github.job.id", job.forge_id),
        ("github.run.id", job.run_id),
        ("github.job.attempt", job.attempt.map(u64::from)),
        ("mayfly.job.exit_code", job.exit_code.map(u64::from)),
        ("mayfly.job.requeued", (job.requeued > 0).then_some(job.requeued.into())),
    ] {
        if let Some(number) = number {
            trace.set_attribute(name, number);
        }
    }
    if matches!(result, "failed" | "taken_back" | "error") {
        trace.set_error(job.cause.as_deref().unwrap_or("the job failed"));
    }
    let given = job.claimed_at.or(job.started_at).unwrap_or(end);
    trace.add_span(Some(root), "queued", begin.into(), given.into());
    if let Some(microvm) = microvm {
        add_microvm(&mut trace, root, microvm, phases);
    }
    trace
}

fn add_microvm(trace: &mut Trace, root: [u8; 8], microvm: &MicrovmRecord, phases: &[PhaseRecord]) {
    let last = phases.last().map_or(microvm.planned_at, |phase| phase.at);
    let gone: Time = microvm.ended_at.unwrap_or(last);
    let first = phases.first().map_or(microvm.planned_at, |phase| phase.at);
    let begin = SystemTime::from(microvm.planned_at.min(first));
    let around = trace.add_span(Some(root), "microvm", begin, gone.max(last).into());
    trace.set_attribute("mayfly.microvm.id", microvm.id.as_str());
    trace.set_attribute("mayfly.pool", microvm.pool.as_str());
    trace.set_attribute("mayfly.image", microvm.image.as_str());
    if microvm.outcome.as_deref() == Some("failed") {
        trace.set_error(microvm.cause.as_deref().unwrap_or("the microVM failed"));
    }
    for (index, phase) in phases.iter().enumerate() {
        let end = phases.get(index + 1).map_or(gone, |next| next.at);
        trace.add_span(Some(around), phase.phase.as_str(), phase.at.into(), end.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_ledger::{JobId, JobSource, JobState};

    fn job() -> JobRecord {
        JobRecord {
            id: JobId(7),
            source: JobSource::Local,
            pool: Some("small".to_owned()),
            state: JobState::Failed,
            command: None,
            forge_id: None,
            run_id: None,
            attempt: None,
            repository: None,
            name: None,
            labels: Vec::new(),
            microvm: Some("m-1".to_owned()),
            requeued: 0,
            queued_at: Time(5000),
            claimed_at: Some(Time(5100)),
            started_at: Some(Time(5200)),
            ended_at: Some(Time(9000)),
            result: None,
            exit_code: Some(125),
            cause: Some("its microVM is gone".to_owned()),
        }
    }

    fn microvm() -> MicrovmRecord {
        MicrovmRecord {
            id: "m-1".to_owned(),
            pool: "small".to_owned(),
            image: "base@abc".to_owned(),
            phase: "failed".to_owned(),
            planned_at: Time(1000),
            ended_at: Some(Time(9100)),
            outcome: Some("failed".to_owned()),
            cause: Some("the guest's kernel panicked".to_owned()),
            black_box: None,
        }
    }

    fn phase(event: u64, phase: &str, at: i64) -> PhaseRecord {
        PhaseRecord { event, phase: phase.to_owned(), elapsed_ms: 0.0, at: Time(at) }
    }

    #[test]
    fn each_phase_is_a_span_of_its_microvm_that_is_one_of_its_job() {
        let phases =
            [phase(1, "planned", 1010), phase(2, "booting", 1020), phase(4, "ready", 3000)];
        let trace = job_trace("abcdef", &job(), "error", Some(&microvm()), &phases);
        let spans: Vec<_> = trace
            .spans
            .iter()
            .map(|span| {
                let parent = trace.spans.iter().find(|other| Some(other.id) == span.parent);
                let parent = parent.map_or("", |parent| &parent.name);
                (span.name.as_str(), parent, Time::from(span.start).0, Time::from(span.end).0)
            })
            .collect();
        let expected = [
            ("job", "", 5000, 9000),
            ("queued", "job", 5000, 5100),
            ("microvm", "job", 1000, 9100),
            ("planned", "microvm", 1010, 1020),
            ("booting", "microvm", 1020, 3000),
            ("ready", "microvm", 3000, 9100),
        ];
        assert_eq!(spans, expected);
        assert_eq!(trace.spans[0].error.as_deref(), Some("its microVM is gone"));
        assert_eq!(trace.spans[2].error.as_deref(), Some("the guest's kernel panicked"));
        let image = ("mayfly.image", "base@abc".into());
        assert!(trace.spans[0].attributes.contains(&image), "{:?}", trace.spans[0]);
    }

    #[test]
    fn a_job_has_one_trace_id_per_ledger() {
        let trace = job_trace("abcdef", &job(), "error", Some(&microvm()), &[]);
        assert_eq!(trace, job_trace("abcdef", &job(), "error", Some(&microvm()), &[]));
        assert_ne!(trace.id, job_trace("ghijkl", &job(), "error", None, &[]).id);
        let cancelled = JobRecord { microvm: None, claimed_at: None, started_at: None, ..job() };
        let trace = job_trace("abcdef", &cancelled, "cancelled", None, &[]);
        let names: Vec<_> = trace.spans.iter().map(|span| span.name.as_str()).collect();
        assert_eq!(names, ["job", "queued"]);
        assert_eq!(Time::from(trace.spans[1].end), Time(9000));
        assert_eq!(trace.spans[0].error, None);
    }
}
