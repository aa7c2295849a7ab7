//! One call: its turn in the budget, the request, and what the answer means.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use hyper::Method;
use hyper::header::{ACCEPT, AUTHORIZATION, DATE, HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::budget::Budget;
use super::classify::{Class, classify, is_core, is_of_one_kind, message, rate};
use super::error::CallError;
use super::measure::{outcome, purpose, show_rate};
use super::transport::{Answer, DEADLINE, Question, Silence, Transport, header};
use crate::telemetry::metrics::GITHUB_CALLS;

/// A difference of clocks that is not worth correcting: the `Date` header has whole seconds, and
/// an answer takes a while.
const CLOCK_TOLERANCE: i64 = 10;

/// A call of the REST API.
pub(super) struct Ask {
    pub(super) method: Method,
    /// Whole, or under the API's root.
    pub(super) path: String,
    pub(super) body: Option<Value>,
    /// Sent as `If-None-Match`.
    pub(super) etag: Option<String>,
    /// The right that it needs, for errors.
    pub(super) needs: Option<&'static str>,
}

impl Ask {
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self { method: Method::GET, path: path.into(), body: None, etag: None, needs: None }
    }

    pub(super) fn post(path: impl Into<String>, body: Value) -> Self {
        Self { method: Method::POST, path: path.into(), body: Some(body), etag: None, needs: None }
    }

    pub(super) fn delete(path: impl Into<String>) -> Self {
        Self { method: Method::DELETE, ..Self::get(path) }
    }

    pub(super) fn needs(self, right: &'static str) -> Self {
        Self { needs: Some(right), ..self }
    }

    /// What errors call it.
    pub(super) fn name(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

/// What all calls of a client share.
pub(super) struct Wire {
    pub(super) transport: Transport,
    base: String,
    budget: Mutex<Budget>,
    /// GitHub's clock minus ours, in seconds.
    skew: AtomicI64,
}

impl Wire {
    pub(super) fn new(transport: Transport, base: String, gap: Duration) -> Self {
        let budget = Mutex::new(Budget::new(gap));
        Self { transport, base, budget, skew: AtomicI64::new(0) }
    }

    /// Held for a few instructions at a time; what a panic leaves behind is whole.
    pub(super) fn budget(&self) -> MutexGuard<'_, Budget> {
        self.budget.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time by GitHub's clock.
    pub(super) fn time(&self) -> SystemTime {
        shifted(SystemTime::now(), self.skew.load(Ordering::Relaxed))
    }

    /// GitHub's clock minus ours, in seconds, where it matters.
    pub(super) fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Sends a call in its turn; answers 2xx and 304.
    pub(super) async fn ask(
        &self,
        ask: &Ask,
        authorization: &HeaderValue,
    ) -> Result<Answer, CallError> {
        self.turn(ask.method != Method::GET, &ask.name()).await?;
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github+json"));
        headers.extend(header("x-github-api-version", "2022-11-28"));
        headers.extend(ask.etag.as_deref().and_then(|etag| header("if-none-match", etag)));
        let question = Question {
            method: ask.method.clone(),
            address: self.address(&ask.path),
            headers,
            body: ask.body.as_ref().map(|body| body.to_string().into_bytes()),
            deadline: DEADLINE,
        };
        self.exchange(question, &ask.name(), ask.needs).await
    }

    /// Waits for a turn, or says until when there is none.
    pub(super) async fn turn(&self, mutation: bool, call: &str) -> Result<(), CallError> {
        let turn = self.budget().reserve(mutation, SystemTime::now());
        match turn {
            Ok(wait) => tokio::time::sleep(wait).await,
            Err(until) => return Err(CallError::RateLimited { call: call.to_owned(), until }),
        }
        Ok(())
    }

    /// Sends a question and reads what its answer means; answers 2xx and 304.
    pub(super) async fn exchange(
        &self,
        question: Question,
        call: &str,
        needs: Option<&'static str>,
    ) -> Result<Answer, CallError> {
        let answered = self.send(question, call, needs).await;
        GITHUB_CALLS.add([purpose(call), outcome(&answered)], 1);
        answered
    }

    async fn send(
        &self,
        question: Question,
        call: &str,
        needs: Option<&'static str>,
    ) -> Result<Answer, CallError> {
        let call = call.to_owned();
        let answer = match self.transport.send(question).await {
            Ok(answer) => answer,
            Err(Silence::NotSent(source)) => return Err(CallError::NotSent { call, source }),
            Err(Silence::Unclear(source)) => return Err(CallError::Ambiguous { call, source }),
        };
        let now = SystemTime::now();
        self.note_clock(&answer.headers, now);
        let class = self.note(&answer, now);
        let message = || message(&answer.body);
        Err(match class {
            Class::Success | Class::NotModified => return Ok(answer),
            Class::Unauthorized => CallError::Unauthorized { call, message: message() },
            Class::RateLimited(until) => CallError::RateLimited { call, until },
            Class::NotFound => CallError::NotFound { call, needs, message: message() },
            Class::Conflict | Class::Refused => {
                CallError::Refused { call, status: answer.status, message: message(), needs }
            }
            Class::Unclear => {
                let source = format!("GitHub answers {}: {}", answer.status, message()).into();
                CallError::Ambiguous { call, source }
            }
        })
    }

    /// Puts an answer's rate limits into the budget.
    fn note(&self, answer: &Answer, now: SystemTime) -> Class {
        let mut budget = self.budget();
        let class = classify(answer.status, &answer.headers, &answer.body, now, budget.strikes());
        if let Some(rate) = rate(&answer.headers) {
            if is_core(&answer.headers) {
                budget.learn(rate);
            }
            show_rate(&answer.headers, rate);
        }
        match class {
            Class::RateLimited(until) if !is_of_one_kind(&answer.headers) => budget.block(until),
            Class::Success | Class::NotModified => budget.succeed(),
            _ => {}
        }
        class
    }

    fn note_clock(&self, headers: &HeaderMap, now: SystemTime) {
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

    fn address(&self, path: &str) -> String {
        if path.starts_with('/') { format!("{}{path}", self.base) } else { path.to_owned() }
    }

    /// Whether a page's address is one of ours to send credentials to.
    pub(super) fn is_ours(&self, address: &str) -> bool {
        address.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// A time moved by seconds, forwards or back.
fn shifted(time: SystemTime, seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 { time.checked_sub(span) } else { time.checked_add(span) };
    moved.unwrap_or(time)
}

/// Reads a 2xx answer's JSON. What can't be read may still have had its effect.
pub(super) fn read<T: DeserializeOwned>(answer: &Answer, call: &str) -> Result<T, CallError> {
    let body = answer.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&answer.body);
    serde_json::from_slice(body).map_err(|source| CallError::Ambiguous {
        call: call.to_owned(),
        // serde's words can quote a value; place and kind are enough.
        source: format!(
            "the answer's JSON is not as expected ({}, line {}, column {})",
            if source.is_data() { "its data" } else { "its form" },
            source.line(),
            source.column()
        )
        .into(),
    })
}
