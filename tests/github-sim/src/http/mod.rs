//! GitHub's calls, answered from the state: no socket, no clock.
//!
//! [`answer`] takes a request and the time. An [`Answer::Wait`] is a long poll that has nothing to
//! say yet: the caller asks again when something has changed, or says so when the poll is over.

pub mod bodies;
mod guard;
mod hooks;
mod job_side;
mod rest;
mod runs;
pub mod sim;
mod tenant;

use serde_json::{Value, json};

use crate::faults::{Class, Fault};
use crate::record::Exchange;
use crate::state::State;
use crate::time::Millis;

/// A request, read whole.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET`, `POST` …
    pub method: String,
    /// Without host and query.
    pub path: String,
    /// The query, without `?`.
    pub query: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// A header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// A value of the query. Escapes are undone.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(have, _)| *have == name).map(|(_, value)| unescaped(value))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.parameter(name)?.parse().ok()
    }

    /// The token of `Authorization`, whatever the scheme of `schemes` it comes with.
    fn token(&self, schemes: &[&str]) -> Option<&str> {
        let (scheme, token) = self.header("authorization")?.split_once(' ')?;
        schemes.iter().any(|known| known.eq_ignore_ascii_case(scheme)).then_some(token)
    }

    /// The body as JSON; null where it is none.
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

/// Undoes `%41` and `+`.
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

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Headers beside those that every answer has.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// JSON.
    pub fn json(status: u16, body: &Value) -> Self {
        let headers = vec![("content-type", "application/json; charset=utf-8".to_owned())];
        Self { status, headers, body: body.to_string() }
    }

    /// Plain text.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
        Self { status, headers, body: body.into() }
    }

    /// Nothing but a status.
    pub fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    /// An error, in GitHub's form.
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

/// An answer, or that there is none yet.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// This.
    Reply(Reply),
    /// A long poll has nothing to say yet.
    Wait,
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

/// What the server does with an answer beside sending it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The answer.
    pub answer: Answer,
    /// Whether its body is cut, or it is not sent at all.
    pub fault: Option<Fault>,
}

/// A request with what is known of how often it was asked.
#[derive(Debug, Clone, Copy)]
pub struct Asking {
    /// Whether this is the first time: faults befall a request once.
    pub first: bool,
    /// Whether a long poll is over.
    pub over: bool,
}

impl Asking {
    /// A request that is asked once and takes what there is.
    pub const ONCE: Self = Self { first: true, over: true };
}

/// Answers a request, and records the exchange.
pub fn answer(state: &mut State, request: &Request, asking: Asking, now: Millis) -> Outcome {
    let path = request.path.strip_prefix("/api/v3").unwrap_or(&request.path).to_owned();
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    // Steering is never made to fail.
    let class = class_of(&request.method, &parts).filter(|_| asking.first);
    let fault = class.and_then(|class| state.faults.draw(class, Fault::is_of_the_answer));
    if let Some(fault) = fault {
        state.suffer(fault);
    }
    let answer = match fault.and_then(|fault| instead(state, request, fault)) {
        Some(reply) => Answer::Reply(reply),
        None => dispatch(state, request, &parts, asking, now),
    };
    let answer = match (fault, answer) {
        (Some(Fault::ServerErrorAfterEffect), Answer::Reply(_)) => {
            Answer::Reply(Reply::error(502, "Server Error"))
        }
        (_, answer) => answer,
    };
    if let Answer::Reply(reply) = &answer {
        state.recorder.keep(Exchange {
            at: now,
            method: request.method.clone(),
            path,
            query: request.query.clone(),
            request: String::from_utf8_lossy(&request.body).into_owned(),
            status: reply.status,
            answer: reply.body.clone(),
            fault,
        });
    }
    Outcome { answer, fault }
}

/// The answer of a fault that happens instead of what was asked for.
fn instead(state: &mut State, request: &Request, fault: Fault) -> Option<Reply> {
    let limited = "You have exceeded a secondary rate limit. Please wait a few minutes before you \
                   try again.";
    let tenant = ["/_apis/", "/_sim/queue/"].iter().any(|prefix| request.path.starts_with(prefix));
    match fault {
        Fault::Conflict if tenant => Some(tenant::conflict(&request.path)),
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

/// The class of a call; none for the calls that steer the simulator.
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
    asking: Asking,
    now: Millis,
) -> Answer {
    match parts {
        ["_sim", "runner", rest @ ..] => job_side::answer(state, request, rest, asking, now),
        ["_sim", "queue", set] | ["_sim", "queue", set, _] => {
            let message = parts.get(3).copied();
            tenant::queue(state, request, set, message, asking, now)
        }
        ["_sim", rest @ ..] => sim::answer(state, request, rest, now).into(),
        ["_apis", rest @ ..] => tenant::answer(state, request, rest, now).into(),
        ["actions", "runner-registration"] => tenant::register(state, request, now).into(),
        _ => guard::rest(state, request, parts, now).into(),
    }
}

#[cfg(test)]
mod tests;
