//! HTTP on a connection that is only watched: it is told from other protocols, and its requests are read
//! by [`Strict`]. Where `deny` rules are for names, each must be one that it reads, because a server may
//! read any other in its own way; elsewhere the first is looked at as it passes. Pure: bytes in, names
//! and bytes that may pass out.

use super::strict::{Names, Strict};
use crate::egress::host::{Host, HostName};
use crate::egress::verdict::Cause;

/// How many bytes of a first line are looked at for what tells HTTP. Where none came by then, what
/// is spoken has lines that are longer than those of HTTP.
const MAX_LINE: usize = 8 << 10;

/// What a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// Something that a server might take for a request of HTTP/1.
    Http,
    /// Anything else.
    Other,
}

/// Looks at what a client sends.
#[derive(Debug, Default)]
pub struct Watched {
    strict: Strict,
    speaks: Option<Speaks>,
    /// What has come and may not pass yet.
    held: Vec<u8>,
}

impl Watched {
    /// Takes the next bytes. Gives the names that the requests which became whole with them are
    /// for.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Vec<HostName>, Cause> {
        self.held.extend_from_slice(bytes);
        let fresh = match self.speaks {
            Some(Speaks::Other) => return Ok(Vec::new()),
            Some(Speaks::Http) => bytes.to_vec(),
            None => {
                self.speaks = tell(&self.held);
                match self.speaks {
                    Some(Speaks::Http) => self.held.clone(),
                    _ => return Ok(Vec::new()),
                }
            }
        };
        self.strict.feed(&fresh).map_err(|violation| Cause::Request(violation.into()))?;
        if self.strict.connect().is_some() {
            // Whatever goes through another proxy goes by names that nobody sees.
            return Err(Cause::Request("CONNECT, to a proxy that no rule knows".into()));
        }
        let mut named = Vec::new();
        for names in self.strict.take_names() {
            named.extend(hosts(&names)?);
        }
        Ok(named)
    }

    /// Takes the next bytes of a connection on which nothing is held back. Gives the names that its
    /// first request is for, or why it is none, once that can be told.
    pub fn first(&mut self, bytes: &[u8]) -> Option<Result<Vec<HostName>, Cause>> {
        let named = self.feed(bytes);
        let is_told = named.is_err() || self.strict.has_begun();
        drop(self.released());
        match self.speaks {
            Some(Speaks::Other) => Some(Err(Cause::Request("it is no HTTP/1".into()))),
            _ => is_told.then_some(named),
        }
    }

    /// What it is, once that can be told.
    pub fn speaks(&self) -> Option<Speaks> {
        self.speaks
    }

    /// Takes what may pass.
    pub fn released(&mut self) -> Vec<u8> {
        let kept = match self.speaks {
            None => self.held.len(),
            Some(Speaks::Other) => 0,
            Some(Speaks::Http) => self.strict.held(),
        };
        let kept = self.held.split_off(self.held.len() - kept.min(self.held.len()));
        std::mem::replace(&mut self.held, kept)
    }
}

/// Whom a request is for: by its target where that is a URL, and by its Host.
fn hosts(Names { target, host }: &Names) -> Result<Vec<HostName>, Cause> {
    let authority = match target.split_once("://") {
        _ if target.starts_with('/') || target == "*" => None,
        Some((_, rest)) => rest.split(['/', '?', '#']).next(),
        None => return Err(Cause::Request("a target that is neither a path nor a URL".into())),
    };
    let said = authority.into_iter().chain(host.as_deref().filter(|host| !host.is_empty()));
    let mut names = Vec::new();
    for said in said {
        let (host, _) = Host::parse_with_port(said, Some(0)).map_err(Cause::Host)?;
        names.extend(host.name().cloned());
    }
    Ok(names)
}

/// Whether a server might take the first bytes for HTTP. `None` where it can't be told yet.
///
/// It does not take the right bytes to be HTTP here: servers pass over empty lines, take methods
/// that nobody has heard of, and more. What they all need is a method and, after a blank, a path or
/// URL, or the version in the first line.
fn tell(seen: &[u8]) -> Option<Speaks> {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t' | 0x0b | 0x0c);
    let Some(start) = seen.iter().position(|byte| !is_blank(byte) && !b"\r\n".contains(byte))
    else {
        return (seen.len() > MAX_LINE).then_some(Speaks::Http);
    };
    let text = &seen[start..];
    let end = text.iter().position(|byte| b"\r\n".contains(byte));
    let line = &text[..end.unwrap_or(text.len())];
    let is_over = end.is_some() || line.len() > MAX_LINE;

    let Some(blank) = line.iter().position(is_blank) else {
        let is_text = line.iter().all(u8::is_ascii_graphic);
        return (is_over || !is_text).then_some(Speaks::Other);
    };
    if !line[..blank].iter().all(u8::is_ascii_graphic) {
        return Some(Speaks::Other);
    }
    let target = line[blank..].trim_ascii_start();
    if is_git(&line[..blank]) {
        return Some(Speaks::Other);
    }
    if matches!(target.first(), Some(b'/' | b'*')) || has_scheme(target) {
        return Some(Speaks::Http);
    }
    let versioned = line.windows(5).any(|part| part.eq_ignore_ascii_case(b"http/"));
    match (versioned, is_over) {
        (true, _) => Some(Speaks::Http),
        (false, true) => Some(Speaks::Other),
        (false, false) => None,
    }
}

/// Whether a word begins a request of Git's own protocol, which has a path behind it, too: a length
/// of four hexadecimal digits and a service (`gitprotocol-pack(5)`).
fn is_git(word: &[u8]) -> bool {
    let split = word.split_at_checked(4);
    split.is_some_and(|(length, service)| {
        length.iter().all(u8::is_ascii_hexdigit) && service.starts_with(b"git-")
    })
}

/// Whether a target begins with a URL's scheme.
fn has_scheme(target: &[u8]) -> bool {
    let is_scheme = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let length = target.iter().take_while(|byte| is_scheme(byte)).count();
    length > 0 && target[length..].starts_with(b"://")
}

#[cfg(test)]
#[path = "watched_tests.rs"]
mod tests;
