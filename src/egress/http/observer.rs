//! Observes HTTP on a connection that is not proxied as HTTP: detects HTTP among other protocols,
//! and reads its requests with [`StrictChecker`]. Where `deny` rules name hosts, it must understand
//! every request, because a server may read an ambiguous one differently; elsewhere it inspects
//! only the first request. Pure: returns names and the bytes to forward.

use super::strict::{RequestNames, StrictChecker};
use crate::egress::host::{Host, HostName};
use crate::egress::verdict::RefusalCause;

/// Maximum bytes of a first line that are searched for HTTP. A longer line belongs to another
/// protocol.
const MAX_LINE: usize = 8 << 10;

/// The protocol of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpokenProtocol {
    /// Anything that a server might read as an HTTP/1 request.
    Http,
    /// Another protocol.
    Other,
}

/// Observes a client's bytes.
#[derive(Debug, Default)]
pub struct HttpObserver {
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
            None => {
                self.protocol = detect_protocol(&self.held);
                match self.protocol {
                    Some(SpokenProtocol::Http) => self.held.clone(),
                    _ => return Ok(Vec::new()),
                }
            }
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

    /// Adds the next bytes of a connection on which nothing is held back. Returns the names in its
    /// first request, or why it is invalid, once known.
    pub fn feed_first(&mut self, bytes: &[u8]) -> Option<Result<Vec<HostName>, RefusalCause>> {
        let named = self.feed(bytes);
        let is_complete = named.is_err() || self.strict.has_complete_head();
        drop(self.take_released());
        match self.protocol {
            Some(SpokenProtocol::Other) => {
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
            Some(SpokenProtocol::Other) => 0,
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

/// Detects whether a server might read the first bytes as HTTP. Returns `None` until that is known.
///
/// Detection is deliberately broad: servers skip empty lines, accept unknown methods, and more. All
/// of them need a method and, after whitespace, a path or URL, or the version in the first line.
fn detect_protocol(seen: &[u8]) -> Option<SpokenProtocol> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | 0x0b | 0x0c);
    let Some(start) = seen.iter().position(|byte| !is_blank(byte) && !b"\r\n".contains(byte))
    else {
        return (seen.len() > MAX_LINE).then_some(SpokenProtocol::Http);
    };
    let text = &seen[start..];
    let end = text.iter().position(|byte| b"\r\n".contains(byte));
    let line = &text[..end.unwrap_or(text.len())];
    let is_over = end.is_some() || line.len() > MAX_LINE;

    let Some(blank) = line.iter().position(is_blank) else {
        let is_text = line.iter().all(u8::is_ascii_graphic);
        return (is_over || !is_text).then_some(SpokenProtocol::Other);
    };
    if !line[..blank].iter().all(u8::is_ascii_graphic) {
        return Some(SpokenProtocol::Other);
    }
    let target = line[blank..].trim_ascii_start();
    if is_git(&line[..blank]) {
        return Some(SpokenProtocol::Other);
    }
    if matches!(target.first(), Some(b'/' | b'*')) || has_scheme(target) {
        return Some(SpokenProtocol::Http);
    }
    let versioned = line.windows(5).any(|part| part.eq_ignore_ascii_case(b"http/"));
    match (versioned, is_over) {
        (true, _) => Some(SpokenProtocol::Http),
        (false, true) => Some(SpokenProtocol::Other),
        (false, false) => None,
    }
}

/// Returns whether a word starts a request of Git's own protocol, which is followed by a path, too:
/// a length of four hexadecimal digits and a service (`gitprotocol-pack(5)`).
fn is_git(word: &[u8]) -> bool {
    let split = word.split_at_checked(4);
    split.is_some_and(|(length, service)| {
        length.iter().all(u8::is_ascii_hexdigit) && service.starts_with(b"git-")
    })
}

/// Returns whether a target begins with a URL's scheme.
fn has_scheme(target: &[u8]) -> bool {
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let length = target.iter().take_while(|byte| is_scheme(byte)).count();
    length > 0 && target[length..].starts_with(b"://")
}

#[cfg(test)]
#[path = "observer_tests.rs"]
mod tests;
