//! Observes HTTP on a connection that is not proxied as HTTP: detects HTTP among other protocols,
//! and reads its requests with [`StrictChecker`]. Where `deny` rules name hosts, it must understand
//! every request, because a server may read an ambiguous one differently; elsewhere it inspects
//! only the first request. Pure: returns names and the bytes to forward.

use super::detect::{FirstLine, LineDetector};
use super::strict::{RequestNames, StrictChecker};
use crate::host::{Host, HostName};
use crate::verdict::RefusalCause;

/// The protocol of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpokenProtocol {
    /// Anything that a server might read as an HTTP/1 request.
    Http,
    /// Another protocol, unless the rest of its first line is HTTP. If the server answers before
    /// the line has ended, it does not read HTTP.
    OtherSoFar,
    /// Another protocol.
    Other,
}

/// Observes a client's bytes.
#[derive(Debug, Default)]
pub struct HttpObserver {
    detector: LineDetector,
    strict: StrictChecker,
    protocol: Option<SpokenProtocol>,
    /// Received bytes that may not be forwarded yet.
    held: Vec<u8>,
}

impl HttpObserver {
    /// Adds the next bytes. Returns the names in the requests that they complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<HostName>, RefusalCause> {
        self.held.extend_from_slice(bytes);
        let fresh = match self.protocol {
            Some(SpokenProtocol::Other) => return Ok(Vec::new()),
            Some(SpokenProtocol::Http) => bytes.to_vec(),
            None | Some(SpokenProtocol::OtherSoFar) => match self.detect(bytes)? {
                Some(SpokenProtocol::Http) => self.held.clone(),
                _ => return Ok(Vec::new()),
            },
        };
        self.strict.feed(&fresh).map_err(|violation| RefusalCause::Request(violation.into()))?;
        if self.strict.connect().is_some() {
            // Traffic through another proxy uses names that we can't see.
            return Err(RefusalCause::Request("CONNECT to an unknown proxy".into()));
        }
        let mut named = Vec::new();
        for names in self.strict.take_names() {
            named.extend(hosts(&names)?);
        }
        Ok(named)
    }

    /// Reads more of the first line.
    fn detect(&mut self, bytes: &[u8]) -> Result<Option<SpokenProtocol>, RefusalCause> {
        let refuse = |why: &str| Err(RefusalCause::Request(why.into()));
        let found = match (self.detector.feed(bytes), self.protocol) {
            (FirstLine::Held, _) => None,
            (FirstLine::OtherSoFar, _) => Some(SpokenProtocol::OtherSoFar),
            (FirstLine::Other, _) => Some(SpokenProtocol::Other),
            (FirstLine::TooLong, _) => return refuse("a first line that is too long"),
            // Its beginning has passed already.
            (FirstLine::Http, Some(_)) => return refuse("HTTP after other bytes"),
            (FirstLine::Http, None) => Some(SpokenProtocol::Http),
        };
        self.protocol = found;
        Ok(found)
    }

    /// Adds the next bytes of a connection on which nothing is held back. Returns the names in its
    /// first request, or why it is invalid, once known.
    pub fn feed_first(&mut self, bytes: &[u8]) -> Option<Result<Vec<HostName>, RefusalCause>> {
        let named = self.feed(bytes);
        let is_complete = named.is_err() || self.strict.has_complete_head();
        drop(self.take_released());
        match self.protocol {
            Some(SpokenProtocol::Other | SpokenProtocol::OtherSoFar) => {
                Some(Err(RefusalCause::Request("it is not HTTP/1".into())))
            }
            _ => is_complete.then_some(named),
        }
    }

    /// Returns the protocol, once known.
    pub fn protocol(&self) -> Option<SpokenProtocol> {
        self.protocol
    }

    /// Takes the bytes that may be forwarded.
    pub fn take_released(&mut self) -> Vec<u8> {
        let retained = match self.protocol {
            None => self.held.len(),
            Some(SpokenProtocol::Other | SpokenProtocol::OtherSoFar) => 0,
            Some(SpokenProtocol::Http) => self.strict.held(),
        };
        let retained = self.held.split_off(self.held.len() - retained.min(self.held.len()));
        std::mem::replace(&mut self.held, retained)
    }
}

/// Returns the names in a request: in its target if that is a URL, and in its Host.
fn hosts(RequestNames { target, host }: &RequestNames) -> Result<Vec<HostName>, RefusalCause> {
    let authority = match target.split_once("://") {
        _ if target.starts_with('/') || target == "*" => None,
        Some((_, rest)) => rest.split(['/', '?', '#']).next(),
        None => {
            return Err(RefusalCause::Request("a target that is neither a path nor a URL".into()));
        }
    };
    let authority = authority.into_iter().chain(host.as_deref().filter(|host| !host.is_empty()));
    let mut names = Vec::new();
    for authority in authority {
        let (host, _) = Host::parse_with_port(authority, Some(0)).map_err(RefusalCause::Host)?;
        names.extend(host.name().cloned());
    }
    Ok(names)
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
