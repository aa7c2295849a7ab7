//! The exporter of traces to a collector: OTLP over HTTP, in protobuf.
//!
//! One task with a bounded queue. Sending a trace never blocks: if the queue is full, the trace is
//! dropped and counted. If the collector is unreachable, that is logged once, and the task retries
//! with a growing wait until the collector responds again.
//!
//! The messages are OpenTelemetry's own. Its exporter is not used, because it blocks its thread to
//! retry and does not report why it failed.

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
use mayfly_common::backoff::delay;

/// The maximum number of queued traces.
const QUEUE_CAPACITY: usize = 512;
/// The maximum number of traces in one request.
const BATCH_SIZE: usize = 32;
/// The timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long exporting the remaining traces may take at shutdown.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(3);
/// The wait after the first failure, and the maximum that it doubles up to.
const INITIAL_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(5 * 60);
/// The maximum size of a response that is read.
const MAX_RESPONSE: usize = 64 << 10;

/// A validated collector.
#[derive(Debug, Clone)]
pub struct Collector {
    address: Uri,
    headers: HeaderMap,
}

/// An invalid collector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollectorError {
    /// The address is invalid.
    #[error("invalid address: expected one such as http://127.0.0.1:4318")]
    InvalidAddress,
    /// The headers are invalid. They are secrets, so the message does not contain them.
    #[error("invalid headers: expected name=value,other=value")]
    InvalidHeaders,
}

impl Collector {
    /// Creates the collector at an address (`http://HOST:4318`, the base of the traces' URL), with
    /// headers in the format of `OTEL_EXPORTER_OTLP_HEADERS`.
    pub fn new(endpoint: &str, headers: Option<&SecretString>) -> Result<Self, CollectorError> {
        let base = endpoint.trim_end_matches('/');
        let address: Uri =
            format!("{base}/v1/traces").parse().map_err(|_| CollectorError::InvalidAddress)?;
        let known = matches!(address.scheme_str(), Some("http" | "https"));
        if !known || address.host().is_none_or(str::is_empty) || address.query().is_some() {
            return Err(CollectorError::InvalidAddress);
        }
        let headers = headers.map(|text| parse_headers(text.expose_secret())).transpose()?;
        Ok(Self { address, headers: headers.unwrap_or_default() })
    }
}

fn parse_headers(text: &str) -> Result<HeaderMap, CollectorError> {
    let mut headers = HeaderMap::new();
    for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, value) = entry.split_once('=').ok_or(CollectorError::InvalidHeaders)?;
        let name: HeaderName = name.trim().parse().map_err(|_| CollectorError::InvalidHeaders)?;
        let mut value: HeaderValue =
            value.trim().parse().map_err(|_| CollectorError::InvalidHeaders)?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

/// A sender of traces to the exporter.
#[derive(Debug, Clone)]
pub struct TraceSender(mpsc::Sender<Trace>);

impl TraceSender {
    /// Queues a trace. Never blocks; drops the trace if the queue is full.
    pub fn send(&self, trace: Trace) {
        if self.0.try_send(trace).is_err() {
            TRACES.add(["dropped"], 1);
        }
    }
}

/// The exporter; run [`TraceExporter::run`] as a task.
#[derive(Debug)]
pub struct TraceExporter {
    collector: Collector,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// The attributes of this process: `service.instance.id` etc.
    resource: Resource,
    queue: mpsc::Receiver<Trace>,
}

/// Creates an exporter and its sender. `instance` identifies this process among others of its kind.
pub fn exporter(
    collector: Collector,
    instance: &str,
) -> std::io::Result<(TraceSender, TraceExporter)> {
    let client = Client::builder(TokioExecutor::new()).build(connector(&collector.address)?);
    let attributes = vec![
        attribute("service.name", &"mayfly".into()),
        attribute("service.version", &env!("CARGO_PKG_VERSION").into()),
        attribute("service.instance.id", &instance.into()),
    ];
    let resource = Resource { attributes, ..Resource::default() };
    let (to, queue) = mpsc::channel(QUEUE_CAPACITY);
    Ok((TraceSender(to), TraceExporter { collector, client, resource, queue }))
}

/// Creates a connector, with TLS and the system's certificates for `https` addresses.
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

/// A failed request.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("no response within {} s", REQUEST_TIMEOUT.as_secs())]
    TimedOut,
    #[error("can't reach the collector: {0}")]
    Unreachable(String),
    #[error("the collector responded with {0}")]
    Refused(hyper::StatusCode),
}

impl TraceExporter {
    /// Exports until `end`, then the queued traces, within a timeout.
    pub async fn run(mut self, end: CancellationToken) {
        let flush_timeout = async {
            end.cancelled().await;
            tokio::time::sleep(FLUSH_TIMEOUT).await;
        };
        tokio::select! {
            () = self.work(&end) => {}
            () = flush_timeout => tracing::warn!("the last traces were not exported in time"),
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
                taken = self.queue.recv_many(&mut batch, BATCH_SIZE) => taken,
            };
            if taken == 0 {
                return;
            }
            match self.export(std::mem::take(&mut batch)).await {
                Ok(()) => {
                    TRACES.add(["exported"], taken as u64);
                    if std::mem::take(&mut failures) > 0 {
                        tracing::info!("the trace collector responds again");
                    }
                }
                Err(error) => {
                    TRACES.add(["failed"], taken as u64);
                    if failures == 0 {
                        let collector = &self.collector.address;
                        tracing::warn!(%collector, "can't export traces, they are lost: {error}");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(delay(failures, INITIAL_BACKOFF, MAX_BACKOFF)) => {}
                        () = end.cancelled() => {}
                    }
                    failures = failures.saturating_add(1);
                }
            }
        }
    }

    async fn export(&self, traces: Vec<Trace>) -> Result<(), ExportError> {
        let body = encode(self.resource.clone(), traces);
        tokio::time::timeout(REQUEST_TIMEOUT, self.post(body))
            .await
            .map_err(|_| ExportError::TimedOut)?
    }

    async fn post(&self, body: Vec<u8>) -> Result<(), ExportError> {
        let unreachable = |error: &(dyn std::error::Error + 'static)| {
            ExportError::Unreachable(mayfly_failure::chain(error))
        };
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.collector.address.clone();
        let headers = request.headers_mut();
        headers.clone_from(&self.collector.headers);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = HeaderValue::from_static(concat!("mayfly/", env!("CARGO_PKG_VERSION")));
        headers.insert(USER_AGENT, agent);
        let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status();
        // Read the whole body, so that the connection can be reused.
        let body = Limited::new(response.into_body(), MAX_RESPONSE).collect().await;
        body.map_err(|error| unreachable(&*error))?;
        if status.is_success() { Ok(()) } else { Err(ExportError::Refused(status)) }
    }
}

fn encode(resource: Resource, traces: Vec<Trace>) -> Vec<u8> {
    let spans = traces.into_iter().flat_map(|trace| {
        let id = trace.id.to_vec();
        trace.spans.into_iter().map(move |span| encode_span(id.clone(), span))
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

fn encode_span(trace_id: Vec<u8>, span: trace::Span) -> Span {
    Span {
        trace_id,
        span_id: span.id.to_vec(),
        parent_span_id: span.parent.map(|id| id.to_vec()).unwrap_or_default(),
        name: span.name,
        kind: span::SpanKind::Internal.into(),
        start_time_unix_nano: nanoseconds(span.start),
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
    fn an_address_gets_the_traces_path() {
        for (endpoint, address) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otel.example.com/in", "https://otel.example.com/in/v1/traces"),
        ] {
            let collector = Collector::new(endpoint, None).unwrap();
            assert_eq!(collector.address.to_string(), address);
        }
        for endpoint in ["", "127.0.0.1:4318", "grpc://a:4317", "http://", "http://a/?b=c", "a b"] {
            assert_eq!(Collector::new(endpoint, None).unwrap_err(), CollectorError::InvalidAddress);
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
            assert_eq!(error, CollectorError::InvalidHeaders, "{text}");
        }
    }

    #[test]
    fn a_message_has_all_data_of_a_trace() {
        let mut trace = Trace::named("x");
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let root = trace.add_span(None, "job", at(1), at(5));
        trace.set_attribute("mayfly.pool", "small");
        trace.set_attribute("mayfly.job.id", 7_u64);
        trace.set_error("no room");
        trace.add_span(Some(root), "booting", at(2), at(3));
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
