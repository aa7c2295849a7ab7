//! Metrics, and a trace of each job.
//!
//! The only place in the daemon that measures. Counters come from the audit log, which has every
//! change of the ledger: each change counts once, whichever part made it. Gauges are set after
//! decisions. Only a microVM's own failure and its egress come from its events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::explanation::blocker_view;
use super::snapshot::stage;
use super::{DaemonView, spans};
use crate::backlog::TAKEN_BACK;
use crate::decide::{Blocker, PoolId, Stage};
use crate::error::DaemonError;
use crate::fleet::Microvm;
use crate::time::Millis;
use mayfly_config::Settings;
use mayfly_egress::policy::{RefusedDestination, explain_missing_for};
use mayfly_ledger::{
    JobId, JobRecord, JobResult, JobState, Ledger, LedgerError, LedgerReader, Time,
};
use mayfly_shepherd::event::{Event, EventKind, JobOutcome};
use mayfly_telemetry::metrics::{self, NO_POOL, OTHER};
use mayfly_telemetry::{MetricsHandle, otlp};

/// Time between two updates of the gauges.
const GAUGE_INTERVAL: Duration = Duration::from_millis(250);
/// The maximum number of distinct failure causes: shepherds report them, so they are limited here.
const MAX_CAUSES: usize = 64;

const STAGES: [Stage; 7] = [
    Stage::Booting,
    Stage::Warm,
    Stage::Assigned,
    Stage::Registering,
    Stage::Registered,
    Stage::Busy,
    Stage::Ending,
];

/// The state of the metrics and traces.
pub(crate) struct Observer {
    metrics: MetricsHandle,
    traces: Option<otlp::TraceSender>,
    /// The ledger's name. With a job's number it is globally unique.
    instance: String,
    /// The last entry of the audit log that was counted.
    last_counted: u64,
    next_gauges_at: Millis,
    /// The pools and wait reasons of the last gauge update.
    pools: BTreeSet<String>,
    waits: BTreeMap<(String, String), u32>,
    causes: BTreeSet<String>,
    /// GitHub's address, which determines what runners need.
    server: Option<String>,
}

impl Observer {
    /// Counts from now on. If traces are configured, also returns their exporter, which the caller
    /// runs.
    pub(super) fn new(
        settings: &Settings,
        ledger: &Ledger,
        instance: &str,
    ) -> Result<(Self, Option<otlp::TraceExporter>), DaemonError> {
        let otlp = settings.telemetry.otlp.as_ref();
        let collector = otlp.map(|otlp| otlp.collector.clone());
        let exporting = collector.map(|collector| otlp::exporter(collector, instance)).transpose();
        let (traces, exporter) = exporting.map_err(DaemonError::Collector)?.unzip();
        let observer = Self {
            metrics: mayfly_telemetry::install(),
            traces,
            instance: instance.to_owned(),
            last_counted: ledger.reader().audit_end()?,
            next_gauges_at: Millis(0),
            pools: BTreeSet::new(),
            waits: BTreeMap::new(),
            causes: BTreeSet::new(),
            server: settings.github.as_ref().map(|github| github.target.origin.clone()),
        };
        Ok((observer, exporter))
    }

    fn cause(&mut self, cause: &str) -> String {
        if self.causes.len() < MAX_CAUSES {
            self.causes.insert(cause.to_owned());
        }
        if self.causes.contains(cause) { cause.to_owned() } else { OTHER.to_owned() }
    }
}

/// The counted fields of an audit log entry.
struct AuditEntry {
    action: String,
    subject: String,
    detail: Value,
}

impl Observer {
    /// Counts what happened since the last call, and sets the gauges. Returns when to run again,
    /// even if nothing happens.
    pub(super) fn observe(
        &mut self,
        view: DaemonView<'_>,
        reader: &LedgerReader,
    ) -> Result<Option<Millis>, DaemonError> {
        let now = view.clock.now();
        self.count(reader)?;
        if now < self.next_gauges_at {
            return Ok(Some(self.next_gauges_at));
        }
        self.next_gauges_at = now + GAUGE_INTERVAL;
        self.set_gauges(view);
        self.metrics.run_upkeep();
        Ok(None)
    }

    fn count(&mut self, reader: &LedgerReader) -> Result<(), DaemonError> {
        let mut entries = Vec::new();
        let mut last = self.last_counted;
        reader.audit_entries(last, |line| {
            last = line.sequence;
            let detail = serde_json::from_str(&line.detail).unwrap_or_default();
            let (action, subject) = (line.action.clone(), line.subject.clone());
            entries.push(AuditEntry { action, subject, detail });
            Ok::<_, LedgerError>(())
        })?;
        self.last_counted = last;
        let mut over = BTreeSet::new();
        for entry in &entries {
            match entry.action.split_once('.') {
                Some(("job", step)) => over.extend(count_job(entry, step, reader)?),
                Some(("microvm", step)) => over.extend(count_microvm(entry, step, reader)?),
                Some(("registration", step)) => count_registration(entry, step, reader)?,
                _ => {}
            }
        }
        for job in over {
            self.trace(job, reader)?;
        }
        Ok(())
    }

    /// Sends the trace of a job once the job and its microVM have ended.
    fn trace(&self, job: JobId, reader: &LedgerReader) -> Result<(), DaemonError> {
        let Some(traces) = &self.traces else { return Ok(()) };
        let Some(job) = reader.job(job)?.filter(|job| job.state.is_over()) else { return Ok(()) };
        let microvm = match &job.microvm {
            Some(id) => reader.microvm(id)?,
            None => None,
        };
        if microvm.as_ref().is_some_and(|microvm| microvm.ended_at.is_none()) {
            return Ok(());
        }
        let phases = match &microvm {
            Some(microvm) => reader.phases(&microvm.id)?,
            None => Vec::new(),
        };
        let result = result(&job);
        traces.send(spans::job_trace(&self.instance, &job, result, microvm.as_ref(), &phases));
        Ok(())
    }

    fn set_gauges(&mut self, view: DaemonView<'_>) {
        metrics::BUILD.set([env!("CARGO_PKG_VERSION")], 1.0);
        metrics::STARTED.set([], Duration::from_millis(view.clock.started().0).as_secs_f64());
        metrics::DRAINING.set([], f64::from(u8::from(view.draining)));
        set_budget(view);
        self.set_pools(view);
        self.set_waiting(view);
    }

    fn set_pools(&mut self, view: DaemonView<'_>) {
        let mut stages: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for microvm in view.fleet.iter() {
            *stages.entry((microvm.pool_name(), stage(microvm.stage()))).or_default() += 1;
        }
        let configured: BTreeMap<&str, _> =
            view.pools.iter().map(|(_, pool)| (pool.name.as_str(), pool)).collect();
        let names: BTreeSet<&str> =
            configured.keys().copied().chain(stages.keys().map(|(pool, _)| *pool)).collect();
        let before = std::mem::take(&mut self.pools);
        // A removed pool has zero of everything.
        for name in before.iter().map(String::as_str).chain(names.iter().copied()) {
            for stage in STAGES.map(stage) {
                let count = stages.get(&(name, stage)).copied().unwrap_or_default();
                metrics::MICROVMS.set([name, stage], count.into());
            }
            let (max, min_idle) =
                configured.get(name).map_or((0, 0), |pool| (pool.max, pool.min_idle));
            metrics::POOL_MAX.set([name], max.into());
            metrics::POOL_MIN_IDLE.set([name], min_idle.into());
        }
        for name in names.iter().filter(|name| !before.contains(**name)) {
            init_counters(name);
        }
        self.pools = names.into_iter().map(str::to_owned).collect();
    }

    fn set_waiting(&mut self, view: DaemonView<'_>) {
        let mut waits = BTreeMap::new();
        let mut oldest: BTreeMap<PoolId, Millis> = BTreeMap::new();
        for waiting in view.backlog.waiting() {
            let Some(pool) = view.pools.get(waiting.pool()) else { continue };
            let reason = view.blockers.get(&waiting.pool());
            let reason = reason
                .map_or_else(|| "deciding".to_owned(), |why| blocker_view(why, view.clock).code);
            *waits.entry((pool.name.to_string(), reason)).or_default() += waiting.count();
            // The list is sorted oldest first.
            oldest.entry(waiting.pool()).or_insert(waiting.since());
        }
        for (pool, reason) in self.waits.keys().filter(|key| !waits.contains_key(*key)) {
            metrics::JOBS_WAITING.set([pool, reason], 0.0);
        }
        for ((pool, reason), count) in &waits {
            metrics::JOBS_WAITING.set([pool, reason], f64::from(*count));
        }
        self.waits = waits;
        let now = view.clock.now();
        for (id, pool) in view.pools.iter() {
            let since = oldest.get(&id).map(|since| now.since(*since)).unwrap_or_default();
            metrics::OLDEST_WAIT.set([pool.name.as_str()], since.as_secs_f64());
        }
    }

    /// Counts a microVM's failure and egress.
    pub(crate) fn record_event(&mut self, microvm: &Microvm, event: &Event) {
        match &event.kind {
            // If the daemon ended it, it is not a failure.
            EventKind::Ended(JobOutcome::Failed(report)) if microvm.end_reason().is_none() => {
                // A killed shepherd reports `Failed`; its last phase says how far it came.
                let phase = report.phase.min(microvm.phase()).to_string();
                let cause = self.cause(&report.cause);
                metrics::FAILURES.add([microvm.pool_name(), &phase, &cause], 1);
            }
            EventKind::Egress(report) => {
                let pool = microvm.pool_name();
                for row in &report.rows {
                    let known = ["allowed", "refused", "would-refuse"].into_iter();
                    let verdict = known.into_iter().find(|known| row.verdict == *known);
                    let verdict = verdict.unwrap_or(OTHER);
                    metrics::EGRESS.add([pool, verdict], row.connections);
                    metrics::EGRESS_BYTES.add([pool, "up"], row.up);
                    metrics::EGRESS_BYTES.add([pool, "down"], row.down);
                }
                let server = self.server.as_deref().filter(|_| microvm.runner().is_some());
                let refused = report.rows.iter().filter(|row| row.verdict == "refused");
                let refused = refused
                    .map(|row| RefusedDestination::new(&row.host, row.port, row.cause.as_deref()));
                if let Some(why) = server.and_then(|server| explain_missing_for(server, refused)) {
                    tracing::warn!("{why}");
                    metrics::NEEDS_REFUSED.add([pool], 1);
                }
            }
            _ => {}
        }
    }

    /// Counts a failure of a microVM without a shepherd.
    pub(crate) fn record_start_failure(pool: &str, why: &Blocker) {
        let cause = if matches!(why, Blocker::Image(_)) { "image" } else { "not_started" };
        metrics::FAILURES.add([pool, "planned", cause], 1);
    }
}

/// Counts a step of a job. Returns the job if it has ended.
fn count_job(
    entry: &AuditEntry,
    step: &str,
    reader: &LedgerReader,
) -> Result<Option<JobId>, DaemonError> {
    let Ok(number) = entry.subject.parse() else { return Ok(None) };
    let Some(job) = reader.job(JobId(number))? else { return Ok(None) };
    let (pool, source) = (job.pool.as_deref().unwrap_or(NO_POOL), job.source.as_str());
    match step {
        "queued" => metrics::JOBS_QUEUED.add([pool, source], 1),
        "requeued" => metrics::JOBS_REQUEUED.add([pool], 1),
        "started" => {
            if let Some(started) = job.started_at {
                metrics::JOB_WAIT.record([pool, source], between(job.queued_at, started));
            }
        }
        "finished" | "failed" | "cancelled" => {
            metrics::JOBS_ENDED.add([pool, source, result(&job)], 1);
            if let Some((started, ended)) = job.started_at.zip(job.ended_at) {
                metrics::JOB_DURATION.record([pool, source], between(started, ended));
            }
            return Ok(Some(job.id));
        }
        _ => {}
    }
    Ok(None)
}

/// Counts a step of a microVM. Returns its job if the microVM has ended.
fn count_microvm(
    entry: &AuditEntry,
    step: &str,
    reader: &LedgerReader,
) -> Result<Option<JobId>, DaemonError> {
    let Some(microvm) = reader.microvm(&entry.subject)? else { return Ok(None) };
    match step {
        "planned" => metrics::MICROVMS_PLANNED.add([&microvm.pool], 1),
        "phase" => {
            let phases = reader.phases(&microvm.id)?;
            let began =
                |phase: &&[mayfly_ledger::PhaseRecord]| entry.detail["phase"] == phase[1].phase;
            if let Some([before, next]) = phases.windows(2).find(began) {
                let lasted = (next.elapsed_ms - before.elapsed_ms).max(0.0) / 1e3;
                let lasted = Duration::try_from_secs_f64(lasted).unwrap_or_default();
                metrics::PHASE.record([&microvm.pool, &before.phase], lasted);
            }
        }
        "ended" => {
            let outcome = entry.detail["outcome"].as_str().unwrap_or(OTHER);
            metrics::MICROVMS_ENDED.add([&microvm.pool, outcome], 1);
            return Ok(reader.job_of(&microvm.id)?.map(|job| job.id));
        }
        _ => {}
    }
    Ok(None)
}

fn count_registration(
    entry: &AuditEntry,
    step: &str,
    reader: &LedgerReader,
) -> Result<(), DaemonError> {
    let known = reader.registration(&entry.subject)?;
    // Skip names that GitHub never registered.
    if let Some(known) = known.filter(|known| known.runner_id.is_some())
        && step != "intended"
    {
        metrics::REGISTRATIONS.add([&known.pool, step], 1);
    }
    Ok(())
}

fn set_budget(view: DaemonView<'_>) {
    let (used, host) = (view.fleet.used(), &view.settings.host);
    metrics::BUDGET_PROCESSORS.set([], host.cpus.into());
    metrics::BUDGET_PROCESSORS_USED.set([], used.processors.into());
    metrics::BUDGET_MEMORY.set([], bytes(host.memory.0));
    metrics::BUDGET_MEMORY_USED.set([], bytes(used.memory));
}

/// Sets counters of a new pool to zero, so that their first increase is visible.
fn init_counters(pool: &str) {
    for source in ["local", "github"] {
        for result in ["succeeded", "failed", "cancelled", "taken_back", "error"] {
            metrics::JOBS_ENDED.add([pool, source, result], 0);
        }
    }
    for outcome in ["ended", "failed"] {
        metrics::MICROVMS_ENDED.add([pool, outcome], 0);
    }
    metrics::JOBS_REQUEUED.add([pool], 0);
}

/// Returns the result of a job as a metric label.
fn result(job: &JobRecord) -> &'static str {
    match (job.state, &job.result) {
        (JobState::Cancelled, _) => "cancelled",
        (JobState::Failed, _) if is_taken_back(job) => "taken_back",
        (JobState::Finished, Some(JobResult::Exited(0))) => "succeeded",
        (JobState::Finished, Some(JobResult::Exited(_) | JobResult::Signaled(_))) => "failed",
        (JobState::Finished, Some(JobResult::Concluded(conclusion))) => match conclusion.as_str() {
            "success" | "neutral" => "succeeded",
            "skipped" => "skipped",
            "cancelled" => "cancelled",
            _ => "failed",
        },
        _ => "error",
    }
}

/// Returns whether GitHub took the job back from its runner.
fn is_taken_back(job: &JobRecord) -> bool {
    job.cause.as_ref().is_some_and(|cause| cause.starts_with(TAKEN_BACK))
}

fn between(from: Time, to: Time) -> Duration {
    Duration::from_millis(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default())
}

#[allow(clippy::cast_precision_loss, reason = "no host has so much memory")]
fn bytes(number: u64) -> f64 {
    number as f64
}
