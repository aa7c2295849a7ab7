//! Detects HTTP in a client's first line: a pure state machine.
//!
//! Servers read a request line in many ways. Some end it at a line feed and split it at any blank
//! of Latin-1 (Python), others end it only at CR LF, split it at spaces and accept any method and
//! version (Java). So this detection is broad: all of them need a target after a blank, or the
//! version. The line of a text protocol is held until it ends. Bytes that no text contains may pass
//! at once, because their client may wait for an answer, but the line stays watched to its end.

/// Maximum bytes of a first line that are held back.
const MAX_LINE: usize = 8 << 10;

/// The word that all versions of HTTP/1 begin with.
const VERSION: &[u8] = b"http/";

/// What is known about a first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstLine {
    /// It may be anything: nothing of it may pass.
    Held,
    /// A server might read it as a request.
    Http,
    /// Not HTTP so far: its bytes may pass, but it has not ended.
    OtherSoFar,
    /// It has ended and is not HTTP.
    Other,
    /// It is too long to be held.
    TooLong,
}

/// Reads a first line.
#[derive(Debug, Default)]
pub(super) struct LineDetector {
    /// Once it is known.
    found: Option<FirstLine>,
    /// Whether a byte other than blanks and line ends was read.
    has_begun: bool,
    is_binary: bool,
    is_released: bool,
    /// Bytes read while the line is held.
    held: usize,
    last: u8,
    /// Bytes of [`VERSION`] that the last bytes match.
    version: usize,
    /// After any blank, and after a space only.
    after_blank: TargetSearch,
    after_space: TargetSearch,
    git: GitRequest,
}

impl LineDetector {
    /// Adds the next bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> FirstLine {
        for byte in bytes {
            if self.found.is_some() {
                break;
            }
            self.found = self.take(*byte);
            self.last = *byte;
        }
        let open = if self.is_released { FirstLine::OtherSoFar } else { FirstLine::Held };
        self.found.unwrap_or(open)
    }

    fn take(&mut self, byte: u8) -> Option<FirstLine> {
        let is_line_end = matches!(byte, b'\r' | b'\n');
        self.has_begun |= !is_blank(byte) && !is_line_end;
        if self.has_begun {
            self.git.take(byte);
            self.after_blank.take(byte, is_blank(byte) || is_line_end);
        }
        if self.has_begun || !is_line_end {
            self.after_space.take(byte, byte == b' ');
        }
        self.is_binary |= !byte.is_ascii_graphic() && !is_blank(byte) && !is_line_end;
        let has_target = self.after_space == TargetSearch::Found
            || (!self.is_binary && self.after_blank == TargetSearch::Found);
        if self.takes_version(byte) || (has_target && !self.git.is_possible()) {
            return Some(FirstLine::Http);
        }
        if byte == b'\n' && self.has_begun {
            if self.last == b'\r' {
                return Some(FirstLine::Other);
            }
            self.after_blank = TargetSearch::Missing;
            self.is_released = true;
        }
        self.is_released |=
            self.git == GitRequest::Complete || (self.is_binary && !self.git.is_possible());
        self.held += 1;
        (!self.is_released && self.held > MAX_LINE).then_some(FirstLine::TooLong)
    }

    /// Returns whether the byte completes the version.
    fn takes_version(&mut self, byte: u8) -> bool {
        let byte = byte.to_ascii_lowercase();
        self.version = if byte == VERSION[self.version] {
            self.version + 1
        } else {
            usize::from(byte == VERSION[0])
        };
        let is_complete = self.version == VERSION.len();
        self.version %= VERSION.len();
        is_complete
    }
}

/// Returns whether a server might split a request line at a byte. Python splits Latin-1 at all of
/// these.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0x0b | 0x0c | 0x1c..=0x1f | 0x85 | 0xa0)
}

/// The search for a target in the second word: a path, `*`, or a URL.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum TargetSearch {
    #[default]
    FirstWord,
    Blanks,
    Scheme,
    Colon,
    Found,
    Missing,
}

impl TargetSearch {
    fn take(&mut self, byte: u8, is_blank: bool) {
        *self = match (*self, byte) {
            (Self::Found | Self::Missing, _) => *self,
            (Self::FirstWord | Self::Blanks, _) if is_blank => Self::Blanks,
            (Self::FirstWord, _) => Self::FirstWord,
            (Self::Blanks, b'/' | b'*') | (Self::Colon, b'/') => Self::Found,
            (Self::Scheme, b':') => Self::Colon,
            (Self::Scheme, b'+' | b'-' | b'.') => Self::Scheme,
            (Self::Blanks | Self::Scheme, _) if byte.is_ascii_alphanumeric() => Self::Scheme,
            (Self::Blanks | Self::Scheme | Self::Colon, _) => Self::Missing,
        };
    }
}

/// The beginning of a request of Git's own protocol, which names a path, too: a length of four
/// hexadecimal digits, a service, a path, a zero byte and the host (`gitprotocol-pack(5)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GitRequest {
    /// This many bytes of the length.
    Length(usize),
    /// This many bytes of [`GIT_SERVICE`].
    Service(usize),
    ServiceName,
    Path,
    /// This many bytes of [`GIT_HOST`].
    Host(usize),
    Complete,
    /// It is something else.
    No,
}

const GIT_SERVICE: &[u8] = b"git-";
const GIT_HOST: &[u8] = b"host=";

impl Default for GitRequest {
    fn default() -> Self {
        Self::Length(0)
    }
}

impl GitRequest {
    /// Returns whether a target may belong to it.
    fn is_possible(self) -> bool {
        matches!(self, Self::Path | Self::Host(_) | Self::Complete)
    }

    fn take(&mut self, byte: u8) {
        *self = match *self {
            Self::Complete => Self::Complete,
            Self::Length(3) if byte.is_ascii_hexdigit() => Self::Service(0),
            Self::Length(count) if byte.is_ascii_hexdigit() => Self::Length(count + 1),
            Self::Service(count) if byte == GIT_SERVICE[count] => match count + 1 {
                4 => Self::ServiceName,
                count => Self::Service(count),
            },
            Self::ServiceName if byte.is_ascii_lowercase() || byte == b'-' => Self::ServiceName,
            Self::ServiceName if byte == b' ' => Self::Path,
            Self::Path if byte == 0 => Self::Host(0),
            Self::Path if !byte.is_ascii_control() => Self::Path,
            Self::Host(count) if byte == GIT_HOST[count] => match count + 1 {
                5 => Self::Complete,
                count => Self::Host(count),
            },
            _ => Self::No,
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a line in parts.
    fn read(bytes: &[u8], part: usize) -> FirstLine {
        let mut detector = LineDetector::default();
        bytes.chunks(part).map(|part| detector.feed(part)).last().unwrap()
    }

    #[test]
    fn a_line_is_held_until_it_ends_and_watched_until_cr_lf() {
        let long = "x".repeat(MAX_LINE + 1);
        let rows: [(&[u8], FirstLine); 22] = [
            (b"EHLO a", FirstLine::Held),
            (b"\r\n\x1c \xa0", FirstLine::Held),
            (b"EHLO a\r\n", FirstLine::Other),
            (b"EHLO a\n", FirstLine::OtherSoFar),
            (b"x\n / y", FirstLine::Http),
            (b"x\n y\r\n / HTTP/1.1", FirstLine::Other),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", FirstLine::OtherSoFar),
            (b"\0\0\0\x08\x04\xd2\x16\x2f /", FirstLine::Http),
            (b"\0GET\x1c.\x1chttp/1.1", FirstLine::Http),
            (b"\0GET http:/x", FirstLine::Http),
            (b"\0GET x y\r\n", FirstLine::Other),
            (b"GET\x1fhttp://x", FirstLine::Http),
            (b" / x", FirstLine::Http),
            (b"hhttp/", FirstLine::Http),
            (b"hthttp", FirstLine::Held),
            (b"0032git-upload-pack /x", FirstLine::Held),
            (b"0032git-upload-pack /x\0host", FirstLine::Held),
            (b"0032git-upload-pack /x\0host=", FirstLine::OtherSoFar),
            (b"0032git-upload-pack /x\0host=a\0 HTTP/", FirstLine::Http),
            (b"0032git-upload-pack /x\0hose", FirstLine::Http),
            (b"0032git-upload-pack /x\r\n", FirstLine::Http),
            (long.as_bytes(), FirstLine::TooLong),
        ];
        for (bytes, expected) in rows {
            for part in [1, 2, bytes.len()] {
                let text = String::from_utf8_lossy(bytes);
                assert_eq!(read(bytes, part), expected, "{text:?}, {part} at once");
            }
        }
    }

    proptest! {
        #[test]
        fn the_version_is_found_wherever_it_is(
            before in prop::collection::vec(any::<u8>(), 0..40), part in 1_usize..50,
        ) {
            let line: Vec<u8> = before.into_iter().filter(|byte| *byte != b'\n').collect();
            let line = [&line[..], b"HtTp/"].concat();
            prop_assert_eq!(read(&line, part), FirstLine::Http);
        }

        #[test]
        fn parts_do_not_matter(
            bytes in prop::collection::vec(
                prop::sample::select(b"GET /:*http\r\n\t\x1c\x85\xa0\0git-".to_vec()), 1..60),
            part in 1_usize..60,
        ) {
            prop_assert_eq!(read(&bytes, part), read(&bytes, bytes.len()));
        }
    }
}
