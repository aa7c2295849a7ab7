//! A strict checker of HTTP/1 requests (RFC 9112): a pure state machine that is fed the bytes of a
//! connection before hyper sees them, and rejects everything that two parsers could read
//! differently.
//!
//! It tracks bodies, too, to know where each head begins. Hyper parses the accepted bytes and
//! writes its own to the destination; a client's framing is never forwarded.

/// Maximum length of a head, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// Maximum number of header fields of one head; hyper's own limit.
const MAX_FIELDS: usize = 100;

/// Maximum length of a line between chunks: a size of 16 digits, or a trailer field.
const MAX_LINE: usize = 8 << 10;

/// Why a request is invalid.
pub type HttpViolation = &'static str;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// In a head.
    Head,
    /// In a body, with this many bytes remaining.
    Body(u64),
    /// In the line before a chunk.
    ChunkSize,
    /// In a chunk, with this many bytes remaining.
    Chunk(u64),
    /// In the line end after a chunk.
    ChunkEnd,
    /// In the trailer section.
    Trailer,
    /// After a CONNECT with this target and Host.
    Connect { target: String, host: Option<String> },
    /// After a violation: nothing more is accepted.
    Failed(HttpViolation),
}

/// Checks the requests of one connection.
#[derive(Debug)]
pub struct StrictChecker {
    state: State,
    /// The incomplete head or line.
    held: Vec<u8>,
    /// Whether a first head is complete.
    has_head: bool,
    /// The names in the requests completed since they were last taken.
    names: Vec<RequestNames>,
}

/// The names in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestNames {
    /// The target, as received.
    pub target: String,
    /// The Host.
    pub host: Option<String>,
}

impl Default for StrictChecker {
    fn default() -> Self {
        Self { state: State::Head, held: Vec::new(), has_head: false, names: Vec::new() }
    }
}

impl StrictChecker {
    /// Checks the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), HttpViolation> {
        if let State::Failed(violation) = self.state {
            return Err(violation);
        }
        self.advance(bytes).inspect_err(|violation| self.state = State::Failed(violation))
    }

    /// Returns whether a first head is complete.
    pub fn has_complete_head(&self) -> bool {
        self.has_head
    }

    /// Returns the length of the incomplete head or line at the end of the checked bytes.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Returns the names in the requests completed since the last call.
    pub fn take_names(&mut self) -> Vec<RequestNames> {
        std::mem::take(&mut self.names)
    }

    /// Returns the target and the Host of a completed CONNECT.
    pub fn connect(&self) -> Option<(&str, Option<&str>)> {
        match &self.state {
            State::Connect { target, host } => Some((target, host.as_deref())),
            _ => None,
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), HttpViolation> {
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Body(remaining) | State::Chunk(remaining) => {
                    let taken = usize::try_from(*remaining).unwrap_or(usize::MAX).min(bytes.len());
                    *remaining -= taken as u64;
                    bytes = &bytes[taken..];
                    self.after_data();
                }
                State::Connect { .. } => return Err("bytes after CONNECT before its response"),
                State::Failed(violation) => return Err(violation),
                State::Head | State::ChunkSize | State::ChunkEnd | State::Trailer => {
                    bytes = rest;
                    self.check_byte(*first)?;
                }
            }
        }
        Ok(())
    }

    fn after_data(&mut self) {
        match self.state {
            State::Body(0) => self.state = State::Head,
            State::Chunk(0) => self.state = State::ChunkEnd,
            _ => {}
        }
    }

    /// Checks a byte of a head or a line.
    fn check_byte(&mut self, byte: u8) -> Result<(), HttpViolation> {
        check_line_end(self.held.last().copied(), byte)?;
        self.held.push(byte);
        let most = if self.state == State::Head { MAX_HEAD } else { MAX_LINE };
        if self.held.len() > most {
            return Err("a head or line that is too long");
        }
        let end: &[u8] = if self.state == State::Head { b"\r\n\r\n" } else { b"\r\n" };
        if !self.held.ends_with(end) {
            // A leading line end is an empty line before the request.
            return if self.state == State::Head && self.held == b"\r\n" {
                Err("an empty line before the request")
            } else {
                Ok(())
            };
        }
        let held = std::mem::take(&mut self.held);
        let text = &held[..held.len() - end.len()];
        self.has_head = true;
        self.state = match self.state {
            State::Head => {
                let (names, state) = read_head(text)?;
                self.names.push(names);
                state
            }
            State::ChunkSize => read_chunk_size(text)?,
            State::ChunkEnd if text.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err("a chunk longer than its size"),
            State::Trailer if text.is_empty() => State::Head,
            State::Trailer => return Err("trailer fields"),
            ref other => other.clone(),
        };
        Ok(())
    }
}

/// Rejects CR and LF unless they form a pair, and control characters except the tab.
fn check_line_end(before: Option<u8>, byte: u8) -> Result<(), HttpViolation> {
    match (before, byte) {
        (Some(b'\r'), b'\n') => Ok(()),
        (_, b'\n') => Err("a line feed without carriage return"),
        (Some(b'\r'), _) => Err("a carriage return without line feed"),
        (_, b'\r' | b'\t') => Ok(()),
        (_, 0..=0x1f | 0x7f) => Err("a control character"),
        _ => Ok(()),
    }
}

fn is_token(bytes: &[u8]) -> bool {
    let is_token_byte =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_token_byte)
}

/// The fields that frame a request's body, as found so far.
#[derive(Debug, Default)]
struct Framing {
    host: Option<String>,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

fn read_head(text: &[u8]) -> Result<(RequestNames, State), HttpViolation> {
    let mut lines =
        text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let request = lines.next().unwrap_or_default();
    let RequestLine { target, is_connect, is_http_11 } = read_request_line(request)?;
    let mut framing = Framing::default();
    for (number, line) in lines.enumerate() {
        if number >= MAX_FIELDS {
            return Err("too many header fields");
        }
        read_field(line, &mut framing)?;
    }
    let names = RequestNames { target, host: framing.host.take() };
    let state = match framing {
        Framing { hosts: 2.., .. } => return Err("more than one Host"),
        Framing { hosts: 0, .. } if is_http_11 => return Err("no Host"),
        Framing { length: Some(_), chunked: true, .. } => {
            return Err("both Content-Length and Transfer-Encoding");
        }
        Framing { chunked: true, .. } if !is_http_11 => {
            return Err("Transfer-Encoding in HTTP/1.0");
        }
        Framing { length: Some(_), .. } | Framing { chunked: true, .. } if is_connect => {
            return Err("CONNECT with a body");
        }
        Framing { chunked: true, .. } => State::ChunkSize,
        Framing { length: Some(length @ 1..), .. } => State::Body(length),
        Framing { .. } if is_connect => {
            State::Connect { target: names.target.clone(), host: names.host.clone() }
        }
        Framing { .. } => State::Head,
    };
    Ok((names, state))
}

/// The parts of a request line.
struct RequestLine {
    target: String,
    is_connect: bool,
    is_http_11: bool,
}

fn read_request_line(line: &[u8]) -> Result<RequestLine, HttpViolation> {
    let parts: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts.as_slice() else {
        return Err("a request line that is not method, target and version");
    };
    if !is_token(method) {
        return Err("a malformed method");
    }
    let is_http_11 = match *version {
        b"HTTP/1.1" => true,
        b"HTTP/1.0" => false,
        _ => return Err("a version other than HTTP/1.1 and HTTP/1.0"),
    };
    let is_connect = *method == b"CONNECT";
    Ok(RequestLine { target: read_target(target, is_connect)?, is_connect, is_http_11 })
}

/// Accepts the targets that hyper accepts, so that hyper rejects none without a reason. Browsers
/// and other programs send UTF-8 paths unescaped.
fn read_target(target: &[u8], is_connect: bool) -> Result<String, HttpViolation> {
    const WRONG: HttpViolation = "a malformed target";
    let text = std::str::from_utf8(target).map_err(|_| "a target that is not UTF-8")?;
    let is_plain = |character: char| !character.is_control() && character != ' ';
    if text.is_empty() || !text.chars().all(is_plain) {
        return Err(WRONG);
    }
    // The target of a CONNECT never reaches hyper; its reader reports errors in its host.
    if !is_connect {
        hyper::Uri::try_from(target).map_err(|_| WRONG)?;
    }
    Ok(text.to_owned())
}

fn read_field(line: &[u8], framing: &mut Framing) -> Result<(), HttpViolation> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err("a header field folded over lines");
    }
    let colon = line.iter().position(|byte| *byte == b':').ok_or("a header without colon")?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if !is_token(name) {
        return Err("a malformed header name");
    }
    match name.to_ascii_lowercase().as_slice() {
        b"host" => {
            framing.hosts += 1;
            framing.host = Some(String::from_utf8_lossy(value).into_owned());
        }
        b"content-length" => {
            if framing.length.is_some() {
                return Err("more than one Content-Length");
            }
            framing.length = Some(read_length(value)?);
        }
        b"transfer-encoding" => {
            if framing.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err("a Transfer-Encoding other than one \"chunked\"");
            }
            framing.chunked = true;
        }
        b"connection" => {
            let frames = |option: &[u8]| {
                [&b"host"[..], b"content-length", b"transfer-encoding"]
                    .iter()
                    .any(|name| option.trim_ascii().eq_ignore_ascii_case(name))
            };
            if value.split(|byte| *byte == b',').any(frames) {
                return Err("a Connection that names a framing header");
            }
        }
        _ => {}
    }
    Ok(())
}

fn read_length(value: &[u8]) -> Result<u64, HttpViolation> {
    const WRONG: HttpViolation = "a Content-Length that is not a number";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(WRONG);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(WRONG)
}

fn read_chunk_size(text: &[u8]) -> Result<State, HttpViolation> {
    const WRONG: HttpViolation = "a chunk size that is not up to 16 hexadecimal digits";
    if text.is_empty() || text.len() > 16 || !text.iter().all(u8::is_ascii_hexdigit) {
        return Err(WRONG);
    }
    let text = std::str::from_utf8(text).map_err(|_| WRONG)?;
    match u64::from_str_radix(text, 16).map_err(|_| WRONG)? {
        0 => Ok(State::Trailer),
        size => Ok(State::Chunk(size)),
    }
}

#[cfg(test)]
#[path = "strict_tests.rs"]
mod tests;
