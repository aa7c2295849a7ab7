//! The two shapes of a line: JSON, and squid's native `access.log`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::egress::verdict::{Cause, Verdict, Whole};

/// The most that a text of a guest's may take in a line: a DNS name fits. Anything longer is cut.
const MAX_TEXT: usize = 256;

/// By which way a guest tried to reach something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// A question to the DNS stub.
    Dns,
    /// A TCP connection to an address.
    Transparent,
    /// A request to the forward proxy.
    Proxy,
    /// A packet that no listener was there for.
    Packet,
}

/// What a guest tried to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// The way.
    pub via: Via,
    /// The destination as far as it is known: a name, an address, or what the guest said.
    pub host: String,
    /// The port; 0 where there is none.
    pub port: u16,
    /// The address and port that the guest connected to or sent to, where there is one.
    pub original: Option<SocketAddr>,
    /// What it did, as in an access log: `CONNECT`, an HTTP method, `DNS`, `SYN`, `UDP`, …
    pub method: String,
    /// The URL without the query, of a request that has one.
    pub url: Option<String>,
}

impl Subject {
    /// A subject whose texts are no longer than may be.
    pub(super) fn bounded(mut self) -> Self {
        cut(&mut self.host);
        cut(&mut self.method);
        if let Some(url) = &mut self.url {
            cut(url);
        }
        self
    }
}

/// Cuts a text so that it takes no more than [`MAX_TEXT`] bytes of a line, escaped as in JSON, and
/// the mark that it was cut.
fn cut(text: &mut String) {
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

/// The same for a text that is made for a line.
fn bounded(mut text: String) -> String {
    cut(&mut text);
    text
}

/// What became of something that was allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct End {
    pub(super) up: u64,
    pub(super) down: u64,
    pub(super) elapsed: Duration,
    pub(super) reason: Option<String>,
    pub(super) status: Option<u16>,
    pub(super) peer: Option<Peer>,
    pub(super) named: Option<String>,
}

/// Whom the connection went to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// The destination itself.
    Direct(SocketAddr),
    /// The parent proxy, by the name or address in the policy.
    Parent(String),
}

/// A line of `egress.jsonl`: a contract.
#[derive(Debug, Serialize)]
struct Line<'a> {
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

/// What both shapes need to know beside the subject.
pub(super) struct Context<'a> {
    pub(super) now: SystemTime,
    pub(super) microvm: &'a str,
    pub(super) policy: &'a str,
    pub(super) client: &'a str,
    pub(super) id: Option<u64>,
    pub(super) verdict: &'a Verdict,
    pub(super) rule: Option<&'a str>,
    pub(super) end: Option<&'a End>,
}

/// The JSON line, with its newline.
pub(super) fn json(context: &Context<'_>, subject: &Subject) -> String {
    let cause = context.verdict.cause();
    let end = context.end;
    let line = Line {
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
        cause: cause.map(Cause::code),
        detail: end
            .and_then(|end| end.reason.clone())
            .or_else(|| cause.map(|cause| Whole(cause).to_string()))
            .map(bounded),
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
    // Only maps with odd keys and failing writers make this fail, and neither is here.
    let mut text = serde_json::to_string(&line).unwrap_or_default();
    text.push('\n');
    text
}

/// The line of squid's native log, with its newline: time, elapsed, client, result and status,
/// bytes to the client, method, URL, user, hierarchy and peer, content type
/// (<https://wiki.squid-cache.org/Features/LogFormat>).
pub(super) fn squid(context: &Context<'_>, subject: &Subject) -> String {
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

/// A field of a line that blanks divide: whatever could divide it is escaped as in a URL.
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
