//! Handlers of GitHub's calls on top of the state: no socket, no clock.
//!
//! [`handle`] takes a request and the time. [`ReplyOrWait::Wait`] means that a long poll has no
//! reply yet: the caller retries when the state has changed, and marks the last attempt as final.

mod app;
pub mod bodies;
pub mod control;
mod guard;
mod rest;
mod runner_protocol;
mod runs;
mod scale_set_service;

use serde_json::{Value, json};

use crate::faults::{Class, Fault};
use crate::record::Exchange;
use crate::state::State;
use crate::time::Millis;

/// A complete request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// The path, without host and query.
    pub path: String,
    /// The query, without `?`.
    pub query: String,
    /// The headers, with lowercase names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// Returns a header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Returns a query parameter, unescaped.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(have, _)| *have == name).map(|(_, value)| unescaped(value))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.parameter(name)?.parse().ok()
    }

    /// Returns the token of `Authorization`, if its scheme is one of `schemes`.
    fn token(&self, schemes: &[&str]) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme)).then_some(token)
    }

    /// Returns the body as JSON; null if it is not JSON.
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// Decodes percent-encoding and `+`.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let escape = (byte == b'%').then(|| after.get(..2)).flatten();
        let code = escape.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(code) => {
                bytes.push(code);
                rest = &after[2..];
            }
            None => bytes.push(if byte == b'+' { b' ' } else { byte }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers in addition to those of every reply.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// Creates a JSON reply.
    pub fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        Self { status, headers, body: body.to_string() }
    }

    /// Creates a plain text reply.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
        Self { status, headers, body: body.into() }
    }

    /// Creates a reply without a body.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    /// Creates an error in GitHub's format.
    pub fn error(status: u16, message: &str) -> Self {
        let documentation = "https://docs.github.com/rest";
        let body = json!({
            "message": message, "documentation_url": documentation, "status": status.to_string(),
        });
        Self::json(status, &body)
    }

    fn not_found() -> Self {
        Self::error(404, "Not Found")
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A reply, or a request to wait.
#[derive(Debug, Clone, PartialEq)]
pub enum ReplyOrWait {
    /// The reply.
    Reply(Reply),
    /// A long poll has no reply yet.
    Wait,
}

impl From<Reply> for ReplyOrWait {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// The outcome of handling a request.
#[derive(Debug, Clone, PartialEq)]
pub struct HandlerOutcome {
    /// The reply.
    pub reply: ReplyOrWait,
    /// The injected fault. The server truncates or withholds the reply accordingly.
    pub fault: Option<Fault>,
}

/// One attempt to handle a request.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// Whether this is the first attempt: a fault affects a request once.
    pub is_first: bool,
    /// Whether a long poll has expired.
    pub is_final: bool,
}

impl Attempt {
    /// The only attempt, which does not wait.
    pub const ONCE: Self = Self { is_first: true, is_final: true };
}

/// Handles a request and records the exchange.
pub fn handle(
    state: &mut State,
    request: &Request,
    attempt: Attempt,
    now: Millis,
) -> HandlerOutcome {
    let path = request.path.strip_prefix("/api/v3").unwrap_or(&request.path).to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // Control calls never get faults.
    let class = class_of(&request.method, &parts).filter(|_| attempt.is_first);
    let fault = class.and_then(|class| state.faults.draw(class, Fault::affects_response));
    if let Some(fault) = fault {
        state.count_fault(fault);
    }
    let reply = match fault.and_then(|fault| fault_reply(state, request, fault)) {
        Some(reply) => ReplyOrWait::Reply(reply),
        None => dispatch(state, request, &parts, attempt, now),
    };
    let reply = match (fault, reply) {
        (Some(Fault::ServerErrorAfterEffect), ReplyOrWait::Reply(_)) => {
            ReplyOrWait::Reply(Reply::error(502, "Server Error"))
        }
        (_, reply) => reply,
    };
    if let ReplyOrWait::Reply(reply) = &reply {
        state.recorder.record(Exchange {
            at: now,
            method: request.method.clone(),
            path,
            query: request.query.clone(),
            request: String::from_utf8_lossy(&request.body).into_owned(),
            status: reply.status,
            response: reply.body.clone(),
            fault,
        });
    }
    HandlerOutcome { reply, fault }
}

/// Returns the reply of a fault that replaces the call.
fn fault_reply(state: &mut State, request: &Request, fault: Fault) -> Option<Reply> {
    let limited = "You have exceeded a secondary rate limit. Please wait a few minutes before you \
                   try again.";
    let tenant = ["/_apis/", "/_sim/queue/"].iter().any(|prefix| request.path.starts_with(prefix));
    match fault {
        Fault::Conflict if tenant => Some(scale_set_service::conflict(&request.path)),
        Fault::ServerError => Some(Reply::error(502, "Server Error")),
        Fault::Conflict => Some(Reply::error(409, "Conflict")),
        Fault::Forbidden { retry_after } => {
            Some(Reply::error(403, limited).with("retry-after", retry_after.to_string()))
        }
        Fault::TooManyRequests { retry_after } => {
            Some(Reply::error(429, limited).with("retry-after", retry_after.to_string()))
        }
        Fault::RevokedToken | Fault::ExpiredQueueToken => {
            if let Some(token) = request.token(&["bearer", "token"]) {
                state.revoke(token);
            }
            Some(Reply::error(401, "Bad credentials"))
        }
        _ => None,
    }
}

/// Returns the class of a call; `None` for the simulator's control calls.
pub fn class_of(method: &str, parts: &[&str]) -> Option<Class> {
    Some(match parts {
        ["_sim", "runner", ..] => Class::Job,
        ["_apis", "runtime", "runnerscalesets", _, "generatejitconfig"] => Class::Mint,
        ["_sim", "queue", ..] => Class::Messages,
        ["_sim", ..] => return None,
        ["_apis", .., "agents"] => Class::Runners,
        ["_apis", .., "agents", _] if method == "DELETE" => Class::Delete,
        ["_apis", ..] | ["actions", "runner-registration"] => Class::ScaleSet,
        [.., "hook", "deliveries"] | [.., "attempts"] => Class::Webhook,
        ["app", ..] | [.., "installation"] => Class::Authentication,
        [.., "generate-jitconfig"] => Class::Mint,
        [.., "registration-token" | "remove-token"] => Class::ScaleSet,
        [.., "runners", _] if method == "DELETE" => Class::Delete,
        [.., "runners" | "runner-groups"] | [.., "runners" | "runner-groups", _] => Class::Runners,
        [.., "runs" | "jobs"] | [.., "jobs", _] => Class::Runs,
        _ => Class::Other,
    })
}

fn dispatch(
    state: &mut State,
    request: &Request,
    parts: &[&str],
    attempt: Attempt,
    now: Millis,
) -> ReplyOrWait {
    match parts {
        ["_sim", "runner", rest @ ..] => {
            runner_protocol::handle(state, request, rest, attempt, now)
        }
        ["_sim", "queue", set] | ["_sim", "queue", set, _] => {
            let message = parts.get(3).copied();
            scale_set_service::queue(state, request, set, message, attempt, now)
        }
        ["_sim", rest @ ..] => control::handle(state, request, rest, now).into(),
        ["_apis", rest @ ..] => scale_set_service::handle(state, request, rest, now).into(),
        ["actions", "runner-registration"] => {
            scale_set_service::register(state, request, now).into()
        }
        _ => guard::rest(state, request, parts, now).into(),
    }
}

#[cfg(test)]
mod tests;
