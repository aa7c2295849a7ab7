//! The second `ClientHello`: a TLS 1.3 server may request another one (RFC 8446, section 4.1.4),
//! and some use the name in that one, so it must be the same name.

use super::records::{self, ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE};
use super::{ClientOpening, OpeningReader};

/// The random bytes that make a `ServerHello` a `HelloRetryRequest`: the SHA-256 of that word (RFC
/// 8446, section 4.1.3).
const RETRY_RANDOM: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
    0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

/// Offset of the random bytes in a `ServerHello`: after type, length and version.
const BEFORE_RANDOM: usize = 6;

/// The type of a `ServerHello`.
const SERVER_HELLO: u8 = 2;

/// An alert that does not end the connection.
const WARNING: u8 = 1;

/// Maximum bytes of a response that are inspected. A `ServerHello` may be split into records of 64
/// bytes at the least (RFC 8449), and a few warnings may precede it.
const MAX_RESPONSE: usize = 1 << 10;

/// Maximum bytes of early data before a second hello, including it.
const MAX_BYTES: usize = 128 << 10;

/// Maximum number of records other than early data before a second hello. Two suffice: one for
/// middlebox compatibility (RFC 8446, appendix D.4), one alert.
const MAX_OTHERS: usize = 8;

/// Detects a `HelloRetryRequest` in the first bytes of a server's response.
#[derive(Debug, Default)]
pub struct RetryDetector(Vec<u8>);

impl RetryDetector {
    /// Adds the next bytes. Returns whether the server requests another hello, or `None` until that
    /// is known.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<bool> {
        let room = MAX_RESPONSE - self.0.len().min(MAX_RESPONSE);
        self.0.extend_from_slice(&bytes[..bytes.len().min(room)]);
        // An unrecognized response may be a request for another hello.
        self.detect().or_else(|| (self.0.len() >= MAX_RESPONSE).then_some(true))
    }

    fn detect(&self) -> Option<bool> {
        let mut message = Vec::new();
        let mut rest = &self.0[..];
        while let [kind, _, _, high, low, after @ ..] = rest {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let payload = &after[..after.len().min(length)];
            match (*kind, payload) {
                (HANDSHAKE, _) => message.extend_from_slice(payload),
                (ALERT, []) => return None,
                (ALERT, [WARNING, ..]) => {}
                _ => return Some(false),
            }
            if message.first().is_some_and(|kind| *kind != SERVER_HELLO) {
                return Some(false);
            }
            if let Some(random) = message.get(BEFORE_RANDOM..BEFORE_RANDOM + RETRY_RANDOM.len()) {
                return Some(random == RETRY_RANDOM);
            }
            rest = after.get(length..)?;
        }
        rest.first().is_some_and(|kind| !matches!(*kind, HANDSHAKE | ALERT)).then_some(false)
    }
}

/// Reads what a client sends after a request for another hello: possibly early data, which the
/// server skips, then the hello.
///
/// Before that hello, only the record types that may precede it are forwarded: another type could
/// hide a hello that a lenient server reads.
#[derive(Default)]
pub struct SecondHello {
    /// Complete records that were inspected.
    passed: Vec<u8>,
    /// An incomplete record.
    held: Vec<u8>,
    reader: OpeningReader,
    has_begun: bool,
    others: usize,
}

impl SecondHello {
    /// Adds the next bytes. Returns `None` until the hello is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Option<ClientOpening> {
        self.held.extend_from_slice(bytes);
        loop {
            let held = std::mem::take(&mut self.held);
            let (record, rest) = match records::split(&held) {
                Err(violation) => return Some(ClientOpening::BadTls(violation.into())),
                Ok(None) => {
                    self.held = held;
                    let seen = self.passed.len() + self.held.len();
                    let late = ClientOpening::BadTls("the second hello is missing".into());
                    return (seen > MAX_BYTES).then_some(late);
                }
                Ok(Some(split)) => split,
            };
            self.held = rest.to_vec();
            self.passed.extend_from_slice(record.whole);
            if let Some(opening) = self.take(record.kind, record.payload, record.whole) {
                return Some(opening);
            }
        }
    }

    fn take(&mut self, kind: u8, payload: &[u8], whole: &[u8]) -> Option<ClientOpening> {
        let bad = |why: &str| Some(ClientOpening::BadTls(why.into()));
        match (kind, payload) {
            (HANDSHAKE, _) => {
                self.has_begun = true;
                return self.reader.feed(whole);
            }
            _ if self.has_begun => return bad("another record type within the second hello"),
            (APPLICATION_DATA, _) => return None,
            (CHANGE_CIPHER_SPEC, [1]) | (ALERT, [_, _]) => {}
            _ => return bad("unexpected record before the second hello"),
        }
        self.others += 1;
        if self.others > MAX_OTHERS {
            bad("too many records before the second hello")
        } else {
            None
        }
    }

    /// Returns the bytes to forward after the hello was checked: the records up to it, and what
    /// followed it.
    pub fn into_parts(self) -> Vec<u8> {
        [self.passed, self.held].concat()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::opening::tests::{hello, plain, records, signature_algorithms, sni};

    fn server_hello(random: [u8; 32]) -> Vec<u8> {
        [&[22, 3, 3, 0, 90, 2, 0, 0, 86, 3, 3][..], &random, &[0; 54]].concat()
    }

    #[test]
    fn only_the_retry_random_requests_another_hello() {
        assert_eq!(RetryDetector::default().feed(&server_hello(RETRY_RANDOM)), Some(true));
        assert_eq!(RetryDetector::default().feed(&server_hello([7; 32])), Some(false));
        assert_eq!(RetryDetector::default().feed(b"HTTP/1.1 400"), Some(false));
        assert_eq!(RetryDetector::default().feed(&[21, 3, 3, 0, 2, 2, 40]), Some(false));
        let mut detector = RetryDetector::default();
        let bytes = server_hello(RETRY_RANDOM);
        let end = bytes.iter().position(|byte| detector.feed(&[*byte]) == Some(true));
        assert_eq!(end, Some(5 + BEFORE_RANDOM + 31));
    }

    #[test]
    fn a_retry_request_is_detected_after_warnings_and_in_pieces() {
        let asks = server_hello(RETRY_RANDOM);
        let warned = [&[21, 3, 3, 0, 2, 1, 112][..], &asks].concat();
        let pieces = records(&asks[5..], 7);
        for bytes in [&warned, &pieces] {
            for segment in 1..20 {
                let mut detector = RetryDetector::default();
                let found = bytes.chunks(segment).find_map(|part| detector.feed(part));
                assert_eq!(found, Some(true), "{segment}");
            }
        }
        // A response that stays unrecognized counts as a request.
        let endless = [21, 3, 3, 0, 2, 1, 112].repeat(200);
        assert_eq!(RetryDetector::default().feed(&endless), Some(true));
    }

    #[test]
    fn a_second_hello_is_found_after_permitted_records() {
        let alert = &[21, 3, 3, 0, 2, 1, 0][..];
        let change = &[20, 3, 3, 0, 1, 1][..];
        let early = &[23, 3, 3, 0, 3, 9, 9, 9][..];
        for before in [&[][..], &[alert], &[change], &[early], &[change, early, alert, early]] {
            let bytes = [&before.concat()[..], &plain("a.example"), b"more"].concat();
            let mut second = SecondHello::default();
            assert_eq!(second.feed(&bytes), Some(ClientOpening::Tls(Some("a.example".into()))));
            assert_eq!(second.into_parts(), bytes);
        }
    }

    /// Records that a lenient server may skip, and then read a hello that we did not.
    #[test]
    fn no_other_record_may_precede_a_second_hello() {
        let hello = plain("a.example");
        let message = hello_message();
        let rows: [(&str, Vec<u8>); 9] = [
            ("an unknown record", [&[24, 3, 3, 0, 1, 1][..], &hello].concat()),
            ("a heartbeat", [&[24, 3, 3, 0, 3, 1, 0, 0][..], &hello].concat()),
            ("a change of another kind", [&[20, 3, 3, 0, 1, 2][..], &hello].concat()),
            ("a long change", [&[20, 3, 3, 0, 2, 1, 1][..], &hello].concat()),
            ("a long alert", [&[21, 3, 3, 0, 3, 1, 0, 0][..], &hello].concat()),
            (
                "many alerts",
                [[21, 3, 3, 0, 2, 1, 0].repeat(MAX_OTHERS + 1), hello.clone()].concat(),
            ),
            ("a record within it", {
                let parts = records(&message, message.len() / 2);
                let cut = 5 + message.len() / 2;
                [&parts[..cut], &[21, 3, 3, 0, 2, 1, 0], &parts[cut..]].concat()
            }),
            ("another one in its record", records(&[&message[..], &message].concat(), 1 << 14)),
            ("no TLS", b"GET / HTTP/1.1\r\n".to_vec()),
        ];
        for (what, bytes) in rows {
            for segment in [1, 7, bytes.len()] {
                let mut second = SecondHello::default();
                let found = bytes.chunks(segment).find_map(|part| second.feed(part));
                assert!(
                    !matches!(found, Some(ClientOpening::Tls(_) | ClientOpening::Other)),
                    "{what}: {found:?}"
                );
            }
        }
    }

    fn hello_message() -> Vec<u8> {
        hello(&[sni(&["a.example"]), signature_algorithms()])
    }

    #[test]
    fn other_messages_are_not_a_second_hello() {
        let other = SecondHello::default().feed(&[22, 3, 3, 0, 4, 16, 0, 0, 0]);
        assert!(matches!(other, Some(ClientOpening::BadTls(_))), "{other:?}");
    }

    #[test]
    fn a_missing_second_hello_is_not_awaited_forever() {
        let mut second = SecondHello::default();
        let record = [&[23, 3, 3, 0x10, 0][..], &[0; 0x1000]].concat();
        let found = (0..100).find_map(|_| second.feed(&record));
        assert!(matches!(found, Some(ClientOpening::BadTls(_))), "{found:?}");
    }

    proptest! {
        #[test]
        fn records_and_segments_do_not_matter(record in 1_usize..80, segment in 1_usize..50) {
            let message = hello(&[sni(&["a.example"]), signature_algorithms()]);
            let bytes = [vec![20, 3, 3, 0, 1, 1], records(&message, record)].concat();
            let mut second = SecondHello::default();
            let found = bytes.chunks(segment).find_map(|part| second.feed(part));
            prop_assert_eq!(found, Some(ClientOpening::Tls(Some("a.example".into()))));
        }

        #[test]
        /// A hello for another name is detected after any harmless records, however all of it is
        /// split.
        #[test]
        fn another_name_never_passes(
            before in prop::collection::vec(0_usize..4, 0..6),
            record in 1_usize..200,
            segment in 1_usize..90,
        ) {
            let kinds: [&[u8]; 4] = [
                &[20, 3, 3, 0, 1, 1], &[21, 3, 3, 0, 2, 1, 0], &[21, 3, 3, 0, 2, 2, 40],
                &[23, 3, 3, 0, 2, 0, 0],
            ];
            let mut bytes: Vec<u8> = before.iter().flat_map(|kind| kinds[*kind].to_vec()).collect();
            let message = hello(&[sni(&["evil.example"]), signature_algorithms()]);
            bytes.extend(records(&message, record));
            let mut second = SecondHello::default();
            let found = bytes.chunks(segment).find_map(|part| second.feed(part));
            prop_assert_eq!(found, Some(ClientOpening::Tls(Some("evil.example".into()))));
        }

        #[test]
        fn no_bytes_break_either(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut detector, mut second) = (RetryDetector::default(), SecondHello::default());
            for part in bytes.chunks(7) {
                if detector.feed(part).is_some() { break }
            }
            let _ = bytes.chunks(7).find_map(|part| second.feed(part));
        }
    }
}
