//! The seeds of the fuzz targets, run in an ordinary build.

use std::path::Path;

use mayfly_egress::describe_packet;
use mayfly_egress::dns::message::respond;
use mayfly_egress::http::StrictChecker;
use mayfly_egress::names::NameTable;
use mayfly_egress::opening::{ClientOpening, OpeningReader};
use mayfly_egress::pending::TcpSegment;
use mayfly_egress::policy::Policy;

/// Returns the result of each seed of a target, by file name.
fn outcomes(target: &str, run: impl Fn(&[u8]) -> String) -> Vec<String> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut outcomes: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            format!("{name}: {}", run(&std::fs::read(path).unwrap()))
        })
        .collect();
    outcomes.sort();
    outcomes
}

#[test]
fn dns_seeds_get_the_expected_responses() {
    let draft = toml::from_str("allow = [{ host = \"*.example\" }]").unwrap();
    let policy = Policy::check(Path::new("test"), "ci", &draft).unwrap();
    let run = |bytes: &[u8]| {
        let answer = respond(bytes, &policy, &mut NameTable::default()).unwrap();
        format!("code {}, {} answers", answer.bytes[3] & 15, answer.bytes[7])
    };
    assert_eq!(
        outcomes("dns", run),
        [
            "aaaa: code 0, 0 answers",
            "allowed: code 0, 1 answers",
            "edns: code 0, 1 answers",
            "pointer: code 1, 0 answers",
            "refused: code 3, 0 answers",
        ]
    );
}

#[test]
fn frame_seeds_parse_as_expected() {
    // The first packet of each, which the fuzz target reads after three bytes of its own.
    let run = |bytes: &[u8]| {
        let ether_type = if bytes[1] == 1 { 0x86dd } else { 0x0800 };
        let packet = &bytes[3..3 + usize::from(bytes[2])];
        let held = match TcpSegment::parse(packet) {
            Some(TcpSegment::Syn(_)) => "held",
            Some(TcpSegment::Reset(_)) => "given up",
            None => "not held",
        };
        format!("{}, {held}", describe_packet(ether_type, packet).unwrap_or_default())
    };
    assert_eq!(
        outcomes("frames", run),
        [
            "again: SYN 198.18.0.1:443, held",
            "flood: SYN 198.18.0.1:1, held",
            "fragments: TCP-FRAGMENT 198.18.0.1:443, not held",
            "options: SYN 198.18.0.1:443, held",
            "others: UDP 198.18.0.1:53, not held",
            "ready: SYN 198.18.0.1:443, held",
            "syn: SYN 198.18.0.1:443, held",
            "v6: IPV6 [2001:db8::1]:443, not held",
        ]
    );
}

#[test]
fn hello_seeds_parse_as_expected() {
    let run = |bytes: &[u8]| match OpeningReader::new().feed(bytes).unwrap() {
        ClientOpening::Tls(name) => name.unwrap_or_else(|| "no name".into()),
        ClientOpening::BadTls(_) => "bad".into(),
        ClientOpening::Other => "other".into(),
    };
    assert_eq!(
        outcomes("client_hello", run),
        [
            "fragmented: tls.example",
            "grease: tls.example",
            "no_name: no name",
            "other: other",
            "plain: tls.example",
            "two_names: bad",
        ]
    );
}

#[test]
fn head_seeds_pass_or_fail_as_expected() {
    let run = |bytes: &[u8]| match StrictChecker::default().feed(bytes) {
        Ok(()) => "fine".to_owned(),
        Err(violation) => violation.to_owned(),
    };
    assert_eq!(
        outcomes("http_head", run),
        [
            "both: both Content-Length and Transfer-Encoding",
            "chunked: fine",
            "connect: fine",
            "folded: a header field folded over lines",
            "get: fine",
            "length: fine",
        ]
    );
}
