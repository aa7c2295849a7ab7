//! The recorder of the metrics.

use std::sync::OnceLock;

use metrics::Recorder;
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::metrics::{MetricKind, TABLE};

/// A handle for reading the recorded metrics. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MetricsHandle(PrometheusHandle);

impl MetricsHandle {
    /// Renders all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Aggregates histogram samples. Call it regularly, or the samples accumulate.
    pub fn run_upkeep(&self) {
        self.0.run_upkeep();
    }
}

/// Installs the recorder of this process; nothing is recorded before. Later calls return the same
/// handle.
pub fn install() -> MetricsHandle {
    static INSTALLED: OnceLock<MetricsHandle> = OnceLock::new();
    let handle = INSTALLED.get_or_init(|| {
        let recorder = recorder();
        let handle = MetricsHandle(recorder.handle());
        // Nothing else in this process installs a recorder.
        let _ = metrics::set_global_recorder(recorder);
        handle
    });
    handle.clone()
}

fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for row in TABLE {
        if let MetricKind::Histogram(buckets) = row.kind {
            let name = Matcher::Full(row.name.to_owned());
            // Fails for empty buckets only; a test of the table excludes them.
            builder = builder.set_buckets_for_metric(name, buckets).unwrap_or_default();
        }
    }
    let recorder = builder.build_recorder();
    for row in TABLE {
        let (name, help) = (row.name.into(), row.help.into());
        match row.kind {
            MetricKind::Counter => recorder.describe_counter(name, None, help),
            MetricKind::Gauge => recorder.describe_gauge(name, None, help),
            MetricKind::Histogram(_) => recorder.describe_histogram(name, None, help),
        }
    }
    recorder
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::metrics::{FAILURES, JOB_WAIT, MICROVMS};
    use super::*;

    #[test]
    fn recorded_metrics_are_rendered_with_help_and_buckets() {
        let recorder = recorder();
        let handle = MetricsHandle(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            MICROVMS.set(["small", "warm"], 3.0);
            MICROVMS.set(["small", "warm"], 2.0);
            FAILURES.add(["small", "booting", "boot_deadline"], 1);
            FAILURES.add(["small", "booting", "boot_deadline"], 2);
            JOB_WAIT.record(["small", "local"], Duration::from_millis(700));
            handle.run_upkeep();
            JOB_WAIT.record(["small", "local"], Duration::from_secs(7));
        });
        let text = handle.render();
        for line in [
            "# TYPE mayfly_microvms gauge",
            "mayfly_microvms{pool=\"small\",stage=\"warm\"} 2",
            "mayfly_microvm_failures_total{pool=\"small\",phase=\"booting\",cause=\"boot_deadline\"} 3",
            "# TYPE mayfly_job_wait_seconds histogram",
            "mayfly_job_wait_seconds_bucket{pool=\"small\",source=\"local\",le=\"0.5\"} 0",
            "mayfly_job_wait_seconds_bucket{pool=\"small\",source=\"local\",le=\"1\"} 1",
            "mayfly_job_wait_seconds_bucket{pool=\"small\",source=\"local\",le=\"+Inf\"} 2",
            "mayfly_job_wait_seconds_sum{pool=\"small\",source=\"local\"} 7.7",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in\n{text}");
        }
        assert!(text.contains("# HELP mayfly_microvms microVMs by"), "{text}");
    }
}
