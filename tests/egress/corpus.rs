//! The seeds of the fuzz targets, run by what an ordinary compiler builds.

use std::path::Path;

use mayfly::egress::attempt;
use mayfly::egress::dns::message::answer;
use mayfly::egress::hold::Segment;
use mayfly::egress::http::Strict;
use mayfly::egress::names::Names;
use mayfly::egress::opening::{Opening, Watcher};
use mayfly::egress::policy::Policy;

/// What each seed of a target comes to, by file name.
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
fn dns_seeds_are_answered_as_they_should_be() {
    let draft = toml::from_str("allow = [{ host = \"*.example\" }]").unwrap();
    let policy = Policy::check(Path::new("test"), "ci", &draft).unwrap();
    let run = |bytes: &[u8]| {
        let answer = answer(bytes, &policy, &mut Names::default()).unwrap();
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
fn frame_seeds_are_the_attempts_that_they_should_be() {
    // The first packet of each, which the fuzz target reads after three bytes of its own.
    let run = |bytes: &[u8]| {
        let ether_type = if bytes[1] == 1 { 0x86dd } else { 0x0800 };
        let packet = &bytes[3..3 + usize::from(bytes[2])];
        let held = match Segment::read(packet) {
            Some(Segment::Syn(_)) => "held",
            Some(Segment::Reset(_)) => "given up",
            None => "not held",
        };
        format!("{}, {held}", attempt(ether_type, packet).unwrap_or_default())
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
fn hello_seeds_are_understood_as_they_should_be() {
    let run = |bytes: &[u8]| match Watcher::new().feed(bytes).unwrap() {
        Opening::Tls(name) => name.unwrap_or_else(|| "no name".into()),
        Opening::BadTls(_) => "bad".into(),
        Opening::Other => "other".into(),
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
fn head_seeds_pass_or_fail_as_they_should() {
    let run = |bytes: &[u8]| match Strict::default().feed(bytes) {
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
