//! What a client's first bytes say: whether they are TLS and for which server, whether they are
//! HTTP and for which host; and whether that is what was expected. Pure: bytes in, findings out.

mod client_hello;
mod http_head;
mod retry;

use super::host::{Host, HostName};
use super::policy::Expected;
use super::verdict::Cause;
use client_hello::ClientHello;

pub use retry::{Answer, SecondHello};

/// The most bytes that are looked at. A `ClientHello` with post-quantum key shares has 2 KiB, the
/// longest seen with client certificates and tickets 6 KiB.
pub const MAX_OPENING: usize = 32 << 10;

/// What the first bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opening {
    /// A `ClientHello`, with the server name in it.
    Tls(Option<String>),
    /// The beginning of TLS, and then something that is none; the text says what is wrong.
    BadTls(String),
    /// An HTTP/1 request, with its Host.
    Http(Option<String>),
    /// Anything else.
    Other,
}

/// Looks at the first bytes as they come.
pub struct Watcher {
    /// Whether HTTP is told from other protocols. It takes a whole head to tell, which a client of
    /// another protocol may never send.
    tell_http: bool,
    seen: Vec<u8>,
    hello: ClientHello,
}

impl Watcher {
    /// Tells TLS and HTTP.
    pub fn new() -> Self {
        Self { tell_http: true, seen: Vec::new(), hello: ClientHello::new() }
    }

    /// Tells TLS only: anything else is told by its first byte.
    pub fn for_tls() -> Self {
        Self { tell_http: false, ..Self::new() }
    }

    /// Takes the next bytes. `None` where it can't be told yet.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Opening> {
        self.seen.extend_from_slice(bytes);
        let found = match self.seen.first()? {
            // The content type of handshake records.
            22 => self.hello.feed(bytes),
            _ if self.tell_http => http_head::look(&self.seen),
            _ => Some(Opening::Other),
        };
        found.or_else(|| (self.seen.len() > MAX_OPENING).then(|| self.too_long()))
    }

    /// All bytes taken so far.
    pub fn into_seen(self) -> Vec<u8> {
        self.seen
    }

    fn too_long(&self) -> Opening {
        match self.seen.first() {
            Some(22) => Opening::BadTls(format!("it is longer than {MAX_OPENING} bytes")),
            _ => Opening::Other,
        }
    }
}

impl Opening {
    /// Whether it is what is expected on a connection to `host`.
    pub fn judge(&self, expected: Expected, host: &Host) -> Result<(), Cause> {
        match (expected, self) {
            (Expected::Http, Self::Http(Some(said))) => {
                match Host::parse_with_port(said, Some(0)) {
                    Ok((named, _)) if named == *host => Ok(()),
                    _ => Err(Cause::HostMismatch(said.clone())),
                }
            }
            (Expected::Http, Self::Http(None)) => Err(Cause::Request("it has no Host".into())),
            (Expected::Http, _) => Err(Cause::Request("it is no HTTP/1".into())),
            (_, Self::BadTls(why)) => Err(Cause::ClientHello(why.clone())),
            (_, Self::Tls(None)) => Err(Cause::SniMissing),
            (_, Self::Tls(Some(said))) => match HostName::parse(said) {
                Ok(named) if host.name() == Some(&named) => Ok(()),
                _ => Err(Cause::SniMismatch(said.clone())),
            },
            (Expected::Tls, Self::Http(_) | Self::Other) => Err(Cause::NotTls),
            (Expected::TlsForNameOrOther, Self::Http(_) | Self::Other) => Ok(()),
        }
    }

    /// The name in it, where it has one.
    pub fn named(&self) -> Option<HostName> {
        match self {
            Self::Tls(Some(said)) => HostName::parse(said).ok(),
            Self::Http(Some(said)) => Host::parse_with_port(said, Some(0)).ok()?.0.name().cloned(),
            Self::Tls(None) | Self::BadTls(_) | Self::Http(None) | Self::Other => None,
        }
    }
}

impl Default for Watcher {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
