//! One API call: its slot in the rate budget, the request, and the meaning of the response.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::Method;
use hyper::header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::budget::RateBudget;
use super::classify::{ResponseClass, classify, is_category_limit, is_core_limit, message, rate};
use super::error::CallError;
use super::metrics::{outcome, purpose, record_rate};
use super::transport::{DEADLINE, HttpRequest, NoResponse, Response, Transport, header};
use mayfly_telemetry::metrics::GITHUB_CALLS;

/// The clock difference in seconds below which no correction is made: the `Date` header has whole
/// seconds, and a response takes a while.
const CLOCK_TOLERANCE: i64 = 10;

/// A REST API call.
pub(super) struct ApiCall {
    pub(super) method: Method,
    /// A full URL, or a path under the API's root.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// Sent as `If-None-Match`.
    pub(super) etag: Option<String>,
    /// The permission that the call needs, for errors.
    pub(super) needs: Option<&'static str>,
}

impl ApiCall {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, etag: None, needs: None }
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body), etag: None, needs: None }
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub(super) fn needs(self, permission: &'static str) -> Self {
        Self { needs: Some(permission), ..self }
    }

    /// Returns the call's name for errors: method and path.
    pub(super) fn name(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

/// The state that all calls of a client share.
pub(super) struct Wire {
    pub(super) transport: Transport,
    base: String,
    budget: Mutex<RateBudget>,
    /// GitHub's clock minus ours, in seconds.
    skew: AtomicI64,
}

impl Wire {
    pub(super) fn new(transport: Transport, base: String, gap: Duration) -> Self {
        let budget = Mutex::new(RateBudget::new(gap));
        Self { transport, base, budget, skew: AtomicI64::new(0) }
    }

    /// Locks the budget. It is held for a few instructions, and a panic leaves it consistent.
    pub(super) fn budget(&self) -> MutexGuard<'_, RateBudget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time on GitHub's clock.
    pub(super) fn now(&self) -> SystemTime {
        shifted(SystemTime::now(), self.skew.load(Ordering::Relaxed))
    }

    /// Returns GitHub's clock minus ours, in seconds; 0 within the tolerance.
    pub(super) fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Sends a call when the budget allows it; returns 2xx and 304 responses.
    pub(super) async fn call(
        &self,
        call: &ApiCall,
        authorization: &HeaderValue,
    ) -> Result<Response, CallError> {
        self.wait_for_slot(call.method != Method::GET, &call.name()).await?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.extend(header("x-github-api-version", "2022-11-28"));
        headers.extend(call.etag.as_deref().and_then(|etag| header("if-none-match", etag)));
        let request = HttpRequest {
            method: call.method.clone(),
            url: self.url(&call.path),
            headers,
            body: call.body.as_ref().map(|body| body.to_string().into_bytes()),
            deadline: DEADLINE,
        };
        self.exchange(request, &call.name(), call.needs).await
    }

    /// Waits until the budget allows a call; fails if the wait would be too long.
    pub(super) async fn wait_for_slot(&self, mutation: bool, call: &str) -> Result<(), CallError> {
        let slot = self.budget().reserve(mutation, SystemTime::now());
        match slot {
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(until) => return Err(CallError::RateLimited { call: call.to_owned(), until }),
        }
        Ok(())
    }

    /// Sends a request and classifies its response; returns 2xx and 304 responses.
    pub(super) async fn exchange(
        &self,
        request: HttpRequest,
        call: &str,
        needs: Option<&'static str>,
    ) -> Result<Response, CallError> {
        let result = self.send(request, call, needs).await;
        GITHUB_CALLS.add([purpose(call), outcome(&result)], 1);
        result
    }

    async fn send(
        &self,
        request: HttpRequest,
        call: &str,
        needs: Option<&'static str>,
    ) -> Result<Response, CallError> {
        let call = call.to_owned();
        let response = match self.transport.send(request).await {
            Ok(response) => response,
            Err(NoResponse::NotSent(source)) => return Err(CallError::NotSent { call, source }),
            Err(NoResponse::Ambiguous(source)) => {
                return Err(CallError::Ambiguous { call, source });
            }
        };
        let now = SystemTime::now();
        self.update_skew(&response.headers, now);
        let class = self.record_limits(&response, now);
        let message = || message(&response.body);
        Err(match class {
            ResponseClass::Success | ResponseClass::NotModified => return Ok(response),
            ResponseClass::Unauthorized => CallError::Unauthorized { call, message: message() },
            ResponseClass::RateLimited(until) => CallError::RateLimited { call, until },
            ResponseClass::NotFound => CallError::NotFound { call, needs, message: message() },
            ResponseClass::Conflict | ResponseClass::Refused => {
                CallError::Refused { call, status: response.status, message: message(), needs }
            }
            ResponseClass::Ambiguous => {
                let source = format!("GitHub returned {}: {}", response.status, message()).into();
                CallError::Ambiguous { call, source }
            }
        })
    }

    /// Records a response's rate limits in the budget.
    fn record_limits(&self, response: &Response, now: SystemTime) -> ResponseClass {
        let mut budget = self.budget();
        let class =
            classify(response.status, &response.headers, &response.body, now, budget.refusals());
        if let Some(rate) = rate(&response.headers) {
            if is_core_limit(&response.headers) {
                budget.update(rate);
            }
            record_rate(&response.headers, rate);
        }
        match class {
            ResponseClass::RateLimited(until) if !is_category_limit(&response.headers) => {
                budget.block(until);
            }
            ResponseClass::Success | ResponseClass::NotModified => budget.succeed(),
            _ => {}
        }
        class
    }

    fn update_skew(&self, headers: &HeaderMap, now: SystemTime) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let Some(theirs) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
            return;
        };
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let skew = match theirs.duration_since(now) {
            Ok(ahead) => seconds(ahead),
            Err(behind) => -seconds(behind.duration()),
        };
        let skew = if skew.abs() > CLOCK_TOLERANCE { skew } else { 0 };
        self.skew.store(skew, Ordering::Relaxed);
    }

    fn url(&self, path: &str) -> String {
        if path.starts_with('/') { format!("{}{path}", self.base) } else { path.to_owned() }
    }

    /// Whether a URL belongs to this API, so that credentials may be sent to it.
    pub(super) fn is_api_url(&self, url: &str) -> bool {
        url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Returns `time` shifted by `seconds`, forward or back.
fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 { time.checked_sub(span) } else { time.checked_add(span) };
    moved.unwrap_or(time)
}

/// Parses the JSON of a 2xx response. If it can't be parsed, the call may still have taken effect.
pub(super) fn read<T: DeserializeOwned>(response: &Response, call: &str) -> Result<T, CallError> {
    let body = response.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&response.body);
    serde_json::from_slice(body).map_err(|source| CallError::Ambiguous {
        call: call.to_owned(),
        // serde's message can quote a value; kind and position are enough.
        source: format!(
            "unexpected JSON in the response ({}, line {}, column {})",
            if source.is_data() { "wrong data" } else { "wrong syntax" },
            source.line(),
            source.column()
        )
        .into(),
    })
}
