//! What a client's first bytes say: whether they are TLS and for which server; and whether that is
//! what was expected. Pure: bytes in, findings out.

mod client_hello;
mod records;
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
    /// Anything else.
    Other,
}

/// Looks at the first bytes as they come. What is not TLS is told by its first byte.
pub struct Watcher {
    seen: Vec<u8>,
    hello: ClientHello,
    /// Where the `ClientHello` ends, once it is whole.
    end: Option<usize>,
}

impl Watcher {
    /// One that has seen nothing.
    pub fn new() -> Self {
        Self { seen: Vec::new(), hello: ClientHello::new(), end: None }
    }

    /// Takes the next bytes. `None` where it can't be told yet.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Opening> {
        self.seen.extend_from_slice(bytes);
        let found = match self.seen.first()? {
            // The content type of handshake records.
            22 => self.hello.feed(bytes).map(|opening| self.alone(opening)),
            _ => Some(Opening::Other),
        };
        let too_long = || Opening::BadTls(format!("it is longer than {MAX_OPENING} bytes"));
        found.or_else(|| (self.seen.len() > MAX_OPENING).then(too_long))
    }

    /// A hello with nothing behind it in its record.
    fn alone(&mut self, opening: Opening) -> Opening {
        if !matches!(opening, Opening::Tls(_)) {
            return opening;
        }
        match records::end_of_message(&self.seen) {
            Ok(end) => self.end = Some(end),
            Err(violation) => return Opening::BadTls(violation.into()),
        }
        opening
    }

    /// The bytes that were told, and those behind them: after a `ClientHello` what has come with
    /// it, which nobody has looked at yet.
    pub fn into_seen(mut self) -> (Vec<u8>, Vec<u8>) {
        let rest = self.end.map(|end| self.seen.split_off(end)).unwrap_or_default();
        (self.seen, rest)
    }
}

impl Opening {
    /// Whether it is what is expected on a connection to `host`.
    pub fn judge(&self, expected: Expected, host: &Host) -> Result<(), Cause> {
        match (expected, self) {
            (Expected::Http, _) => Err(Cause::Request("it is no HTTP/1".into())),
            (_, Self::BadTls(why)) => Err(Cause::ClientHello(why.clone())),
            (_, Self::Tls(None)) => Err(Cause::SniMissing),
            (_, Self::Tls(Some(said))) => match HostName::parse(said) {
                Ok(named) if host.name() == Some(&named) => Ok(()),
                _ => Err(Cause::SniMismatch(said.clone())),
            },
            (Expected::Tls, Self::Other) => Err(Cause::NotTls),
            (Expected::TlsForNameOrOther, Self::Other) => Ok(()),
        }
    }

    /// The name in it, where it has one.
    pub fn named(&self) -> Option<HostName> {
        match self {
            Self::Tls(Some(said)) => HostName::parse(said).ok(),
            Self::Tls(None) | Self::BadTls(_) | Self::Other => None,
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
