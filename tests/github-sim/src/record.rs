//! A record of every exchange, for the contract test and for counting calls.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::faults::Fault;
use crate::time::Millis;

/// The maximum number of recorded exchanges; further calls are only counted.
const MAX_EXCHANGES: usize = 100_000;

/// A request with its response. Contains secrets, which `Debug` and [`Exchange::masked`] omit.
#[derive(Clone, Serialize)]
pub struct Exchange {
    /// When the response was created.
    pub at: Millis,
    /// `GET`, `POST` …
    pub method: String,
    /// The path, without host and query.
    pub path: String,
    /// The raw query, without `?`.
    pub query: String,
    /// The request's body.
    pub request: String,
    /// The response's status.
    pub status: u16,
    /// The response's body, before any fault truncates it.
    #[serde(rename = "answer")]
    pub response: String,
    /// The injected fault. The API description does not cover responses of faults.
    pub fault: Option<Fault>,
}

impl Exchange {
    /// Returns one line for a person, without secrets.
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

/// The recorded exchanges and call counts.
#[derive(Debug, Default)]
pub struct Recorder {
    exchanges: Vec<Exchange>,
    calls: BTreeMap<String, u64>,
}

impl Recorder {
    /// Records an exchange and counts the call.
    pub fn record(&mut self, exchange: Exchange) {
        let call = format!("{} {}", exchange.method, pattern(&exchange.path));
        *self.calls.entry(call).or_default() += 1;
        if self.exchanges.len() < MAX_EXCHANGES {
            self.exchanges.push(exchange);
        }
    }

    /// Returns all recorded exchanges, oldest first.
    pub fn exchanges(&self) -> &[Exchange] {
        &self.exchanges
    }

    /// Returns the count of each call, by method and path with numbers as `{n}`.
    pub fn calls(&self) -> &BTreeMap<String, u64> {
        &self.calls
    }
}

/// Returns a path with its numbers replaced by `{n}` and its UUIDs by `{id}`.
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
