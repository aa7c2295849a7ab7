//! HTTP on a connection that is only watched, where `deny` rules are for names: it is told from other
//! protocols, and each of its requests must be one that [`Strict`] reads, because a server may read
//! any other in its own way. Pure: bytes in, names and bytes that may pass out.

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
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What came of a client's bytes, sent in parts of a size: the names, or that they were
    /// refused; and what had passed.
    fn watch(bytes: &[u8], part: usize) -> (Result<Vec<String>, Cause>, Vec<u8>) {
        let mut watched = Watched::default();
        let (mut names, mut passed) = (Vec::new(), Vec::new());
        for part in bytes.chunks(part) {
            match watched.feed(part) {
                Ok(named) => names.extend(named.iter().map(ToString::to_string)),
                Err(cause) => return (Err(cause), passed),
            }
            passed.extend(watched.released());
        }
        (Ok(names), passed)
    }

    const GOOD: &str = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";
    const EVIL: &str = "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n";

    /// Ways of asking a server for `evil.test` that one or another server understands. Each is
    /// either refused, or the name is seen before a byte of the request has passed.
    #[expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]
    fn ways() -> Vec<(&'static str, String)> {
        let long = "x".repeat(9 << 10);
        let own = |text: &str| text.to_owned();
        vec![
            ("plain", own(EVIL)),
            ("second request", format!("{GOOD}{EVIL}")),
            (
                "after a body",
                own("POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\nabc") + EVIL,
            ),
            (
                "after chunks",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
                ) + EVIL,
            ),
            ("second Host", own("GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n")),
            ("leading line end", format!("\r\n{EVIL}")),
            ("leading line feeds", format!("\n\n{EVIL}")),
            ("leading blanks", format!(" \t{EVIL}")),
            ("many line ends", "\r\n".repeat(8 << 10) + EVIL),
            ("lower-case method", EVIL.replace("GET", "get")),
            ("unknown method", EVIL.replace("GET", "FROBNICATE")),
            ("odd method", EVIL.replace("GET", "M-SEARCH")),
            ("method of signs", EVIL.replace("GET", "!#$%&")),
            ("bare line feeds", EVIL.replace("\r\n", "\n")),
            ("bare returns", EVIL.replace("\r\n", "\r")),
            (
                "absolute form",
                EVIL.replace("GET /", "GET http://evil.test/").replace("Host: evil", "Host: good"),
            ),
            (
                "absolute form, odd scheme",
                own("GET x-y://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n"),
            ),
            ("user info", EVIL.replace("GET /", "GET http://good.test@evil.test/")),
            ("user info in Host", EVIL.replace("evil.test", "good.test@evil.test")),
            ("space before the colon", EVIL.replace("Host:", "Host :")),
            ("tab before the colon", EVIL.replace("Host:", "Host\t:")),
            ("folded", EVIL.replace("Host: ", "Host:\r\n ")),
            ("folded first field", EVIL.replace("Host:", "X: y\r\n Host:")),
            ("no space after the colon", EVIL.replace("Host: ", "Host:")),
            ("upper case", EVIL.replace("Host: evil.test", "HOST: EVIL.TEST")),
            ("trailing dot", EVIL.replace("evil.test", "evil.test.")),
            ("a port", EVIL.replace("evil.test", "evil.test:80")),
            ("another port", EVIL.replace("evil.test", "evil.test:8080")),
            ("percent", EVIL.replace("evil.test", "%65vil.test")),
            ("an empty port", EVIL.replace("evil.test", "evil.test:")),
            ("a large head", EVIL.replace("Host:", &format!("X: {long}\r\nHost:"))),
            ("a large target", EVIL.replace("GET /", &format!("GET /{long}"))),
            (
                "a large target without slash",
                EVIL.replace("GET /", &format!("GET http://evil.test/{long}")),
            ),
            ("version 1.0", EVIL.replace("HTTP/1.1", "HTTP/1.0")),
            ("version 1.2", EVIL.replace("HTTP/1.1", "HTTP/1.2")),
            ("small letters", EVIL.replace("HTTP/1.1", "http/1.1")),
            ("version 0.9", own("GET http://evil.test/\r\n")),
            ("tabs for spaces", EVIL.replace("GET / ", "GET\t/\t")),
            ("two spaces", EVIL.replace("GET /", "GET  /")),
            ("a control character", EVIL.replace("GET /", "GET /\x01")),
            ("a zero byte", EVIL.replace("GET /", "GET /\0")),
            (
                "both lengths",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
                ) + EVIL,
            ),
            (
                "two lengths",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 40\r\nContent-Length: 0\r\n\r\n",
                ) + EVIL,
            ),
            (
                "a chunk extension",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
                ) + EVIL,
            ),
            (
                "a trailer",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil.test\r\n\r\n",
                ) + EVIL,
            ),
            (
                "an odd encoding",
                own("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: xchunked\r\n\r\n")
                    + EVIL,
            ),
            (
                "expectation",
                own(
                    "POST / HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
                ) + EVIL,
            ),
            (
                "an upgrade",
                GOOD.replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
                    + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            ),
            ("HTTP/2 at once", own("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
            ("CONNECT", own("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n")),
            ("a target that is a name", own("GET evil.test HTTP/1.1\r\nHost: good.test\r\n\r\n")),
            ("no Host", own("GET http://evil.test/ HTTP/1.0\r\n\r\n")),
        ]
    }

    #[test]
    fn no_way_of_asking_for_a_name_goes_unseen() {
        for (what, bytes) in ways() {
            for part in [1, 3, 100, bytes.len()] {
                let (names, passed) = watch(bytes.as_bytes(), part);
                let seen =
                    matches!(&names, Ok(names) if names.iter().any(|name| name == "evil.test"));
                let passed = String::from_utf8_lossy(&passed);
                let asked = passed.to_lowercase().contains("evil") || passed.contains("PRI");
                assert!(seen || !asked, "{what}, {part} at once: {names:?}, passed {passed}");
            }
        }
    }

    #[test]
    fn other_protocols_pass_as_they_are() {
        let rows: [&[u8]; 14] = [
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"\0\0\0\x08\x04\xd2\x16\x2f",
            b"*1\r\n$4\r\nPING\r\n",
            b"PING\r\n",
            b"GET key\r\n",
            b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\n",
            b"USER anonymous\r\n",
            b"NICK me\r\nUSER me 0 * :me\r\n",
            b"CONNECT {\"verbose\":false}\r\nPING\r\n",
            b"0032git-upload-pack /x\0host=a.test\0",
            b"AMQP\0\0\x09\x01",
            b"\x10\x0c\0\x04MQTT",
            b"{\"message\": \"a line of JSON\"}\n",
            b"\xe2\x82\xac\n",
        ];
        for bytes in rows {
            for part in [1, bytes.len()] {
                let (names, passed) = watch(bytes, part);
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(names, Ok(Vec::new()), "{text}");
                assert_eq!(passed, bytes, "{text}");
            }
        }
    }

    #[test]
    fn a_body_passes_as_it_comes_and_a_head_as_a_whole() {
        let mut watched = Watched::default();
        watched.feed(b"PUT /x HTTP/1.1\r\nHost: good.test\r\n").unwrap();
        assert!(watched.released().is_empty());
        let named = watched.feed(b"Content-Length: 9\r\n\r\nab").unwrap();
        assert_eq!(named, [HostName::parse("good.test").unwrap()]);
        assert!(watched.released().ends_with(b"\r\n\r\nab"));
        watched.feed(b"cdefghiGE").unwrap();
        assert_eq!(watched.released(), b"cdefghi");
    }

    proptest! {
        #[test]
        fn what_passes_is_what_came(
            bytes in prop::collection::vec(any::<u8>(), 0..200), part in 1_usize..50,
        ) {
            let (_, passed) = watch(&bytes, part);
            prop_assert!(bytes.starts_with(&passed));
        }

        #[test]
        fn a_name_is_seen_however_it_is_cut(
            before in 0_usize..4, parts in prop::collection::vec(1_usize..30, 1..40),
        ) {
            let text = format!("{}{EVIL}", GOOD.repeat(before));
            let mut watched = Watched::default();
            let (mut rest, mut names) = (text.as_bytes(), Vec::new());
            for part in parts.iter().cycle() {
                let (now, later) = rest.split_at((*part).min(rest.len()));
                names.extend(watched.feed(now).unwrap());
                let passed = watched.released();
                prop_assert!(names.iter().any(|name| name.to_string() == "evil.test")
                    || !passed.windows(4).any(|part| part == b"evil"));
                rest = later;
                if rest.is_empty() { break }
            }
            prop_assert_eq!(names.len(), before + 1);
        }
    }
}
