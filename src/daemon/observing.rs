//! What is told of all this: metrics, a trace of each job, and what lines of the log are about.
//!
//! This is the only place of the daemon that measures. What happened is read from the audit log,
//! which has every change of the ledger: it is counted once, whoever made it, and what is not
//! there did not happen. How things are is shown after decisions. Only what a microVM says of its
//! own failure and of its egress is taken from its events.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::answering::stage;
use super::decide::{Blocker, Load, MachineKey, Stage};
use super::error::DaemonError;
use super::explaining::blocker_view;
use super::happening::Happening;
use super::microvm::{Microvm, Work};
use super::millis::Millis;
use super::spans;
use super::world::World;
use crate::config::Telemetry;
use crate::ledger::{Job, JobId, JobResult, JobState, Ledger, LedgerError, Time};
use crate::shepherd::event::{Event, Happened, Outcome};
use crate::shepherd::plan::Id;
use crate::telemetry::metrics::{self, NO_POOL, OTHER};
use crate::telemetry::{Handle, log, otlp};

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
pub(super) struct Observer {
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
}

impl Observer {
    /// Counts from here on. Where traces are wanted, what takes them to their collector is beside
    /// it, to be run.
    pub(super) fn new(
        settings: &Telemetry,
        ledger: &Ledger,
        instance: &str,
    ) -> Result<(Self, Option<otlp::Exporter>), DaemonError> {
        let collector = settings.otlp.as_ref().map(|otlp| otlp.collector.clone());
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

impl World {
    /// Counts what happened since the last time, and shows how things are. Gives when to come back,
    /// even if nothing happens.
    pub(super) fn observe(&mut self, now: Millis) -> Result<Option<Millis>, DaemonError> {
        self.count()?;
        if now < self.observer.next_show {
            return Ok(Some(self.observer.next_show));
        }
        self.observer.next_show = now + SHOW;
        self.show_gauges(now);
        self.observer.metrics.tidy();
        Ok(None)
    }

    fn count(&mut self) -> Result<(), DaemonError> {
        let mut entries = Vec::new();
        let mut last = self.observer.counted;
        self.ledger.reader().audit_lines(last, |line| {
            last = line.sequence;
            let detail = serde_json::from_str(&line.detail).unwrap_or_default();
            let (action, subject) = (line.action.clone(), line.subject.clone());
            entries.push(Entry { action, subject, detail });
            Ok::<_, LedgerError>(())
        })?;
        self.observer.counted = last;
        let mut over = BTreeSet::new();
        for entry in &entries {
            match entry.action.split_once('.') {
                Some(("job", step)) => over.extend(self.count_job(entry, step)?),
                Some(("microvm", step)) => over.extend(self.count_microvm(entry, step)?),
                Some(("registration", step)) => self.count_registration(entry, step)?,
                _ => {}
            }
        }
        for job in over {
            self.trace(job)?;
        }
        Ok(())
    }

    /// Counts a step of a job; gives it if it is over.
    fn count_job(&self, entry: &Entry, step: &str) -> Result<Option<JobId>, DaemonError> {
        let Ok(number) = entry.subject.parse() else { return Ok(None) };
        let Some(job) = self.ledger.reader().job(JobId(number))? else { return Ok(None) };
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
    fn count_microvm(&self, entry: &Entry, step: &str) -> Result<Option<JobId>, DaemonError> {
        let reader = self.ledger.reader();
        let Some(microvm) = reader.microvm(&entry.subject)? else { return Ok(None) };
        match step {
            "planned" => metrics::MICROVMS_PLANNED.add([&microvm.pool], 1),
            "phase" => {
                let phases = reader.phases(&microvm.id)?;
                let began =
                    |phase: &&[crate::ledger::Phase]| entry.detail["phase"] == phase[1].phase;
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

    fn count_registration(&self, entry: &Entry, step: &str) -> Result<(), DaemonError> {
        let known = self.ledger.reader().registration(&entry.subject)?;
        // A name that GitHub never had is deleted, too, in the ledger only.
        if let Some(known) = known.filter(|known| known.runner_id.is_some())
            && step != "intended"
        {
            metrics::REGISTRATIONS.add([&known.pool, step], 1);
        }
        Ok(())
    }

    /// Tells the trace of a job, once all of it is over.
    fn trace(&self, job: JobId) -> Result<(), DaemonError> {
        let reader = self.ledger.reader();
        let Some(traces) = &self.observer.traces else { return Ok(()) };
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
        traces.send(spans::of(&self.observer.instance, &job, result, microvm.as_ref(), &phases));
        Ok(())
    }

    fn show_gauges(&mut self, now: Millis) {
        metrics::BUILD.set([env!("CARGO_PKG_VERSION")], 1.0);
        metrics::STARTED.set([], Duration::from_millis(self.clock.started().0).as_secs_f64());
        metrics::DRAINING.set([], f64::from(u8::from(self.draining.is_some())));
        self.show_budget();
        self.show_pools();
        self.show_waiting(now);
    }

    fn show_budget(&self) {
        let loads = self.microvms.values().map(|held| held.microvm.load);
        let used = loads.fold(Load::default(), Load::plus);
        let host = &self.settings.host;
        metrics::BUDGET_PROCESSORS.set([], host.cpus.into());
        metrics::BUDGET_PROCESSORS_USED.set([], used.processors.into());
        metrics::BUDGET_MEMORY.set([], bytes(host.memory.0));
        metrics::BUDGET_MEMORY_USED.set([], bytes(used.memory));
    }

    fn show_pools(&mut self) {
        let mut stages: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for held in self.microvms.values() {
            *stages.entry((&held.microvm.pool_name, stage(held.microvm.stage))).or_default() += 1;
        }
        let configured = self.pools.iter().map(|pool| pool.settings.name.as_str());
        let names: BTreeSet<&str> =
            configured.chain(stages.keys().map(|(pool, _)| *pool)).collect();
        let before = std::mem::take(&mut self.observer.pools);
        // One that is gone has nothing any more.
        for name in before.iter().map(String::as_str).chain(names.iter().copied()) {
            for stage in STAGES.map(stage) {
                let count = stages.get(&(name, stage)).copied().unwrap_or_default();
                metrics::MICROVMS.set([name, stage], count.into());
            }
            let pool = self.pools.iter().find(|pool| pool.settings.name.as_str() == name);
            let (max, min_idle) =
                pool.map_or((0, 0), |pool| (pool.settings.max, pool.settings.min_idle));
            metrics::POOL_MAX.set([name], max.into());
            metrics::POOL_MIN_IDLE.set([name], min_idle.into());
        }
        for name in names.iter().filter(|name| !before.contains(**name)) {
            begin(name);
        }
        self.observer.pools = names.into_iter().map(str::to_owned).collect();
    }

    fn show_waiting(&mut self, now: Millis) {
        let mut waits = BTreeMap::new();
        let mut oldest: BTreeMap<usize, Millis> = BTreeMap::new();
        for waiting in self.waiting() {
            let pool = waiting.pool();
            let Some(name) = self.pools.get(pool).map(|pool| pool.settings.name.to_string()) else {
                continue;
            };
            let reason = self.blockers.get(pool).and_then(Option::as_ref);
            let reason = reason
                .map_or_else(|| "deciding".to_owned(), |why| blocker_view(why, self.clock).code);
            *waits.entry((name, reason)).or_default() += waiting.count();
            // They come oldest first.
            oldest.entry(pool).or_insert(waiting.since());
        }
        for (pool, reason) in self.observer.waits.keys().filter(|key| !waits.contains_key(*key)) {
            metrics::JOBS_WAITING.set([pool, reason], 0.0);
        }
        for ((pool, reason), count) in &waits {
            metrics::JOBS_WAITING.set([pool, reason], f64::from(*count));
        }
        self.observer.waits = waits;
        for (index, pool) in self.pools.iter().enumerate() {
            let since = oldest.get(&index).map(|since| now.since(*since)).unwrap_or_default();
            metrics::OLDEST_WAIT.set([pool.settings.name.as_str()], since.as_secs_f64());
        }
    }

    /// Counts what a microVM says of its own failure and of its egress.
    pub(super) fn observe_event(&mut self, key: MachineKey, event: &Event) {
        let Some(microvm) = self.microvms.get(&key).map(|held| &held.microvm) else { return };
        match &event.happened {
            // What the daemon ends is no failure.
            Happened::Ended(Outcome::Failed(report)) if microvm.ended_for.is_none() => {
                // One that was killed can't say more than how far it came.
                let phase = report.phase.min(microvm.phase).to_string();
                let pool = microvm.pool_name.clone();
                let cause = self.observer.cause(&report.cause);
                metrics::FAILURES.add([&pool, &phase, &cause], 1);
            }
            Happened::Egress(report) => {
                let pool = microvm.pool_name.as_str();
                for row in &report.rows {
                    let known = ["allowed", "refused", "would-refuse"].into_iter();
                    let verdict = known.into_iter().find(|known| row.verdict == *known);
                    let verdict = verdict.unwrap_or(OTHER);
                    metrics::EGRESS.add([pool, verdict], row.connections);
                    metrics::EGRESS_BYTES.add([pool, "up"], row.up);
                    metrics::EGRESS_BYTES.add([pool, "down"], row.down);
                }
            }
            _ => {}
        }
    }

    /// What the log says from here on, until what is returned is dropped, is about a microVM and
    /// the job that it has.
    pub(super) fn about(&self, key: Option<MachineKey>) -> Option<tracing::span::EnteredSpan> {
        let microvm = &self.microvms.get(&key?)?.microvm;
        Some(log::about(log::Subject {
            microvm: microvm.id.as_ref().map(Id::as_str),
            job: self.job_in(microvm),
            pool: Some(&microvm.pool_name),
            runner: match &microvm.work {
                Work::Runner(runner) => Some(&runner.name),
                Work::None | Work::Local(_) => None,
            },
        }))
    }

    /// The microVM that something is heard of.
    pub(super) fn subject(&self, happening: &Happening) -> Option<MachineKey> {
        match happening {
            Happening::Planned(key, _)
            | Happening::NotBooted(key, _)
            | Happening::Event(key, ..)
            | Happening::Minted(key, ..) => Some(*key),
            Happening::Removed(name, _) => self.with_runner(name).map(|microvm| microvm.key),
            _ => None,
        }
    }

    /// The number of the job that a microVM has.
    fn job_in(&self, microvm: &Microvm) -> Option<u64> {
        match &microvm.work {
            Work::None => None,
            Work::Local(job) => Some(job.0),
            // A ledger that can't be read shows itself where it matters.
            Work::Runner(_) => {
                let job = self.ledger.reader().job_of(microvm.id.as_ref()?.as_str());
                Some(job.ok()??.id.0)
            }
        }
    }
}

/// Counts a microVM that had no shepherd yet.
pub(super) fn not_started(pool: &str, why: &Blocker) {
    let cause = if matches!(why, Blocker::Image(_)) { "image" } else { "not_started" };
    metrics::FAILURES.add([pool, "planned", cause], 1);
}

/// Shows what has not happened yet in a pool: what is not there can't be seen to grow.
fn begin(pool: &str) {
    for source in ["local", "github"] {
        for result in ["succeeded", "failed", "cancelled", "error"] {
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

fn between(from: Time, to: Time) -> Duration {
    Duration::from_millis(u64::try_from(to.0.saturating_sub(from.0)).unwrap_or_default())
}

#[allow(clippy::cast_precision_loss, reason = "no host has so much memory")]
fn bytes(number: u64) -> f64 {
    number as f64
}
