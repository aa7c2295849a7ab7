//! Every exchange, as it was: for the contract test and for counting calls.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::faults::Fault;
use crate::time::Millis;

/// More than this is not kept; calls are counted nevertheless.
const MOST_EXCHANGES: usize = 100_000;

/// A request with its answer. Holds secrets: `Debug` and [`Exchange::masked`] don't show them.
#[derive(Clone, Serialize)]
pub struct Exchange {
    /// When the answer was made.
    pub at: Millis,
    /// `GET`, `POST` …
    pub method: String,
    /// Without host and query.
    pub path: String,
    /// The query as it came, without `?`.
    pub query: String,
    /// The body of the request.
    pub request: String,
    /// The status of the answer.
    pub status: u16,
    /// The body of the answer, before any fault cut it.
    pub answer: String,
    /// What was made to go wrong. The contract holds no answers of faults.
    pub fault: Option<Fault>,
}

impl Exchange {
    /// One line for a person, without secrets.
    pub fn masked(&self) -> String {
        let Self { method, path, status, .. } = self;
        let fault = self.fault.map_or(String::new(), |fault| format!(" ({fault:?})"));
        format!("{method} {path} {status}{fault}")
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.masked())
    }
}

/// What was asked and answered.
#[derive(Debug, Default)]
pub struct Recorder {
    exchanges: Vec<Exchange>,
    calls: BTreeMap<String, u64>,
}

impl Recorder {
    /// Keeps an exchange, and counts the call.
    pub fn keep(&mut self, exchange: Exchange) {
        let call = format!("{} {}", exchange.method, pattern(&exchange.path));
        *self.calls.entry(call).or_default() += 1;
        if self.exchanges.len() < MOST_EXCHANGES {
            self.exchanges.push(exchange);
        }
    }

    /// All exchanges, oldest first.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// How often each call was made, by method and path with numbers as `{n}`.
    pub fn calls(&self) -> &BTreeMap<String, u64> {
        &self.calls
    }
}

/// A path with its numbers as `{n}` and its UUIDs as `{id}`.
fn pattern(path: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_uuid = |part: &str| {
        part.len() == 36 && part.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
    };
    let parts = path.split('/').map(|part| match part {
        number if is_number(number) => "{n}",
        id if is_uuid(id) => "{id}",
        other => other,
    });
    parts.collect::<Vec<_>>().join("/")
}
