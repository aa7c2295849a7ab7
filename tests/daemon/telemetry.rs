//! The daemon's telemetry: metrics that promtool accepts, traces that a collector receives, and a
//! log whose lines have their context.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::routing::post;
use mayfly_telemetry::metrics::TABLE;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value::StringValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::Value;

use super::daemon::{Daemon, JOB_TIMEOUT, local};
use super::support::until;

/// A collector of traces.
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    // Its tasks end when it is dropped.
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let kept = Arc::clone(&spans);
        let take = async move |body: axum::body::Bytes| {
            let request = ExportTraceServiceRequest::decode(body).unwrap();
            for of_resource in request.resource_spans {
                let service = &of_resource.resource.unwrap().attributes[0];
                let name = service.value.clone().unwrap().value.unwrap();
                assert_eq!(
                    (service.key.as_str(), name),
                    ("service.name", StringValue("mayfly".into()))
                );
                let spans = of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.lock().unwrap().extend(spans);
            }
        };
        let router = Router::new().route("/v1/traces", post(take));
        let listener = runtime.block_on(tokio::net::TcpListener::bind(address)).unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { spans, _runtime: runtime }
    }

    /// Returns the spans of a job so far, the root first.
    fn trace(&self, job: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        let is_it = |span: &&Span| span.name == "job" && attribute(span, "mayfly.job.id") == job;
        let roots: Vec<_> = spans.iter().filter(is_it).collect();
        assert!(roots.len() <= 1, "the collector received the trace of job {job} more than once");
        let its = |span: &&Span| roots.iter().any(|root| root.trace_id == span.trace_id);
        spans.iter().filter(its).cloned().collect()
    }
}

/// Returns an attribute as text.
fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(StringValue(text)) => text,
        Some(opentelemetry_proto::tonic::common::v1::any_value::Value::IntValue(number)) => {
            number.to_string()
        }
        other => panic!("{name} of {span:?} is {other:?}"),
    }
}

/// Panics unless a trace is that of a job that ran: a span for each phase, in order and nested
/// correctly.
fn assert_trace(spans: &[Span], daemon: &Daemon, job: &str, result: &str) {
    let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    let expected = [
        "job",
        "queued",
        "microvm",
        "planned",
        "prepared",
        "booting",
        "ready",
        "claimed",
        "running",
        "finished",
        "destroyed",
    ];
    assert_eq!(names, expected);
    for (index, span) in spans.iter().enumerate() {
        let parent = match index {
            0 => vec![],
            1 | 2 => spans[0].span_id.clone(),
            _ => spans[2].span_id.clone(),
        };
        assert_eq!((span.trace_id.len(), &span.parent_span_id), (16, &parent), "{}", span.name);
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
        assert!(span.start_time_unix_nano > 0, "{span:?}");
    }
    for pair in spans[3..].windows(2) {
        assert_eq!(pair[0].end_time_unix_nano, pair[1].start_time_unix_nano, "{pair:?}");
    }
    let known = daemon.job(job);
    let root = &spans[0];
    assert_eq!(attribute(root, "mayfly.job.result"), result);
    assert_eq!(attribute(root, "mayfly.pool"), "test");
    assert_eq!(attribute(root, "mayfly.microvm.id"), known["microvm"].as_str().unwrap());
    assert!(attribute(root, "mayfly.image").starts_with("runner-sim"));
    assert_eq!(root.status.is_some(), result != "succeeded");
}

/// Returns all series of a scrape.
fn scrape(daemon: &Daemon) -> (String, BTreeMap<String, f64>) {
    let mut stream = UnixStream::connect(daemon.host.state().join("api.sock")).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nhost: mayfly\r\nconnection: close\r\n\r\n")
        .unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    let (head, text) = response.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"),
        "{head}"
    );
    let series = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let series = series.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap())
    });
    let series = series.collect();
    (text.to_owned(), series)
}

/// Waits until a series has a value.
fn wait_for_series(daemon: &Daemon, name: &str, value: f64) {
    until(&format!("{name} = {value}"), JOB_TIMEOUT, || {
        let (_, series) = scrape(daemon);
        (series.get(name).is_some_and(|is| (is - value).abs() < 1e-9)).then_some(())
    });
}

/// Panics unless promtool accepts the input.
fn promtool(arguments: &[&str], input: &str) {
    let mut tool = Command::new("promtool");
    tool.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut tool = tool.spawn().expect("promtool is not installed: run scripts/test");
    tool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = tool.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {text}\n{input}");
}

/// Returns the lines of a daemon's log, each of which is a JSON object.
fn lines(daemon: &Daemon) -> Vec<Value> {
    daemon.log().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Returns the single line of a job with a message.
fn line(daemon: &Daemon, job: &str, message: &str) -> Value {
    let lines = lines(daemon);
    let number: u64 = job.parse().unwrap();
    let matches = |line: &&Value| line["message"] == message && line["job"] == number;
    let found: Vec<_> = lines.iter().filter(matches).collect();
    assert_eq!(found.len(), 1, "{message:?} of job {job}: {lines:#?}");
    found[0].clone()
}

const LOST: &str = "can't export traces, they are lost";

fn warnings_of_the_collector(daemon: &Daemon) -> usize {
    let lines = lines(daemon);
    lines.iter().filter(|line| line["message"].as_str().unwrap().starts_with(LOST)).count()
}

#[test]
fn a_daemon_tells_what_it_does_and_needs_nobody_to_listen() {
    // The address is not in use yet.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut daemon = Daemon::new();
    daemon.arguments = vec!["--log-format", "json"];
    let telemetry = format!("\n[telemetry]\notlp_endpoint = \"http://{address}\"\n");
    daemon.configure(&(local("", "max = 1\nmin_idle = 0") + &telemetry));
    daemon.serve();
    let first = daemon.submit("exit 3");
    daemon.wait_for(&first, &["finished"]);
    until("a warning", JOB_TIMEOUT, || (warnings_of_the_collector(&daemon) > 0).then_some(()));

    let collector = Collector::start(address);
    let second = daemon.submit("true");
    daemon.wait_for(&second, &["finished"]);
    let spans = until("the trace of the second job", JOB_TIMEOUT, || {
        Some(collector.trace(&second)).filter(|spans| !spans.is_empty())
    });
    assert_trace(&spans, &daemon, &second, "succeeded");
    assert_eq!(warnings_of_the_collector(&daemon), 1, "{}", daemon.log());
    assert_metrics(&daemon);
    for job in [&first, &second] {
        let microvm = daemon.job(job)["microvm"].clone();
        for message in ["the job is assigned to its microVM", "the job ended", "the microVM ended"]
        {
            let line = line(&daemon, job, message);
            assert_eq!((&line["microvm"], &line["pool"]), (&microvm, &"test".into()), "{line}");
            assert_eq!((&line["level"], &line["span"]), (&"INFO".into(), &Value::Null), "{line}");
        }
    }

    // One daemon starts a job, another ends it: it is one trace. Waiting traces are sent at the
    // end.
    let third = daemon.submit("sleep 3; exit 5");
    daemon.wait_for(&third, &["running"]);
    daemon.kill();
    daemon.serve();
    daemon.wait_for(&third, &["finished"]);
    wait_for_series(
        &daemon,
        r#"mayfly_jobs_total{pool="test",source="local",result="failed"}"#,
        1.0,
    );
    let host = daemon.host.state();
    assert!(daemon.stop().success(), "{}", daemon.log());
    assert!(!host.join("api.sock").exists());
    let spans = collector.trace(&third);
    daemon.serve();
    assert_trace(&spans, &daemon, &third, "failed");
    assert_ne!(spans[0].trace_id, collector.trace(&second)[0].trace_id);
    daemon.finish();
}

/// Panics unless promtool accepts the metrics, and they show two jobs, one of them failed.
fn assert_metrics(daemon: &Daemon) {
    let gone = r#"mayfly_microvms_ended_total{pool="test",outcome="ended"}"#;
    wait_for_series(daemon, gone, 2.0);
    // Gauges are set shortly after counters.
    wait_for_series(daemon, "mayfly_host_budget_processors_used", 0.0);
    let (text, series) = scrape(daemon);
    promtool(&["check", "metrics"], &text);
    for (name, value) in [
        (r#"mayfly_build_info{version="0.1.0"}"#, 1.0),
        ("mayfly_draining", 0.0),
        (r#"mayfly_jobs_queued_total{pool="test",source="local"}"#, 2.0),
        (r#"mayfly_jobs_total{pool="test",source="local",result="succeeded"}"#, 1.0),
        (r#"mayfly_jobs_total{pool="test",source="local",result="failed"}"#, 1.0),
        (r#"mayfly_jobs_total{pool="test",source="local",result="error"}"#, 0.0),
        (r#"mayfly_job_wait_seconds_count{pool="test",source="local"}"#, 2.0),
        (r#"mayfly_job_duration_seconds_count{pool="test",source="local"}"#, 2.0),
        (r#"mayfly_microvms_planned_total{pool="test"}"#, 2.0),
        (r#"mayfly_microvm_phase_seconds_count{pool="test",phase="booting"}"#, 2.0),
        (r#"mayfly_microvm_phase_seconds_count{pool="test",phase="running"}"#, 2.0),
        (r#"mayfly_microvm_phase_seconds_bucket{pool="test",phase="booting",le="0.005"}"#, 0.0),
        (r#"mayfly_microvm_phase_seconds_bucket{pool="test",phase="booting",le="+Inf"}"#, 2.0),
        (r#"mayfly_pool_max{pool="test"}"#, 1.0),
        (r#"mayfly_pool_min_idle{pool="test"}"#, 0.0),
        ("mayfly_host_budget_processors", 8.0),
        ("mayfly_host_budget_processors_used", 0.0),
        (r#"mayfly_jobs_oldest_wait_seconds{pool="test"}"#, 0.0),
        (r#"mayfly_traces_total{outcome="failed"}"#, 1.0),
        (r#"mayfly_traces_total{outcome="exported"}"#, 1.0),
    ] {
        let is = series.get(name).copied();
        assert_eq!(is, Some(value), "{name} of\n{text}");
    }
    let names: BTreeSet<_> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in &names {
        assert!(TABLE.iter().any(|row| row.name == *name), "{name} is not in the table");
    }
    assert!(names.len() > 15, "{names:?}");
}

/// Panics unless the metrics show the given number of GitHub's jobs and their results.
pub(crate) fn assert_served_github(daemon: &Daemon, jobs: u32) {
    let jobs = f64::from(jobs);
    let succeeded = r#"mayfly_jobs_total{pool="test",source="github",result="succeeded"}"#;
    wait_for_series(daemon, succeeded, jobs);
    wait_for_series(daemon, r#"mayfly_registrations_total{pool="test",step="taken"}"#, jobs);
    let (text, series) = scrape(daemon);
    promtool(&["check", "metrics"], &text);
    for (name, least) in [
        (r#"mayfly_job_wait_seconds_count{pool="test",source="github"}"#, jobs),
        (r#"mayfly_registrations_total{pool="test",step="made"}"#, jobs),
        (r#"mayfly_github_calls_total{call="mint",outcome="ok"}"#, jobs),
        (r#"mayfly_github_calls_total{call="authenticate",outcome="ok"}"#, 1.0),
        (r#"mayfly_webhook_deliveries_total{outcome="accepted"}"#, jobs),
        (r#"mayfly_github_rate_remaining{resource="core"}"#, 1.0),
        (r#"mayfly_github_rate_limit{resource="core"}"#, 1.0),
    ] {
        let is = series.get(name).copied().unwrap_or(-1.0);
        assert!(is >= least, "{name} is {is}, less than {least}, in\n{text}");
    }
}

#[test]
fn promtool_takes_the_alerts_and_every_question_of_the_dashboard() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples");
    let example = |name: &str| examples.join(name).display().to_string();
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &example("alerts.yml")], "");
    promtool(&["test", "rules", &example("alerts-test.yml")], "");
    let dashboard = fs::read_to_string(example("grafana-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.filter_map(|panel| panel["targets"].as_array()).flatten();
    let rules = targets.enumerate().map(|(number, target)| {
        let expression = target["expr"].as_str().unwrap().replace("$__rate_interval", "5m");
        format!("  - record: question:number{number}\n    expr: {}\n", Value::from(expression))
    });
    let rules = format!("groups:\n- name: dashboard\n  rules:\n{}", rules.collect::<String>());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("dashboard.yml");
    fs::write(&file, &rules).unwrap();
    promtool(&["check", "rules", file.to_str().unwrap()], &rules);
}
