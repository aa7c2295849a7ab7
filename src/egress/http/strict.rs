//! HTTP/1 requests in their strictest reading (RFC 9112): a pure machine that is fed the bytes of
//! a connection before hyper sees them, and fails on whatever two parsers could read in two ways.
//!
//! It follows bodies, too, so that it knows where each head begins. Hyper parses what has passed
//! and writes its own bytes to the destination; none of a client's framing gets through as it came.

/// The longest head, in bytes.
const MAX_HEAD: usize = 32 << 10;

/// The most header fields of one head; hyper's own bound.
const MAX_FIELDS: usize = 100;

/// The longest line between chunks: a size of 16 digits, or a trailer field.
const MAX_LINE: usize = 8 << 10;

/// What is wrong with a request.
pub type Violation = &'static str;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// Within a head.
    Head,
    /// So many bytes of a body are left.
    Body(u64),
    /// Within the line before a chunk.
    ChunkSize,
    /// So many bytes of a chunk are left.
    Chunk(u64),
    /// Within the line end after a chunk.
    ChunkEnd,
    /// Within the trailer section.
    Trailer,
    /// After a CONNECT, to this target and with this Host.
    Connect { target: String, host: Option<String> },
    /// Something was wrong: nothing more is taken.
    Failed(Violation),
}

/// Checks the requests of one connection.
#[derive(Debug)]
pub struct Strict {
    state: State,
    /// The head or the line that is coming in.
    held: Vec<u8>,
    /// Whether a first head is whole.
    begun: bool,
    /// Whom the requests were for that came whole since this was last asked.
    names: Vec<Names>,
}

/// Whom a request says that it is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Its target, as it came.
    pub target: String,
    /// Its Host.
    pub host: Option<String>,
}

impl Default for Strict {
    fn default() -> Self {
        Self { state: State::Head, held: Vec::new(), begun: false, names: Vec::new() }
    }
}

impl Strict {
    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Violation> {
        if let State::Failed(violation) = self.state {
            return Err(violation);
        }
        self.advance(bytes).inspect_err(|violation| self.state = State::Failed(violation))
    }

    /// Whether a first head has come whole.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Bytes at the end of what was fed that belong to a head or line which isn't whole yet.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Whom the requests were for that came whole since this was last asked.
    pub fn take_names(&mut self) -> Vec<Names> {
        std::mem::take(&mut self.names)
    }

    /// The target and the Host of a CONNECT that came whole.
    pub fn connect(&self) -> Option<(&str, Option<&str>)> {
        match &self.state {
            State::Connect { target, host } => Some((target, host.as_deref())),
            _ => None,
        }
    }

    fn advance(&mut self, mut bytes: &[u8]) -> Result<(), Violation> {
        while let Some((first, rest)) = bytes.split_first() {
            match &mut self.state {
                State::Body(left) | State::Chunk(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    bytes = &bytes[taken..];
                    self.after_data();
                }
                State::Connect { .. } => return Err("bytes after CONNECT before its answer"),
                State::Failed(violation) => return Err(violation),
                State::Head | State::ChunkSize | State::ChunkEnd | State::Trailer => {
                    bytes = rest;
                    self.hold(*first)?;
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

    /// Takes a byte of a head or a line.
    fn hold(&mut self, byte: u8) -> Result<(), Violation> {
        check_line_end(self.held.last().copied(), byte)?;
        self.held.push(byte);
        let most = if self.state == State::Head { MAX_HEAD } else { MAX_LINE };
        if self.held.len() > most {
            return Err("a head or line that is too long");
        }
        let end: &[u8] = if self.state == State::Head { b"\r\n\r\n" } else { b"\r\n" };
        if !self.held.ends_with(end) {
            // A line end before anything else would be an empty line before the request.
            return if self.state == State::Head && self.held == b"\r\n" {
                Err("an empty line before the request")
            } else {
                Ok(())
            };
        }
        let held = std::mem::take(&mut self.held);
        let text = &held[..held.len() - end.len()];
        self.begun = true;
        self.state = match self.state {
            State::Head => {
                let (names, state) = read_head(text)?;
                self.names.push(names);
                state
            }
            State::ChunkSize => read_chunk_size(text)?,
            State::ChunkEnd if text.is_empty() => State::ChunkSize,
            State::ChunkEnd => return Err("a chunk that is longer than its size"),
            State::Trailer if text.is_empty() => State::Head,
            State::Trailer => return Err("trailer fields"),
            ref other => other.clone(),
        };
        Ok(())
    }
}

/// CR and LF come together or not at all, and no other control character but the tab.
fn check_line_end(before: Option<u8>, byte: u8) -> Result<(), Violation> {
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

/// What frames a request's body, as found so far.
#[derive(Debug, Default)]
struct Framing {
    host: Option<String>,
    hosts: usize,
    length: Option<u64>,
    chunked: bool,
}

fn read_head(text: &[u8]) -> Result<(Names, State), Violation> {
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
    let names = Names { target, host: framing.host.take() };
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

/// What stands in a request's first line.
struct RequestLine {
    target: String,
    is_connect: bool,
    is_http_11: bool,
}

fn read_request_line(line: &[u8]) -> Result<RequestLine, Violation> {
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
        _ => return Err("another version than HTTP/1.1 and HTTP/1.0"),
    };
    let is_connect = *method == b"CONNECT";
    Ok(RequestLine { target: read_target(target, is_connect)?, is_connect, is_http_11 })
}

/// A target is what hyper takes for one, so that it refuses none without saying why. Browsers and
/// other programs send paths in UTF-8 as they are.
fn read_target(target: &[u8], is_connect: bool) -> Result<String, Violation> {
    const WRONG: Violation = "a malformed target";
    let text = std::str::from_utf8(target).map_err(|_| "a target that is not UTF-8")?;
    let is_plain = |character: char| !character.is_control() && character != ' ';
    if text.is_empty() || !text.chars().all(is_plain) {
        return Err(WRONG);
    }
    // That of a CONNECT never reaches hyper, and whoever reads it says what is wrong with its host.
    if !is_connect {
        hyper::Uri::try_from(target).map_err(|_| WRONG)?;
    }
    Ok(text.to_owned())
}

fn read_field(line: &[u8], framing: &mut Framing) -> Result<(), Violation> {
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
                return Err("a Connection that names what frames the request");
            }
        }
        _ => {}
    }
    Ok(())
}

fn read_length(value: &[u8]) -> Result<u64, Violation> {
    const WRONG: Violation = "a Content-Length that is no number";
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(WRONG);
    }
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(WRONG)
}

fn read_chunk_size(text: &[u8]) -> Result<State, Violation> {
    const WRONG: Violation = "a chunk size that is not up to 16 hexadecimal digits";
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
