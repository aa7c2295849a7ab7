//! The table of all metrics. What is not in it can't be counted; `docs/reference/metrics.md` is
//! made from it.

use std::time::Duration;

use metrics::{Key, Label, Level, Metadata};

/// One row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// It only grows, from the start of the daemon.
    Counter,
    /// It is as it is now.
    Gauge,
    /// How often what lasted how long, with these upper bounds in seconds.
    Histogram(&'static [f64]),
}

/// Counts what happened.
#[derive(Debug)]
pub struct Counter<const LABELS: usize>(Row);

/// Shows how something is.
#[derive(Debug)]
pub struct Gauge<const LABELS: usize>(Row);

/// Takes how long something lasted.
#[derive(Debug)]
pub struct Histogram<const LABELS: usize>(Row);

impl<const LABELS: usize> Counter<LABELS> {
    /// So many more; 0 makes it visible before anything happened.
    pub fn add(&self, labels: [&str; LABELS], count: u64) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        metrics::with_recorder(|to| to.register_counter(&key, &metadata).increment(count));
    }
}

impl<const LABELS: usize> Gauge<LABELS> {
    /// It is this now.
    pub fn set(&self, labels: [&str; LABELS], value: f64) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        metrics::with_recorder(|to| to.register_gauge(&key, &metadata).set(value));
    }

    /// Its row of the table.
    pub fn row(&self) -> &Row {
        &self.0
    }
}

impl<const LABELS: usize> Histogram<LABELS> {
    /// Something lasted so long.
    pub fn record(&self, labels: [&str; LABELS], lasted: Duration) {
        let (key, metadata) = (key(&self.0, labels), metadata());
        let lasted = lasted.as_secs_f64();
        metrics::with_recorder(|to| to.register_histogram(&key, &metadata).record(lasted));
    }
}

/// Where a series is kept.
fn key<const LABELS: usize>(row: &Row, labels: [&str; LABELS]) -> Key {
    let values = labels.map(|value| word(value).to_owned());
    let labels: Vec<_> =
        row.labels.iter().zip(values).map(|(name, value)| Label::new(*name, value)).collect();
    Key::from_parts(row.name, labels)
}

fn metadata() -> Metadata<'static> {
    Metadata::new(module_path!(), Level::INFO, None)
}

/// The longest value of a label: a pool's name fits.
const LONGEST: usize = 40;

/// A label's value, if it is one of the short words that labels are made for.
fn word(value: &str) -> &str {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if value.len() <= LONGEST && value.bytes().all(fits) { value } else { OTHER }
}

/// What stands for a value that is none of those that are known.
pub const OTHER: &str = "other";
/// The pool of jobs that none matches.
pub const NO_POOL: &str = "none";

/// From a boot under KVM to one in emulation on a busy host, and a job of hours.
const PHASES: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0,
    3600.0, 21_600.0,
];
/// From a job that found a warm microVM to one that waited for hours.
const WAITS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 21_600.0,
];
/// From a lint to a job of a day.
const JOBS: &[f64] = &[
    1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0, 3600.0, 7200.0, 21_600.0,
    86_400.0,
];

const fn count(labels: &[&str]) -> usize {
    labels.len()
}

/// Makes each metric, and the table of them all.
macro_rules! table {
    (@ Counter) => { Kind::Counter };
    (@ Gauge) => { Kind::Gauge };
    (@ Histogram $buckets:expr) => { Kind::Histogram($buckets) };
    ($($kind:ident $(($buckets:expr))? $constant:ident $name:literal
        [$($label:literal),*] $help:literal;)+) => {
        $(
            #[doc = $help]
            pub static $constant: $kind<{ count(&[$($label),*]) }> = $kind(Row {
                name: $name,
                kind: table!(@ $kind $($buckets)?),
                labels: &[$($label),*],
                help: $help,
            });
        )+

        /// All metrics, as the reference has them.
        pub static TABLE: &[&Row] = &[$(&$constant.0),+];
    };
}

table! {
    Gauge BUILD "mayfly_build_info" ["version"]
        "The version that runs; always 1.";
    Gauge STARTED "mayfly_start_timestamp_seconds" []
        "When the daemon was started, in seconds since 1970. Counters begin at 0 then.";
    Gauge DRAINING "mayfly_draining" []
        "1 while the daemon takes no new jobs, else 0.";

    Counter JOBS_QUEUED "mayfly_jobs_queued_total" ["pool", "source"]
        "Jobs that were heard of. `source` is `local` or `github`; a job that no pool matches has the pool `none`.";
    Gauge JOBS_WAITING "mayfly_jobs_waiting" ["pool", "reason"]
        "Jobs that wait, by what they wait for: a blocker of `mayfly explain`, or `deciding`.";
    Gauge OLDEST_WAIT "mayfly_jobs_oldest_wait_seconds" ["pool"]
        "How long the job has waited that waits longest; 0 where none waits.";
    Histogram(WAITS) JOB_WAIT "mayfly_job_wait_seconds" ["pool", "source"]
        "From when a job was heard of until it began.";
    Histogram(JOBS) JOB_DURATION "mayfly_job_duration_seconds" ["pool", "source"]
        "From when a job began until it was over.";
    Counter JOBS_ENDED "mayfly_jobs_total" ["pool", "source", "result"]
        "Jobs that are over. `succeeded`, `failed` and `skipped` are the job's own doing, `cancelled` a person's, `taken_back` GitHub's, `error` Mayfly's or the host's.";
    Counter JOBS_REQUEUED "mayfly_jobs_requeued_total" ["pool"]
        "Jobs that wait again because their microVM failed before they began.";

    Gauge MICROVMS "mayfly_microvms" ["pool", "stage"]
        "microVMs, by what the daemon takes them for: `booting`, `warm`, `assigned`, `registering`, `registered`, `busy`, `ending`.";
    Gauge POOL_MAX "mayfly_pool_max" ["pool"]
        "How many microVMs the pool may have.";
    Gauge POOL_MIN_IDLE "mayfly_pool_min_idle" ["pool"]
        "How many it keeps warm.";
    Counter MICROVMS_PLANNED "mayfly_microvms_planned_total" ["pool"]
        "microVMs that were decided to be booted.";
    Counter MICROVMS_ENDED "mayfly_microvms_ended_total" ["pool", "outcome"]
        "microVMs that are gone: `ended` as they should, or `failed`.";
    Histogram(PHASES) PHASE "mayfly_microvm_phase_seconds" ["pool", "phase"]
        "How long microVMs were in each phase: `planned`, `prepared`, `booting`, `ready` (waiting for a job), `claimed`, `running`, `finished`, `failed`.";
    Counter FAILURES "mayfly_microvm_failures_total" ["pool", "phase", "cause"]
        "microVMs that failed, by the phase they were in and the cause (events.md); `image` and `not_started` are of those that had no shepherd yet.";

    Gauge BUDGET_PROCESSORS "mayfly_host_budget_processors" []
        "Processors that all microVMs together may have.";
    Gauge BUDGET_PROCESSORS_USED "mayfly_host_budget_processors_used" []
        "Processors that they have.";
    Gauge BUDGET_MEMORY "mayfly_host_budget_memory_bytes" []
        "Memory that all microVMs together may have.";
    Gauge BUDGET_MEMORY_USED "mayfly_host_budget_memory_used_bytes" []
        "Memory that they have.";

    Counter EGRESS "mayfly_egress_verdicts_total" ["pool", "verdict"]
        "Connections, requests, lookups and packets of guests: `allowed`, `refused`, or `would-refuse` where the policy only watches. Counted when a microVM ends.";
    Counter EGRESS_BYTES "mayfly_egress_bytes_total" ["pool", "direction"]
        "Bytes that guests sent (`up`) and received (`down`). Counted when a microVM ends.";

    Counter NEEDS_REFUSED "mayfly_egress_needs_refused_total" ["pool"]
        "Runners whose policy refused what a runner needs, so that GitHub may lack the log of a job. `mayfly explain` says what allows it.";

    Counter REGISTRATIONS "mayfly_registrations_total" ["pool", "step"]
        "Runners at GitHub that were `made`, have `taken` a job, and were `deleted`.";
    Counter GITHUB_CALLS "mayfly_github_calls_total" ["call", "outcome"]
        "Calls to GitHub by what they are for, and how they ended.";
    Gauge RATE_LIMIT "mayfly_github_rate_limit" ["resource"]
        "Calls per window that GitHub grants, as it last told.";
    Gauge RATE_REMAINING "mayfly_github_rate_remaining" ["resource"]
        "Calls that are left in the window.";
    Gauge RATE_RESET "mayfly_github_rate_reset_timestamp_seconds" ["resource"]
        "When the window ends, in seconds since 1970.";
    Counter PANICS "mayfly_panics_total" []
        "Tasks of the daemon that panicked, each a mistake in Mayfly; the log has the cause.";
    Counter DELIVERIES "mayfly_webhook_deliveries_total" ["outcome"]
        "Deliveries of webhooks: `accepted`, or why not.";

    Counter TRACES "mayfly_traces_total" ["outcome"]
        "Traces of jobs: `exported`, `failed` at the collector, or `dropped` because too many waited.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_as_prometheus_wants_them_and_each_is_there_once() {
        let mut names = BTreeSet::new();
        for row in TABLE {
            assert!(names.insert(row.name), "{} is there twice", row.name);
            assert!(row.name.starts_with("mayfly_"), "{}", row.name);
            assert_eq!(row.kind == Kind::Counter, row.name.ends_with("_total"), "{}", row.name);
            if let Kind::Histogram(buckets) = row.kind {
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
    fn what_is_no_word_is_told_as_other() {
        for word_ in ["small", "would-refuse", "0.1.0", ""] {
            assert_eq!(word(word_), word_);
        }
        for text in ["two words", "a/b", "\u{1b}", &"a".repeat(41), "naïve"] {
            assert_eq!(word(text), OTHER);
        }
    }
}
