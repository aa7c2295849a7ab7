//! Where metrics are counted, and how they are read.

use std::sync::OnceLock;

use metrics::Recorder;
use metrics_exporter_prometheus::{
    Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};

use super::metrics::{Kind, TABLE};

/// The way to what was counted. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(PrometheusHandle);

impl Handle {
    /// Everything in Prometheus' text format.
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Sums up what histograms were told. To be called now and then, or they keep it all.
    pub fn tidy(&self) {
        self.0.run_upkeep();
    }
}

/// Begins to count in this process; before, nothing is. A second time gives the same.
pub fn install() -> Handle {
    static INSTALLED: OnceLock<Handle> = OnceLock::new();
    let handle = INSTALLED.get_or_init(|| {
        let recorder = recorder();
        let handle = Handle(recorder.handle());
        // Nothing else in this process sets one.
        let _ = metrics::set_global_recorder(recorder);
        handle
    });
    handle.clone()
}

fn recorder() -> PrometheusRecorder {
    let mut builder = PrometheusBuilder::new();
    for row in TABLE {
        if let Kind::Histogram(buckets) = row.kind {
            let name = Matcher::Full(row.name.to_owned());
            // Refused are empty buckets only, which a test of the table would show.
            builder = builder.set_buckets_for_metric(name, buckets).unwrap_or_default();
        }
    }
    let recorder = builder.build_recorder();
    for row in TABLE {
        let (name, help) = (row.name.into(), row.help.into());
        match row.kind {
            Kind::Counter => recorder.describe_counter(name, None, help),
            Kind::Gauge => recorder.describe_gauge(name, None, help),
            Kind::Histogram(_) => recorder.describe_histogram(name, None, help),
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
    fn what_was_counted_is_read_with_its_help_and_buckets() {
        let recorder = recorder();
        let handle = Handle(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            MICROVMS.set(["small", "warm"], 3.0);
            MICROVMS.set(["small", "warm"], 2.0);
            FAILURES.add(["small", "booting", "boot_deadline"], 1);
            FAILURES.add(["small", "booting", "boot_deadline"], 2);
            JOB_WAIT.record(["small", "local"], Duration::from_millis(700));
            handle.tidy();
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
        assert!(text.contains("# HELP mayfly_microvms microVMs, by"), "{text}");
    }
}
