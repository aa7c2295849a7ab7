//! The table of all metrics. Only metrics of the table can be recorded; `docs/reference/metrics.md`
//! is generated from it.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata};

/// A metric: one row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// The name.
    pub name: &'static str,
    /// The kind.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// The help text.
    pub help: &'static str,
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum MetricKind {
    /// Only grows, from the start of the daemon.
    Counter,
    /// The current value.
    Gauge,
    /// A distribution of durations, with these upper bounds in seconds.
    Histogram(&'static [f64]),
}

/// A counter of events.
#[derive(Debug)]
pub struct Counter<const LABELS: usize>(Metric);

/// A gauge of the current state.
#[derive(Debug)]
pub struct Gauge<const LABELS: usize>(Metric);

/// A histogram of durations.
#[derive(Debug)]
pub struct Histogram<const LABELS: usize>(Metric);

impl<const LABELS: usize> Counter<LABELS> {
    /// Adds to the counter. Adding 0 makes it visible before the first event.
    pub fn add(&self, labels: [&str; LABELS], count: u64) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        metrics::with_recorder(|to| to.register_counter(&key, &metadata).increment(count));
    }
}

impl<const LABELS: usize> Gauge<LABELS> {
    /// Sets the value.
    pub fn set(&self, labels: [&str; LABELS], value: f64) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        metrics::with_recorder(|to| to.register_gauge(&key, &metadata).set(value));
    }

    /// Returns its row of the table.
    pub fn metric(&self) -> &Metric {
        &self.0
    }
}

impl<const LABELS: usize> Histogram<LABELS> {
    /// Records a duration.
    pub fn record(&self, labels: [&str; LABELS], duration: Duration) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        let duration = duration.as_secs_f64();
        metrics::with_recorder(|to| to.register_histogram(&key, &metadata).record(duration));
    }
}

/// Returns the key of a series.
fn key<const LABELS: usize>(row: &Metric, labels: [&str; LABELS]) -> Key {
    let values = labels.map(|value| label_value(value).to_owned());
    let labels: Vec<_> =
        row.labels.iter().zip(values).map(|(name, value)| Label::new(*name, value)).collect();
    Key::from_parts(row.name, labels)
}

fn metadata() -> Metadata<'static> {
    Metadata::new(module_path!(), Level::INFO, None)
}

/// The maximum length of a label value; a pool's name fits.
const MAX_LABEL_LEN: usize = 40;

/// Returns a label value, or [`OTHER`] if it is not a short word.
fn label_value(value: &str) -> &str {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if value.len() <= MAX_LABEL_LEN && value.bytes().all(is_allowed) { value } else { OTHER }
}

/// The label value for unknown values.
pub const OTHER: &str = "other";
/// The `pool` label of jobs that match no pool.
pub const NO_POOL: &str = "none";

/// From a boot with KVM to one in emulation on a busy host, and a job of hours.
const PHASES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0, 21_600.0,
];
/// From a job that finds a warm microVM to one that waits for hours.
const WAITS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0,
];
/// From a linter to a job of a day.
const JOBS: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 21_600.0,
    86_400.0,
];

const fn count(labels: &[&str]) -> usize {
    labels.len()
}

/// Defines each metric and the table of all.
macro_rules! table {
    (@ Counter) => { MetricKind::Counter };
    (@ Gauge) => { MetricKind::Gauge };
    (@ Histogram $buckets:expr) => { MetricKind::Histogram($buckets) };
    ($($kind:ident $(($buckets:expr))? $constant:ident $name:literal
        [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $constant: $kind<{ count(&[$($label),*]) }> = $kind(Metric {
                name: $name,
                kind: table!(@ $kind $($buckets)?),
                labels: &[$($label),*],
                help: $help,
            });
        )+

        /// All metrics, in the order of the reference.
        pub static TABLE: &[&Metric] = &[$(&$constant.0),+];
    };
}

table! {
    Gauge BUILD "mayfly_build_info" ["version"]
        "The version of the daemon, as a label; always 1.";
    Gauge STARTED "mayfly_start_timestamp_seconds" []
        "Start time of the daemon, in seconds since 1970. Counters start at 0 then.";
    Gauge DRAINING "mayfly_draining" []
        "1 while the daemon drains and takes no new jobs, else 0.";

    Counter JOBS_QUEUED "mayfly_jobs_queued_total" ["pool", "source"]
        "Jobs that the daemon learned of. `source` is `local` or `github`; a job that matches no pool has the pool `none`.";
    Gauge JOBS_WAITING "mayfly_jobs_waiting" ["pool", "reason"]
        "Waiting jobs by reason: a blocker of `mayfly explain`, or `deciding`.";
    Gauge OLDEST_WAIT "mayfly_jobs_oldest_wait_seconds" ["pool"]
        "Waiting time of the job that has waited longest; 0 if none waits.";
    Histogram(WAITS) JOB_WAIT "mayfly_job_wait_seconds" ["pool", "source"]
        "Time from the first event about a job to its start.";
    Histogram(JOBS) JOB_DURATION "mayfly_job_duration_seconds" ["pool", "source"]
        "Time from the start of a job to its end.";
    Counter JOBS_ENDED "mayfly_jobs_total" ["pool", "source", "result"]
        "Ended jobs. The job itself `succeeded`, `failed` or was `skipped`; a person `cancelled` it; GitHub withdrew it (`taken_back`); or Mayfly or the host failed (`error`).";
    Counter JOBS_REQUEUED "mayfly_jobs_requeued_total" ["pool"]
        "Jobs that were requeued because their microVM failed before they started.";

    Gauge MICROVMS "mayfly_microvms" ["pool", "stage"]
        "microVMs by stage: `booting`, `warm`, `assigned`, `registering`, `registered`, `busy`, `ending`.";
    Gauge POOL_MAX "mayfly_pool_max" ["pool"]
        "Maximum number of microVMs of the pool.";
    Gauge POOL_MIN_IDLE "mayfly_pool_min_idle" ["pool"]
        "Number of microVMs that the pool keeps warm.";
    Counter MICROVMS_PLANNED "mayfly_microvms_planned_total" ["pool"]
        "microVMs that the daemon decided to boot.";
    Counter MICROVMS_ENDED "mayfly_microvms_ended_total" ["pool", "outcome"]
        "microVMs that are gone: `ended` normally, or `failed`.";
    Histogram(PHASES) PHASE "mayfly_microvm_phase_seconds" ["pool", "phase"]
        "Time that microVMs spent in each phase: `planned`, `prepared`, `booting`, `ready` (waiting for a job), `claimed`, `running`, `finished`, `failed`.";
    Counter FAILURES "mayfly_microvm_failures_total" ["pool", "phase", "cause"]
        "Failed microVMs by phase and cause (events.md). The causes `image` and `not_started` are failures before the shepherd started.";

    Gauge BUDGET_PROCESSORS "mayfly_host_budget_processors" []
        "Processors that all microVMs together may use.";
    Gauge BUDGET_PROCESSORS_USED "mayfly_host_budget_processors_used" []
        "Processors that microVMs use.";
    Gauge BUDGET_MEMORY "mayfly_host_budget_memory_bytes" []
        "Memory that all microVMs together may use.";
    Gauge BUDGET_MEMORY_USED "mayfly_host_budget_memory_used_bytes" []
        "Memory that microVMs use.";

    Counter EGRESS "mayfly_egress_verdicts_total" ["pool", "verdict"]
        "Connections, requests, lookups and packets of guests: `allowed`, `refused`, or `would-refuse` if the policy is not enforced. Counted when a microVM ends.";
    Counter EGRESS_BYTES "mayfly_egress_bytes_total" ["pool", "direction"]
        "Bytes that guests sent (`up`) and received (`down`). Counted when a microVM ends.";

    Counter NEEDS_REFUSED "mayfly_egress_needs_refused_total" ["pool"]
        "Runners whose egress policy refused a host that they need; GitHub may lack the job's log. `mayfly explain` shows the rule that allows it.";

    Counter REGISTRATIONS "mayfly_registrations_total" ["pool", "step"]
        "Runner registrations at GitHub by step: `made` (created), `taken` (got a job), `deleted`.";
    Counter GITHUB_CALLS "mayfly_github_calls_total" ["call", "outcome"]
        "Calls to GitHub by purpose and outcome.";
    Gauge RATE_LIMIT "mayfly_github_rate_limit" ["resource"]
        "GitHub's rate limit: calls per window, from its last response.";
    Gauge RATE_REMAINING "mayfly_github_rate_remaining" ["resource"]
        "Calls remaining in the window.";
    Gauge RATE_RESET "mayfly_github_rate_reset_timestamp_seconds" ["resource"]
        "End of the window, in seconds since 1970.";
    Counter PANICS "mayfly_panics_total" []
        "Tasks of the daemon that panicked. Each is a bug in Mayfly; the log has the cause.";
    Counter DELIVERIES "mayfly_webhook_deliveries_total" ["outcome"]
        "Webhook deliveries: `accepted`, or the reason for rejecting them.";

    Counter TRACES "mayfly_traces_total" ["outcome"]
        "Traces of jobs: `exported`, `failed` at the collector, or `dropped` because the queue was full.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_prometheus_conventions_and_are_unique() {
        let mut names = BTreeSet::new();
        for row in TABLE {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert!(row.name.starts_with("mayfly_"), "{}", row.name);
            assert_eq!(
                row.kind == MetricKind::Counter,
                row.name.ends_with("_total"),
                "{}",
                row.name
            );
            if let MetricKind::Histogram(buckets) = row.kind {
                assert!(row.name.ends_with("_seconds") && buckets.is_sorted(), "{}", row.name);
                assert!(!buckets.is_empty() && buckets.len() < 20, "{}", row.name);
            }
            assert!(row.help.ends_with('.'), "{}", row.name);
        }
    }

    #[test]
    fn labels_take_few_values() {
        let known = [
            "pool",
            "source",
            "reason",
            "result",
            "stage",
            "outcome",
            "phase",
            "cause",
            "verdict",
            "direction",
            "step",
            "call",
            "resource",
            "version",
        ];
        for row in TABLE {
            for label in row.labels {
                assert!(known.contains(label), "{} of {}", label, row.name);
            }
        }
    }

    #[test]
    fn a_value_that_is_not_a_word_becomes_other() {
        for word_ in ["small", "would-refuse", "0.1.0", ""] {
            assert_eq!(label_value(word_), word_);
        }
        for text in ["two words", "a/b", "\u{1b}", &"a".repeat(41), "naïve"] {
            assert_eq!(label_value(text), OTHER);
        }
    }
}
