//! Tests of `opening`, in a separate file for length.

use proptest::prelude::*;

use super::*;

/// Builds a `ClientHello` message, without records.
pub(super) fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 2, 0x13, 0x01]);
    body.extend([1, 0]);
    let mut all = Vec::new();
    for (kind, data) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        all.extend(data);
    }
    body.extend(u16::try_from(all.len()).unwrap().to_be_bytes());
    body.extend(all);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1, length[1], length[2], length[3]], &body[..]].concat()
}

fn with_length(data: &[u8]) -> Vec<u8> {
    [&u16::try_from(data.len()).unwrap().to_be_bytes()[..], data].concat()
}

/// A server name extension with these names.
pub(super) fn sni(names: &[&str]) -> (u16, Vec<u8>) {
    let list: Vec<u8> =
        names.iter().flat_map(|n| [&[0][..], &with_length(n.as_bytes())].concat()).collect();
    (0, with_length(&list))
}

pub(super) fn signature_algorithms() -> (u16, Vec<u8>) {
    (13, with_length(&[4, 3]))
}

/// Cuts a message into records of `size` bytes.
pub(super) fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[22, 3, 1][..], &with_length(part)].concat();
    message.chunks(size).flat_map(record).collect()
}

pub(super) fn plain(name: &str) -> Vec<u8> {
    records(&hello(&[sni(&[name]), signature_algorithms()]), 1 << 14)
}

fn read(bytes: &[u8]) -> Option<ClientOpening> {
    OpeningReader::new().feed(bytes)
}

fn name(text: &str) -> Host {
    Host::parse(text).unwrap()
}

#[test]
fn the_server_name_is_found() {
    let opening = read(&plain("GitHub.com")).unwrap();
    assert_eq!(opening.check(ExpectedProtocol::Tls, &name("github.com")), Ok(()));
    assert_eq!(
        opening.check(ExpectedProtocol::Tls, &name("evil.example")),
        Err(RefusalCause::SniMismatch("github.com".into()))
    );
    assert_eq!(opening.server_name(), HostName::parse("github.com").ok());
}

#[test]
fn a_hello_without_a_name_or_with_an_address_has_none() {
    for extensions in
        [vec![signature_algorithms()], vec![sni(&["10.0.0.1"]), signature_algorithms()]]
    {
        let opening = read(&records(&hello(&extensions), 1 << 14)).unwrap();
        assert_eq!(opening, ClientOpening::Tls(None));
        assert_eq!(
            opening.check(ExpectedProtocol::Tls, &name("a.example")),
            Err(RefusalCause::SniMissing)
        );
    }
}

#[test]
fn a_hello_that_could_be_read_in_two_ways_is_refused() {
    let mut left_over = hello(&[sni(&["a.example"]), signature_algorithms()]);
    left_over.extend([0; 4]);
    for message in [
        hello(&[sni(&["a.example", "b.example"]), signature_algorithms()]),
        hello(&[sni(&["a.example"]), sni(&["b.example"]), signature_algorithms()]),
        hello(&[sni(&["a\0.example"]), signature_algorithms()]),
        hello(&[sni(&[""]), signature_algorithms()]),
        left_over,
    ] {
        let opening = read(&records(&message, 1 << 14)).unwrap();
        assert!(matches!(opening, ClientOpening::BadTls(_)), "{opening:?}");
        assert!(opening.check(ExpectedProtocol::TlsForNameOrOther, &name("a.example")).is_err());
    }
}

#[test]
fn grease_and_encrypted_hellos_are_judged_by_the_outer_name() {
    // RFC 8701 values, and an encrypted_client_hello extension of the outer kind (0xfe0d).
    let ech = [&[0, 0, 1, 0, 1, 0][..], &with_length(&[5; 32]), &with_length(&[6; 100])].concat();
    let message = hello(&[
        (0x0a0a, vec![]),
        sni(&["a.example"]),
        signature_algorithms(),
        (0xfe0d, ech),
        (0xfafa, vec![0]),
    ]);
    let opening = read(&records(&message, 1 << 14)).unwrap();
    assert_eq!(opening, ClientOpening::Tls(Some("a.example".into())));
}

#[test]
fn an_endless_hello_is_cut_off() {
    let mut reader = OpeningReader::new();
    // A message that announces the maximum length, in three bytes.
    let mut opening = reader.feed(&[22, 3, 1, 0x40, 0, 1, 0xff, 0xff, 0xff]);
    for _ in 0..MAX_OPENING {
        if opening.is_some() {
            break;
        }
        opening = reader.feed(&[22; 16]);
    }
    assert!(matches!(opening, Some(ClientOpening::BadTls(_))), "{opening:?}");
}

#[test]
fn other_protocols_are_recognized_at_once() {
    let rows: [&[u8]; 6] = [
        b"SSH-2.0-x",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"*1\r\n",
        b"\x80\x2e\x01",
        b"\x13BitTorrent protocol",
        b"\x15\x04",
    ];
    for bytes in rows {
        let opening = read(bytes).unwrap();
        assert_eq!(opening, ClientOpening::Other, "{bytes:?}");
        assert_eq!(opening.check(ExpectedProtocol::Tls, &name("a")), Err(RefusalCause::NotTls));
        assert_eq!(opening.check(ExpectedProtocol::TlsForNameOrOther, &name("a")), Ok(()));
        assert!(opening.check(ExpectedProtocol::Http, &name("a")).is_err());
    }
}

/// Some servers skip such a record and read the hello behind it.
#[test]
fn no_other_record_may_precede_a_hello() {
    let hello = plain("evil.example");
    let rows: [&[u8]; 5] = [
        &[21, 3, 1, 0, 2, 1, 90],
        &[21, 3, 3, 0, 2, 1, 0],
        &[20, 3, 3, 0, 1, 1],
        &[23, 3, 3, 0, 0],
        &[24, 3, 3, 0, 3, 1, 0, 0],
    ];
    for record in rows {
        for first in [1, 2, 3, record.len()] {
            let bytes = [record, &hello].concat();
            let (first, rest) = bytes.split_at(first);
            let mut reader = OpeningReader::new();
            let opening = reader.feed(first).or_else(|| reader.feed(rest)).unwrap();
            assert!(matches!(opening, ClientOpening::BadTls(_)), "{record:?}: {opening:?}");
            let other = ExpectedProtocol::TlsForNameOrOther;
            assert!(opening.check(other, &name("a.example")).is_err());
        }
        assert_eq!(read(&record[..1]), None);
    }
}

/// Bytes after a hello are not treated as part of it, and none may follow it in its record.
#[test]
fn a_hello_ends_with_its_record() {
    let message = hello(&[sni(&["a.example"]), signature_algorithms()]);
    let (first, behind) = (records(&message, 90), plain("evil.example"));
    for cut in [1, first.len(), first.len() + 1, first.len() + behind.len()] {
        let bytes = [&first[..], &behind].concat();
        let mut reader = OpeningReader::new();
        let opening = bytes.chunks(cut).find_map(|part| reader.feed(part));
        assert_eq!(opening, Some(ClientOpening::Tls(Some("a.example".into()))), "{cut}");
        let (judged, rest) = reader.into_parts();
        assert_eq!(judged, first);
        assert!(behind.starts_with(&rest), "{cut}");
    }
    let both = [&message[..], &hello(&[sni(&["evil.example"]), signature_algorithms()])].concat();
    let rows = [records(&both, 1 << 14), records(&[&message[..], &[0]].concat(), 1 << 14)];
    for bytes in rows {
        let opening = OpeningReader::new().feed(&bytes);
        assert!(matches!(opening, Some(ClientOpening::BadTls(_))), "{opening:?}");
    }
}

proptest! {
    #[test]
    fn records_and_segments_do_not_matter(
        record in 1_usize..80, segment in 1_usize..50
    ) {
        let message = hello(&[sni(&["a.example"]), signature_algorithms()]);
        let bytes = records(&message, record);
        let mut reader = OpeningReader::new();
        let mut opening = None;
        for part in bytes.chunks(segment) {
            prop_assert_eq!(opening, None);
            opening = reader.feed(part);
        }
        prop_assert_eq!(opening, Some(ClientOpening::Tls(Some("a.example".into()))));
        prop_assert_eq!(reader.into_parts(), (bytes, Vec::new()));
    }

    #[test]
    fn no_bytes_break_the_reader(
        first in prop::sample::select(vec![22_u8, b'G', 0]),
        bytes in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let mut reader = OpeningReader::new();
        let mut opening = reader.feed(&[first]);
        for byte in bytes {
            if opening.is_some() { break }
            opening = reader.feed(&[byte]);
        }
    }

    #[test]
    fn a_damaged_hello_never_passes_for_another_name(at in 0_usize..200, byte in any::<u8>()) {
        let mut bytes = plain("evil.example");
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Some(opening) = read(&bytes) {
            prop_assert!(opening.check(ExpectedProtocol::Tls, &name("a.example")).is_err());
        }
    }
}
