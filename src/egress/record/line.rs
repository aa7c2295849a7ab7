//! The two line formats: JSON, and squid's native `access.log`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::verdict::{CauseChain, RefusalCause, Verdict};

/// Maximum bytes of a guest-controlled text in a line: enough for a DNS name. Longer text is cut.
const MAX_TEXT: usize = 256;

/// The path by which a guest tried to reach a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A query to the DNS stub.
    Dns,
    /// A TCP connection to an address.
    Transparent,
    /// A request to the forward proxy.
    Proxy,
    /// A packet without a listener.
    Packet,
}

/// The destination of an access attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The path.
    pub via: Via,
    /// The destination as far as it is known: a name, an address, or the guest's text.
    pub host: String,
    /// The port; 0 if there is none.
    pub port: u16,
    /// The address and port that the guest connected to or sent to, if any.
    pub original: Option<SocketAddr>,
    /// The method, as in an access log: `CONNECT`, an HTTP method, `DNS`, `SYN`, `UDP`, …
    pub method: String,
    /// The URL without the query, if the request has one.
    pub url: Option<String>,
}

impl Subject {
    /// Truncates the texts to their maximum length.
    pub(super) fn truncated(mut self) -> Self {
        truncate(&mut self.host);
        truncate(&mut self.method);
        if let Some(url) = &mut self.url {
            truncate(url);
        }
        self
    }
}

/// Truncates a text to [`MAX_TEXT`] bytes of a line, escaped as in JSON, and marks the cut.
fn truncate(text: &mut String) {
    let mut taken = 0;
    let end = text.char_indices().find_map(|(index, letter)| {
        taken += match letter {
            '"' | '\\' => 2,
            // As \u001b.
            letter if letter.is_ascii_control() => 6,
            letter => letter.len_utf8(),
        };
        (taken > MAX_TEXT).then_some(index)
    });
    if let Some(end) = end {
        text.truncate(end);
        text.push('…');
    }
}

/// Returns the truncated text.
fn truncated(mut text: String) -> String {
    truncate(&mut text);
    text
}

/// The end of an allowed flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FlowEnd {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) elapsed: Duration,
    pub(super) reason: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) peer: Option<Peer>,
    pub(super) named: Option<String>,
}

/// The peer of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The destination itself.
    Direct(SocketAddr),
    /// The parent proxy, by the name or address in the policy.
    Parent(String),
}

/// A line of `egress.jsonl`: a stable format.
#[derive(Debug, Serialize)]
struct JsonLine<'a> {
    time: String,
    event: &'a str,
    microvm: &'a str,
    policy: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    via: Via,
    method: &'a str,
    host: &'a str,
    port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    original: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    verdict: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    named: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    down: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    milliseconds: Option<u128>,
}

/// The data for both formats besides the subject.
pub(super) struct LineContext<'a> {
    pub(super) now: SystemTime,
    pub(super) microvm: &'a str,
    pub(super) policy: &'a str,
    pub(super) client: &'a str,
    pub(super) id: Option<u64>,
    pub(super) verdict: &'a Verdict,
    pub(super) rule: Option<&'a str>,
    pub(super) end: Option<&'a FlowEnd>,
}

/// Returns the JSON line, with its newline.
pub(super) fn json(context: &LineContext<'_>, subject: &Subject) -> String {
    let cause = context.verdict.cause();
    let end = context.end;
    let line = JsonLine {
        time: humantime::format_rfc3339_millis(context.now).to_string(),
        event: if end.is_some() { "closed" } else { "verdict" },
        microvm: context.microvm,
        policy: context.policy,
        id: context.id,
        via: subject.via,
        method: &subject.method,
        host: &subject.host,
        port: subject.port,
        original: subject.original.map(|address| address.to_string()),
        url: subject.url.as_deref(),
        verdict: context.verdict.code(),
        rule: context.rule,
        cause: cause.map(RefusalCause::code),
        detail: end
            .and_then(|end| end.reason.clone())
            .or_else(|| cause.map(|cause| CauseChain(cause).to_string()))
            .map(truncated),
        peer: end.and_then(|end| end.peer.as_ref()).map(|peer| match peer {
            Peer::Direct(address) => address.to_string(),
            Peer::Parent(name) => name.clone(),
        }),
        named: end.and_then(|end| end.named.as_deref()),
        status: end.and_then(|end| end.status),
        up: end.map(|end| end.up),
        down: end.map(|end| end.down),
        milliseconds: end.map(|end| end.elapsed.as_millis()),
    };
    // Fails only for maps with non-string keys and failing writers; neither occurs here.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// Returns the line of squid's native log, with its newline: time, elapsed, client, result and
/// status, bytes to the client, method, URL, user, hierarchy and peer, content type
/// (<https://wiki.squid-cache.org/Features/LogFormat>).
pub(super) fn squid(context: &LineContext<'_>, subject: &Subject) -> String {
    let since_epoch = context.now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let elapsed = context.end.map_or(0, |end| end.elapsed.as_millis());
    let tunnel = subject.url.is_none();
    let (result, status) = match (context.verdict, context.end) {
        (Verdict::Refused(_), _) | (_, None) => match subject.via {
            Via::Dns | Via::Packet => ("UDP_DENIED", 0),
            Via::Transparent => ("TCP_DENIED", 0),
            Via::Proxy => ("TCP_DENIED", 403),
        },
        (_, Some(end)) if tunnel => ("TCP_TUNNEL", end.status.unwrap_or(200)),
        (_, Some(end)) => ("TCP_MISS", end.status.unwrap_or(0)),
    };
    let is_segment = subject.method == "SYN" || subject.method.starts_with("TCP-");
    let result = if is_segment { "TCP_DENIED" } else { result };
    let (hierarchy, peer) = match context.end.and_then(|end| end.peer.as_ref()) {
        None => ("HIER_NONE", "-".to_owned()),
        Some(Peer::Direct(address)) => ("HIER_DIRECT", address.ip().to_string()),
        Some(Peer::Parent(name)) => ("FIRSTUP_PARENT", name.clone()),
    };
    let url = match &subject.url {
        Some(url) => url.clone(),
        None if subject.port == 0 => subject.host.clone(),
        None => format!("{}:{}", subject.host, subject.port),
    };
    format!(
        "{}.{:03} {elapsed:6} {} {result}/{status:03} {} {} {} - {hierarchy}/{peer} -\n",
        since_epoch.as_secs(),
        since_epoch.subsec_millis(),
        context.client,
        context.end.map_or(0, |end| end.down),
        field(&subject.method),
        field(&url),
    )
}

/// Escapes a field of a space-separated line as in a URL.
fn field(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii_graphic() {
            escaped.push(c);
        } else {
            let mut buffer = [0; 4];
            for byte in c.encode_utf8(&mut buffer).bytes() {
                _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    if escaped.is_empty() { "-".into() } else { escaped }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
