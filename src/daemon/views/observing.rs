//! What is told of all this: metrics, a trace of each job, and what lines of the log are about.
//!
//! This is the only place of the daemon that measures. What happened is read from the audit log,
//! which has every change of the ledger: it is counted once, whoever made it, and what is not
//! there did not happen. How things are is shown after decisions. Only what a microVM says of its
//! own failure and of its egress is taken from its events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::explaining::blocker_view;
use super::sight::stage;
use super::{Look, spans};
use crate::config::Settings;
use crate::daemon::backlog::TAKEN_BACK;
use crate::daemon::decide::{Blocker, PoolId, Stage};
use crate::daemon::error::DaemonError;
use crate::daemon::fleet::Microvm;
use crate::daemon::millis::Millis;
use crate::egress::policy::{Refused, missed_of};
use crate::ledger::{Job, JobId, JobResult, JobState, Ledger, LedgerError, Reader, Time};
use crate::shepherd::event::{Event, Happened, Outcome};
use crate::telemetry::metrics::{self, NO_POOL, OTHER};
use crate::telemetry::{Handle, otlp};

/// Between two times of showing how things are.
const SHOW: Duration = Duration::from_millis(250);
/// The most causes of failures that are told apart: what a shepherd says is bounded here.
const CAUSES: usize = 64;

const STAGES: [Stage; 7] = [
    Stage::Booting,
    Stage::Warm,
    Stage::Assigned,
    Stage::Registering,
    Stage::Registered,
    Stage::Busy,
    Stage::Ending,
];

/// What measuring remembers.
pub(in crate::daemon) struct Observer {
    metrics: Handle,
    traces: Option<otlp::Sender>,
    /// The ledger's name, which makes a job's number one that no other daemon has.
    instance: String,
    /// The last entry of the audit log that was counted.
    counted: u64,
    next_show: Millis,
    /// The pools that were shown last, and what jobs waited for.
    pools: BTreeSet<String>,
    waits: BTreeMap<(String, String), u32>,
    causes: BTreeSet<String>,
    /// GitHub's address, which says what runners need.
    server: Option<String>,
}

impl Observer {
    /// Counts from here on. Where traces are wanted, what takes them to their collector is beside
    /// it, to be run.
    pub(super) fn new(
        settings: &Settings,
        ledger: &Ledger,
        instance: &str,
    ) -> Result<(Self, Option<otlp::Exporter>), DaemonError> {
        let otlp = settings.telemetry.otlp.as_ref();
        let collector = otlp.map(|otlp| otlp.collector.clone());
        let exporting = collector.map(|collector| otlp::exporter(collector, instance)).transpose();
        let (traces, exporter) = exporting.map_err(DaemonError::Collector)?.unzip();
        let observer = Self {
            metrics: crate::telemetry::install(),
            traces,
            instance: instance.to_owned(),
            counted: ledger.reader().audit_end()?,
            next_show: Millis(0),
            pools: BTreeSet::new(),
            waits: BTreeMap::new(),
            causes: BTreeSet::new(),
            server: settings.github.as_ref().map(|github| github.server.clone()),
        };
        Ok((observer, exporter))
    }

    fn cause(&mut self, cause: &str) -> String {
        if self.causes.len() < CAUSES {
            self.causes.insert(cause.to_owned());
        }
        if self.causes.contains(cause) { cause.to_owned() } else { OTHER.to_owned() }
    }
}

/// An entry of the audit log, as far as it counts.
struct Entry {
    action: String,
    subject: String,
    detail: Value,
}

impl Observer {
    /// Counts what happened since the last time, and shows how things are. Gives when to come back,
    /// even if nothing happens.
    pub(super) fn observe(
        &mut self,
        look: Look<'_>,
        reader: &Reader,
    ) -> Result<Option<Millis>, DaemonError> {
        let now = look.clock.now();
        self.count(reader)?;
        if now < self.next_show {
            return Ok(Some(self.next_show));
        }
        self.next_show = now + SHOW;
        self.show_gauges(look);
        self.metrics.tidy();
        Ok(None)
    }

    fn count(&mut self, reader: &Reader) -> Result<(), DaemonError> {
        let mut entries = Vec::new();
        let mut last = self.counted;
        reader.audit_lines(last, |line| {
            last = line.sequence;
            let detail = serde_json::from_str(&line.detail).unwrap_or_default();
            let (action, subject) = (line.action.clone(), line.subject.clone());
            entries.push(Entry { action, subject, detail });
            Ok::<_, LedgerError>(())
        })?;
        self.counted = last;
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

    /// Tells the trace of a job, once all of it is over.
    fn trace(&self, job: JobId, reader: &Reader) -> Result<(), DaemonError> {
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
        traces.send(spans::of(&self.instance, &job, result, microvm.as_ref(), &phases));
        Ok(())
    }

    fn show_gauges(&mut self, look: Look<'_>) {
        metrics::BUILD.set([env!("CARGO_PKG_VERSION")], 1.0);
        metrics::STARTED.set([], Duration::from_millis(look.clock.started().0).as_secs_f64());
        metrics::DRAINING.set([], f64::from(u8::from(look.draining)));
        show_budget(look);
        self.show_pools(look);
        self.show_waiting(look);
    }

    fn show_pools(&mut self, look: Look<'_>) {
        let mut stages: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for microvm in look.fleet.iter() {
            *stages.entry((microvm.pool_name(), stage(microvm.stage()))).or_default() += 1;
        }
        let configured: BTreeMap<&str, _> =
            look.pools.iter().map(|(_, pool)| (pool.name.as_str(), pool)).collect();
        let names: BTreeSet<&str> =
            configured.keys().copied().chain(stages.keys().map(|(pool, _)| *pool)).collect();
        let before = std::mem::take(&mut self.pools);
        // One that is gone has nothing any more.
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
            begin(name);
        }
        self.pools = names.into_iter().map(str::to_owned).collect();
    }

    fn show_waiting(&mut self, look: Look<'_>) {
        let mut waits = BTreeMap::new();
        let mut oldest: BTreeMap<PoolId, Millis> = BTreeMap::new();
        for waiting in look.backlog.waiting() {
            let Some(pool) = look.pools.get(waiting.pool()) else { continue };
            let reason = look.blockers.get(&waiting.pool());
            let reason = reason
                .map_or_else(|| "deciding".to_owned(), |why| blocker_view(why, look.clock).code);
            *waits.entry((pool.name.to_string(), reason)).or_default() += waiting.count();
            // They come oldest first.
            oldest.entry(waiting.pool()).or_insert(waiting.since());
        }
        for (pool, reason) in self.waits.keys().filter(|key| !waits.contains_key(*key)) {
            metrics::JOBS_WAITING.set([pool, reason], 0.0);
        }
        for ((pool, reason), count) in &waits {
            metrics::JOBS_WAITING.set([pool, reason], f64::from(*count));
        }
        self.waits = waits;
        let now = look.clock.now();
        for (id, pool) in look.pools.iter() {
            let since = oldest.get(&id).map(|since| now.since(*since)).unwrap_or_default();
            metrics::OLDEST_WAIT.set([pool.name.as_str()], since.as_secs_f64());
        }
    }

    /// Counts what a microVM says of its own failure and of its egress.
    pub(in crate::daemon) fn event(&mut self, microvm: &Microvm, event: &Event) {
        match &event.happened {
            // What the daemon ends is no failure.
            Happened::Ended(Outcome::Failed(report)) if microvm.ended_for().is_none() => {
                // One that was killed can't say more than how far it came.
                let phase = report.phase.min(microvm.phase()).to_string();
                let cause = self.cause(&report.cause);
                metrics::FAILURES.add([microvm.pool_name(), &phase, &cause], 1);
            }
            Happened::Egress(report) => {
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
                let refused =
                    refused.map(|row| Refused::of(&row.host, row.port, row.cause.as_deref()));
                if let Some(why) = server.and_then(|server| missed_of(server, refused)) {
                    tracing::warn!("{why}");
                    metrics::NEEDS_REFUSED.add([pool], 1);
                }
            }
            _ => {}
        }
    }

    /// Counts a microVM that had no shepherd yet.
    pub(in crate::daemon) fn not_started(pool: &str, why: &Blocker) {
        let cause = if matches!(why, Blocker::Image(_)) { "image" } else { "not_started" };
        metrics::FAILURES.add([pool, "planned", cause], 1);
    }
}

/// Counts a step of a job; gives it if it is over.
fn count_job(entry: &Entry, step: &str, reader: &Reader) -> Result<Option<JobId>, DaemonError> {
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

/// Counts a step of a microVM; gives its job if it is gone.
fn count_microvm(entry: &Entry, step: &str, reader: &Reader) -> Result<Option<JobId>, DaemonError> {
    let Some(microvm) = reader.microvm(&entry.subject)? else { return Ok(None) };
    match step {
        "planned" => metrics::MICROVMS_PLANNED.add([&microvm.pool], 1),
        "phase" => {
            let phases = reader.phases(&microvm.id)?;
            let began = |phase: &&[crate::ledger::Phase]| entry.detail["phase"] == phase[1].phase;
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

fn count_registration(entry: &Entry, step: &str, reader: &Reader) -> Result<(), DaemonError> {
    let known = reader.registration(&entry.subject)?;
    // A name that GitHub never had is deleted, too, in the ledger only.
    if let Some(known) = known.filter(|known| known.runner_id.is_some())
        && step != "intended"
    {
        metrics::REGISTRATIONS.add([&known.pool, step], 1);
    }
    Ok(())
}

fn show_budget(look: Look<'_>) {
    let (used, host) = (look.fleet.used(), &look.settings.host);
    metrics::BUDGET_PROCESSORS.set([], host.cpus.into());
    metrics::BUDGET_PROCESSORS_USED.set([], used.processors.into());
    metrics::BUDGET_MEMORY.set([], bytes(host.memory.0));
    metrics::BUDGET_MEMORY_USED.set([], bytes(used.memory));
}

/// Shows what has not happened yet in a pool: what is not there can't be seen to grow.
fn begin(pool: &str) {
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

/// How a job came out, in one of a few words.
fn result(job: &Job) -> &'static str {
    match (job.state, &job.result) {
        (JobState::Cancelled, _) => "cancelled",
        (JobState::Failed, _) if is_taken_back(job) => "taken_back",
        (JobState::Finished, Some(JobResult::Exited(0))) => "succeeded",
        (JobState::Finished, Some(JobResult::Exited(_) | JobResult::Signalled(_))) => "failed",
        (JobState::Finished, Some(JobResult::Concluded(conclusion))) => match conclusion.as_str() {
            "success" | "neutral" => "succeeded",
            "skipped" => "skipped",
            "cancelled" => "cancelled",
            _ => "failed",
        },
        _ => "error",
    }
}

/// Whether GitHub took the job from its runner.
fn is_taken_back(job: &Job) -> bool {
    job.cause.as_ref().is_some_and(|cause| cause.starts_with(TAKEN_BACK))
}

fn between(from: Time, to: Time) -> Duration {
    Duration::from_millis(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default())
}

#[allow(clippy::cast_precision_loss, reason = "no host has so much memory")]
fn bytes(number: u64) -> f64 {
    number as f64
}
