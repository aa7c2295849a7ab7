//! The second `ClientHello`: a TLS 1.3 server may ask for another one (RFC 8446, section 4.1.4),
//! and some serve the name in that, so it must be the same name again.

use super::{Opening, Watcher};

/// The random bytes by which a `ServerHello` is a `HelloRetryRequest`: the SHA-256 of that word
/// (RFC 8446, section 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Bytes of a record's header, and of what precedes the random bytes in the first message: its
/// type, length and version.
const RECORD_HEADER: usize = 5;
const BEFORE_RANDOM: usize = RECORD_HEADER + 6;

/// The longest record (RFC 8446, section 5.2).
const MAX_RECORD: usize = (1 << 14) + 256;

/// The most bytes of early data that a client sends before its second hello, with that.
const MAX_BYTES: usize = 128 << 10;

/// Content types of records (RFC 8446, section 5.1).
const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Reads the first bytes of a server's answer.
#[derive(Debug, Default)]
pub struct Answer(Vec<u8>);

impl Answer {
    /// Takes the next bytes. Whether the server asks for another hello; `None` where it can't be
    /// told yet.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<bool> {
        let most = BEFORE_RANDOM + RETRY_RANDOM.len();
        self.0.extend_from_slice(&bytes[..bytes.len().min(most - self.0.len())]);
        let is_server_hello = |position: usize, expected: u8| {
            self.0.get(position).is_none_or(|byte| *byte == expected)
        };
        if !is_server_hello(0, HANDSHAKE) || !is_server_hello(RECORD_HEADER, 2) {
            return Some(false);
        }
        self.0.get(BEFORE_RANDOM..most).map(|random| random == RETRY_RANDOM)
    }
}

/// Reads what a client sends after it was asked for another hello: perhaps records that go before
/// it, then the hello.
pub struct SecondHello {
    record: Vec<u8>,
    watcher: Watcher,
    seen: usize,
}

impl Default for SecondHello {
    fn default() -> Self {
        Self { record: Vec::new(), watcher: Watcher::for_tls(), seen: 0 }
    }
}

impl SecondHello {
    /// Takes the next bytes. `None` where it can't be told yet.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<Opening> {
        self.seen += bytes.len();
        if self.seen > MAX_BYTES {
            return Some(Opening::BadTls("the second one does not come".into()));
        }
        self.record.extend_from_slice(bytes);
        while let Some(header) = self.record.first_chunk::<RECORD_HEADER>() {
            let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
            let kind = header[0];
            if length > MAX_RECORD {
                return Some(Opening::BadTls("a record is too long".into()));
            }
            if self.record.len() < RECORD_HEADER + length {
                return None;
            }
            let record: Vec<_> = self.record.drain(..RECORD_HEADER + length).collect();
            match kind {
                CHANGE_CIPHER_SPEC | APPLICATION_DATA => {}
                HANDSHAKE => {
                    let found = self.watcher.feed(&record);
                    if found.is_some() {
                        return found;
                    }
                }
                // An alert: the client gives up.
                _ => return Some(Opening::Other),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::egress::opening::tests::{hello, plain, records, signature_algorithms, sni};

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &random, &[0; 54]].concat()
    }

    #[test]
    fn only_the_one_random_asks_for_another_hello() {
        assert_eq!(Answer::default().feed(&server_hello(RETRY_RANDOM)), Some(true));
        assert_eq!(Answer::default().feed(&server_hello([7; 32])), Some(false));
        assert_eq!(Answer::default().feed(b"HTTP/1.1 400"), Some(false));
        assert_eq!(Answer::default().feed(&[21, 3, 3, 0, 2, 2, 40]), Some(false));
        let mut answer = Answer::default();
        let bytes = server_hello(RETRY_RANDOM);
        let told = bytes.iter().position(|byte| answer.feed(&[*byte]) == Some(true));
        assert_eq!(told, Some(BEFORE_RANDOM + 31));
    }

    #[test]
    fn records_before_the_hello_are_passed_over_and_alerts_end_it() {
        let before = [&[20, 3, 3, 0, 1, 1][..], &[23, 3, 3, 0, 3, 9, 9, 9]].concat();
        let found = SecondHello::default().feed(&[&before[..], &plain("a.example")].concat());
        assert_eq!(found, Some(Opening::Tls(Some("a.example".into()))));
        let alert = SecondHello::default().feed(&[21, 3, 3, 0, 2, 2, 40]);
        assert_eq!(alert, Some(Opening::Other));
        let other = SecondHello::default().feed(&[22, 3, 3, 0, 4, 16, 0, 0, 0]);
        assert!(matches!(other, Some(Opening::BadTls(_))), "{other:?}");
    }

    #[test]
    fn a_second_hello_that_does_not_come_is_not_waited_for_forever() {
        let mut second = SecondHello::default();
        let record = [&[23, 3, 3, 0x10, 0][..], &[0; 0x1000]].concat();
        let found = (0..100).find_map(|_| second.feed(&record));
        assert!(matches!(found, Some(Opening::BadTls(_))), "{found:?}");
    }

    proptest! {
        #[test]
        fn records_and_segments_do_not_matter(record in 1_usize..80, segment in 1_usize..50) {
            let message = hello(&[sni(&["a.example"]), signature_algorithms()]);
            let bytes = [vec![20, 3, 3, 0, 1, 1], records(&message, record)].concat();
            let mut second = SecondHello::default();
            let found = bytes.chunks(segment).find_map(|part| second.feed(part));
            prop_assert_eq!(found, Some(Opening::Tls(Some("a.example".into()))));
        }

        #[test]
        fn no_bytes_break_either(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut answer, mut second) = (Answer::default(), SecondHello::default());
            for part in bytes.chunks(7) {
                if answer.feed(part).is_some() { break }
            }
            let _ = bytes.chunks(7).find_map(|part| second.feed(part));
        }
    }
}
