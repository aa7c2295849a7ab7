//! Parses a client's first bytes: whether they are TLS, for which server, and whether that matches
//! the expected protocol. Pure: no I/O.

mod client_hello;
mod records;
mod retry;

use super::host::{Host, HostName};
use super::policy::ExpectedProtocol;
use super::verdict::RefusalCause;
use client_hello::ClientHello;
use records::{ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, HEARTBEAT, MAJOR_VERSION};

pub use retry::{RetryDetector, SecondHello};

/// Maximum bytes that are inspected. A `ClientHello` with post-quantum key shares has 2 KiB, the
/// longest seen with client certificates and tickets 6 KiB.
pub const MAX_OPENING: usize = 32 << 10;

/// The kind of a client's first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientOpening {
    /// A `ClientHello`, with its server name.
    Tls(Option<String>),
    /// Malformed TLS; the text says what is wrong.
    BadTls(String),
    /// Another protocol.
    Other,
}

/// Reads the first bytes as they arrive. The first two distinguish TLS from other protocols.
pub struct OpeningReader {
    seen: Vec<u8>,
    hello: ClientHello,
    /// Where the `ClientHello` ends, once it is complete.
    end: Option<usize>,
}

impl OpeningReader {
    /// Creates an empty reader.
    pub fn new() -> Self {
        Self { seen: Vec::new(), hello: ClientHello::new(), end: None }
    }

    /// Adds the next bytes. Returns `None` until the kind is known.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<ClientOpening> {
        self.seen.extend_from_slice(bytes);
        let found = match self.seen[..] {
            [HANDSHAKE, ..] => self.hello.feed(bytes).map(|opening| self.check_record_end(opening)),
            // Some servers skip such a record and read the hello behind it.
            [] | [CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA | HEARTBEAT] => None,
            [CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA | HEARTBEAT, MAJOR_VERSION, ..] => {
                Some(ClientOpening::BadTls("a TLS record of another type precedes it".into()))
            }
            _ => Some(ClientOpening::Other),
        };
        let too_long = || ClientOpening::BadTls(format!("it is longer than {MAX_OPENING} bytes"));
        found.or_else(|| (self.seen.len() > MAX_OPENING).then(too_long))
    }

    /// Checks that the hello ends with its record.
    fn check_record_end(&mut self, opening: ClientOpening) -> ClientOpening {
        if !matches!(opening, ClientOpening::Tls(_)) {
            return opening;
        }
        match records::end_of_message(&self.seen) {
            Ok(end) => self.end = Some(end),
            Err(violation) => return ClientOpening::BadTls(violation.into()),
        }
        opening
    }

    /// Returns the inspected bytes, and those received after a `ClientHello`, which were not
    /// inspected.
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<u8>) {
        let rest = self.end.map(|end| self.seen.split_off(end)).unwrap_or_default();
        (self.seen, rest)
    }
}

impl ClientOpening {
    /// Checks that it matches the expected protocol on a connection to `host`.
    pub fn check(&self, expected: ExpectedProtocol, host: &Host) -> Result<(), RefusalCause> {
        match (expected, self) {
            (ExpectedProtocol::Http, _) => Err(RefusalCause::Request("it is not HTTP/1".into())),
            (_, Self::BadTls(why)) => Err(RefusalCause::ClientHello(why.clone())),
            (_, Self::Tls(None)) => Err(RefusalCause::SniMissing),
            (_, Self::Tls(Some(name))) => match HostName::parse(name) {
                Ok(named) if host.name() == Some(&named) => Ok(()),
                _ => Err(RefusalCause::SniMismatch(name.clone())),
            },
            (ExpectedProtocol::Tls, Self::Other) => Err(RefusalCause::NotTls),
            (ExpectedProtocol::TlsForNameOrOther, Self::Other) => Ok(()),
        }
    }

    /// Returns the server name, if it has a valid one.
    pub fn server_name(&self) -> Option<HostName> {
        match self {
            Self::Tls(Some(name)) => HostName::parse(name).ok(),
            Self::Tls(None) | Self::BadTls(_) | Self::Other => None,
        }
    }
}

impl Default for OpeningReader {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "opening_tests.rs"]
mod tests;
