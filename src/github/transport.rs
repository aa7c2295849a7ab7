//! One request to GitHub and its complete response, with a deadline and an optional proxy.
//!
//! octocrab sends the requests over our own hyper client, because octocrab's does not support
//! proxies. Nothing is sent twice here.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use octocrab::{AuthState, OctoBody, Octocrab, OctocrabBuilder};

use super::error::{BoxError, SetupError};
use mayfly_host::web::{self, Proxies};

/// The deadline of a call. GitHub cuts a call off after about 10 s.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// The deadline for connecting.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long an unused connection stays open; GitHub closes it after about a minute.
const IDLE: Duration = Duration::from_secs(45);
/// The largest response body; 100 jobs with their steps are about 1 MB.
const RESPONSE_LIMIT: usize = 16 * 1024 * 1024;
/// The `User-Agent` header.
pub(super) const AGENT: &str = concat!("mayfly/", env!("CARGO_PKG_VERSION"));

/// An HTTP request.
pub(super) struct HttpRequest {
    pub(super) method: Method,
    /// The full URL.
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    /// JSON.
    pub(super) body: Option<Vec<u8>>,
    /// The time limit for the complete response.
    pub(super) deadline: Duration,
}

/// A complete response, whatever its status. Not `Debug`: it may contain a secret.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// A request without a complete response.
#[derive(Debug)]
pub(super) enum NoResponse {
    /// The request was not sent.
    NotSent(BoxError),
    /// It was sent, or may have been.
    Ambiguous(BoxError),
}

/// A pool of connections to GitHub.
#[derive(Clone)]
pub(super) struct Transport(Octocrab);

impl Transport {
    pub(super) fn new(proxies: &Proxies) -> Result<Self, SetupError> {
        let connector =
            web::connector(proxies, CONNECT_DEADLINE).map_err(SetupError::Certificates)?;
        let client = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(hyper_util::rt::TokioTimer::new())
            .build(connector);
        let built =
            OctocrabBuilder::new_empty().with_service(client).with_auth(AuthState::None).build();
        match built {
            Ok(octocrab) => Ok(Self(octocrab)),
            Err(never) => match never {},
        }
    }

    /// Sends a request, once.
    pub(super) async fn send(&self, request: HttpRequest) -> Result<Response, NoResponse> {
        let deadline = request.deadline;
        let request = build(request).map_err(NoResponse::NotSent)?;
        match tokio::time::timeout(deadline, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(NoResponse::Ambiguous(
                format!("no response within {} s", deadline.as_secs()).into(),
            )),
        }
    }

    async fn exchange(&self, request: Request<OctoBody>) -> Result<Response, NoResponse> {
        let response = self.0.send(request).await.map_err(no_response)?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, RESPONSE_LIMIT)
            .collect()
            .await
            .map_err(NoResponse::Ambiguous)?
            .to_bytes();
        Ok(Response { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

fn build(request: HttpRequest) -> Result<Request<OctoBody>, BoxError> {
    let mut builder = Request::builder().method(request.method).uri(request.url);
    if let Some(headers) = builder.headers_mut() {
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if request.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.extend(request.headers);
    }
    let body = request.body.map_or_else(OctoBody::empty, OctoBody::from);
    Ok(builder.body(body)?)
}

/// Classifies an error: no connection could be made, or the request may have arrived.
fn no_response(error: octocrab::Error) -> NoResponse {
    let cause = match error {
        octocrab::Error::Service { source, .. } => source,
        other => Box::new(other),
    };
    let unsent = cause.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
    if unsent { NoResponse::NotSent(cause) } else { NoResponse::Ambiguous(cause) }
}

/// Returns a header value that `Debug` does not show; `None` if `text` is not valid in a header.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns a header; `None` if `value` is not valid in a header.
pub(super) fn header(name: &'static str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
}
