//! The way of traces to a collector: OTLP over HTTP, in protobuf.
//!
//! One task with a queue that has an end. Whoever hands over a trace never waits: one that finds
//! the queue full is dropped, and counted. Where the collector can't be reached that is said once;
//! then it is tried more and more seldom until it answers again.
//!
//! The messages are OpenTelemetry's own. Its exporter is not used: it blocks its thread to try
//! again, and keeps to itself why it failed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span, status,
};
use prost::Message;
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::metrics::TRACES;
use super::trace::{self, Trace, Value};

/// Traces that wait for the collector.
const QUEUE: usize = 512;
/// Traces that go in one request.
const AT_ONCE: usize = 32;
/// How long a request may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the last traces may take at the end.
const FLUSH: Duration = Duration::from_secs(3);
/// The wait after the first failure, and what it doubles up to.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);
/// The most of an answer that is read.
const MAX_ANSWER: usize = 64 << 10;

/// Where traces go, checked.
#[derive(Debug, Clone)]
pub struct Collector {
    address: Uri,
    headers: HeaderMap,
}

/// Why a collector can't be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCollector {
    /// The address is none.
    #[error("it is no address such as http://127.0.0.1:4318")]
    Address,
    /// The headers are none; they are secrets and not repeated.
    #[error("they are no headers such as name=value,other=value")]
    Headers,
}

impl Collector {
    /// The collector at an address (`http://HOST:4318`; traces go below it), with headers as
    /// `OTEL_EXPORTER_OTLP_HEADERS` has them.
    pub fn new(endpoint: &str, headers: Option<&SecretString>) -> Result<Self, NoCollector> {
        let base = endpoint.trim_end_matches('/');
        let address: Uri = format!("{base}/v1/traces").parse().map_err(|_| NoCollector::Address)?;
        let known = matches!(address.scheme_str(), Some("http" | "https"));
        if !known || address.host().is_none_or(str::is_empty) || address.query().is_some() {
            return Err(NoCollector::Address);
        }
        let headers = headers.map(|text| parse_headers(text.expose_secret())).transpose()?;
        Ok(Self { address, headers: headers.unwrap_or_default() })
    }
}

fn parse_headers(text: &str) -> Result<HeaderMap, NoCollector> {
    let mut headers = HeaderMap::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once('=').ok_or(NoCollector::Headers)?;
        let name: HeaderName = name.trim().parse().map_err(|_| NoCollector::Headers)?;
        let mut value: HeaderValue = value.trim().parse().map_err(|_| NoCollector::Headers)?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// Takes traces for the collector.
#[derive(Debug, Clone)]
pub struct Sender(mpsc::Sender<Trace>);

impl Sender {
    /// Hands over a trace; never waits.
    pub fn send(&self, trace: Trace) {
        if self.0.try_send(trace).is_err() {
            TRACES.add(["dropped"], 1);
        }
    }
}

/// What takes traces to the collector; [`Exporter::run`] is to be a task.
#[derive(Debug)]
pub struct Exporter {
    collector: Collector,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// Who tells: `service.instance.id` and such.
    resource: Resource,
    queue: mpsc::Receiver<Trace>,
}

/// What the traces of a process have in common. `instance` tells it from others of its kind.
pub fn exporter(collector: Collector, instance: &str) -> std::io::Result<(Sender, Exporter)> {
    let client = Client::builder(TokioExecutor::new()).build(connector(&collector.address)?);
    let attributes = vec![
        attribute("service.name", &"mayfly".into()),
        attribute("service.version", &env!("CARGO_PKG_VERSION").into()),
        attribute("service.instance.id", &instance.into()),
    ];
    let resource = Resource { attributes, ..Resource::default() };
    let (to, queue) = mpsc::channel(QUEUE);
    Ok((Sender(to), Exporter { collector, client, resource, queue }))
}

/// TLS where the address wants it; then with the system's certificates.
fn connector(address: &Uri) -> std::io::Result<HttpsConnector<HttpConnector>> {
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(std::io::Error::other)?;
    let config = if address.scheme_str() == Some("https") {
        builder.with_native_roots()?.with_no_client_auth()
    } else {
        builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth()
    };
    Ok(HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build())
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("no answer within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("it can't be reached: {0}")]
    Unreachable(String),
    #[error("it answers {0}")]
    Refused(hyper::StatusCode),
}

impl Exporter {
    /// Exports until `end`; then what waits still, but not for long.
    pub async fn run(mut self, end: CancellationToken) {
        let late = async {
            end.cancelled().await;
            tokio::time::sleep(FLUSH).await;
        };
        tokio::select! {
            () = self.work(&end) => {}
            () = late => tracing::warn!("the last traces did not reach the collector in time"),
        }
    }

    async fn work(&mut self, end: &CancellationToken) {
        let mut failures = 0_u32;
        let mut batch = Vec::new();
        loop {
            let taken = tokio::select! {
                () = end.cancelled(), if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
                taken = self.queue.recv_many(&mut batch, AT_ONCE) => taken,
            };
            if taken == 0 {
                return;
            }
            match self.export(std::mem::take(&mut batch)).await {
                Ok(()) => {
                    TRACES.add(["exported"], taken as u64);
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!("the collector of traces answers again");
                    }
                }
                Err(why) => {
                    TRACES.add(["failed"], taken as u64);
                    if failures == 0 {
                        let collector = &self.collector.address;
                        tracing::warn!(%collector, "traces are lost until it takes them: {why}");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(wait(failures)) => {}
                        () = end.cancelled() => {}
                    }
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    async fn export(&self, traces: Vec<Trace>) -> Result<(), Failed> {
        let body = encode(self.resource.clone(), traces);
        tokio::time::timeout(DEADLINE, self.post(body)).await.map_err(|_| Failed::Deadline)?
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), Failed> {
        let unreachable = |error: &(dyn std::error::Error + 'static)| {
            Failed::Unreachable(crate::failure::chain(error))
        };
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.collector.address.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.collector.headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = HeaderValue::from_static(concat!("mayfly/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, agent);
        let answer = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        let status = answer.status();
        // Read to its end, so that the connection can be used again.
        let rest = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        rest.map_err(|error| unreachable(&*error))?;
        if status.is_success() { Ok(()) } else { Err(Failed::Refused(status)) }
    }
}

fn wait(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(LONGEST_WAIT)
}

fn encode(resource: Resource, traces: Vec<Trace>) -> Vec<u8> {
    let spans = traces.into_iter().flat_map(|trace| {
        let id = trace.id.to_vec();
        trace.spans.into_iter().map(move |span| message(id.clone(), span))
    });
    let scope =
        InstrumentationScope { name: "mayfly".to_owned(), ..InstrumentationScope::default() };
    let scope =
        ScopeSpans { scope: Some(scope), spans: spans.collect(), schema_url: String::new() };
    let spans = ResourceSpans {
        resource: Some(resource),
        scope_spans: vec![scope],
        schema_url: String::new(),
    };
    ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
}

fn message(trace_id: Vec<u8>, span: trace::Span) -> Span {
    Span {
        trace_id,
        span_id: span.id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name,
        kind: span::SpanKind::Internal.into(),
        start_time_unix_nano: nanoseconds(span.begin),
        end_time_unix_nano: nanoseconds(span.end),
        attributes: span.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        status: span
            .error
            .map(|message| Status { message, code: status::StatusCode::Error.into() }),
        ..Span::default()
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn attribute(name: &str, value: &Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.clone()),
        Value::Number(number) => any_value::Value::IntValue(*number),
    };
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_the_path_of_traces() {
        for (endpoint, address) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example.com/in", "https://otel.example.com/in/v1/traces"),
        ] {
            let collector = Collector::new(endpoint, None).unwrap();
            assert_eq!(collector.address.to_string(), address);
        }
        for endpoint in ["", "127.0.0.1:4318", "grpc://a:4317", "http://", "http://a/?b=c", "a b"] {
            assert_eq!(Collector::new(endpoint, None).unwrap_err(), NoCollector::Address);
        }
    }

    #[test]
    fn headers_are_read_and_never_shown() {
        let headers = SecretString::from("x-key = hunter2, X-Other=a=b,");
        let collector = Collector::new("http://a", Some(&headers)).unwrap();
        assert_eq!(collector.headers["x-key"], "hunter2");
        assert_eq!(collector.headers["x-other"], "a=b");
        assert!(!format!("{collector:?}").contains("hunter2"));
        for text in ["no header", "a b=c", "=c", "a=b\u{1}"] {
            let error = Collector::new("http://a", Some(&text.to_owned().into())).unwrap_err();
            assert_eq!(error, NoCollector::Headers, "{text}");
        }
    }

    #[test]
    fn the_wait_doubles_up_to_minutes() {
        let waits = [0, 1, 2, 9, 40].map(|failures| wait(failures).as_secs());
        assert_eq!(waits, [1, 2, 4, 300, 300]);
    }

    #[test]
    fn a_message_has_everything_of_a_trace() {
        let mut trace = Trace::of("x");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let root = trace.add(None, "job", at(1), at(5));
        trace.tell("mayfly.pool", "small");
        trace.tell("mayfly.job.id", 7_u64);
        trace.fail("no room");
        trace.add(Some(root), "booting", at(2), at(3));
        let resource = Resource::default();
        let bytes = encode(resource, vec![trace.clone()]);
        let read = ExportTraceServiceRequest::decode(&bytes[..]).unwrap();
        let spans = &read.resource_spans[0].scope_spans[0].spans;
        assert!(spans.iter().all(|span| span.trace_id == trace.id));
        assert_eq!((spans[0].name.as_str(), spans[0].parent_span_id.len()), ("job", 0));
        assert_eq!(spans[1].parent_span_id, spans[0].span_id);
        assert_eq!(spans[1].start_time_unix_nano, 2_000_000_000);
        assert_eq!(spans[1].end_time_unix_nano, 3_000_000_000);
        assert_eq!(spans[0].status.as_ref().unwrap().message, "no room");
        assert_eq!(spans[1].status, None);
        let keys: Vec<_> = spans[0].attributes.iter().map(|one| one.key.as_str()).collect();
        assert_eq!(keys, ["mayfly.pool", "mayfly.job.id"]);
    }
}
