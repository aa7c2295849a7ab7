//! One request to GitHub and its whole answer, through a proxy if need be, by a deadline.
//!
//! octocrab carries the requests over a hyper client of ours: its own can use no proxy. Nothing is
//! sent twice here.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::client::legacy;
use hyper_util::rt::TokioExecutor;
use octocrab::{AuthState, OctoBody, Octocrab, OctocrabBuilder};

use super::error::{Cause, SetupError};
use crate::host::web::{self, Proxies};

/// The deadline of a call. GitHub cuts one off after about 10 s.
pub(super) const DEADLINE: Duration = Duration::from_secs(15);
/// The longest that a connection may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// How long an unused connection is kept; GitHub's side closes them after about a minute.
const IDLE: Duration = Duration::from_secs(45);
/// The largest answer; 100 jobs with their steps are about 1 MB.
const ANSWER_LIMIT: usize = 16 * 1024 * 1024;
/// What GitHub knows us by.
pub(super) const AGENT: &str = concat!("mayfly/", env!("CARGO_PKG_VERSION"));

/// A request.
pub(super) struct Question {
    pub(super) method: Method,
    /// The whole address.
    pub(super) address: String,
    pub(super) headers: HeaderMap,
    /// JSON.
    pub(super) body: Option<Vec<u8>>,
    /// When to give up.
    pub(super) deadline: Duration,
}

/// A whole answer, whatever its status. Not `Debug`: it may hold a secret.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Silence {
    /// The request did not leave.
    NotSent(Cause),
    /// It left, or may have.
    Unclear(Cause),
}

/// Connections to GitHub.
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

    /// Sends it, once.
    pub(super) async fn send(&self, question: Question) -> Result<Answer, Silence> {
        let deadline = question.deadline;
        let request = request(question).map_err(Silence::NotSent)?;
        match tokio::time::timeout(deadline, self.exchange(request)).await {
            Ok(end) => end,
            Err(_) => {
                Err(Silence::Unclear(format!("no answer within {} s", deadline.as_secs()).into()))
            }
        }
    }

    async fn exchange(&self, request: Request<OctoBody>) -> Result<Answer, Silence> {
        let response = self.0.send(request).await.map_err(silence)?;
        let (parts, body) = response.into_parts();
        let body =
            Limited::new(body, ANSWER_LIMIT).collect().await.map_err(Silence::Unclear)?.to_bytes();
        Ok(Answer { status: parts.status.as_u16(), headers: parts.headers, body })
    }
}

fn request(question: Question) -> Result<Request<OctoBody>, Cause> {
    let mut builder = Request::builder().method(question.method).uri(question.address);
    if let Some(headers) = builder.headers_mut() {
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        if question.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        headers.extend(question.headers);
    }
    let body = question.body.map_or_else(OctoBody::empty, OctoBody::from);
    Ok(builder.body(body)?)
}

/// Tells a request that no connection could be made for from one that may have arrived.
fn silence(error: octocrab::Error) -> Silence {
    let cause = match error {
        octocrab::Error::Service { source, .. } => source,
        other => Box::new(other),
    };
    let unsent = cause.downcast_ref::<legacy::Error>().is_some_and(legacy::Error::is_connect);
    if unsent { Silence::NotSent(cause) } else { Silence::Unclear(cause) }
}

/// A header's value that no debug text shows.
pub(super) fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A header whose value is known to be right, or none.
pub(super) fn header(name: &'static str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
}
