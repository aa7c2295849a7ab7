//! The seeds of the fuzz targets, run by what an ordinary compiler builds.

use std::path::Path;

use mayfly::egress::dns::message::answer;
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
fn hello_seeds_are_understood_as_they_should_be() {
    let run = |bytes: &[u8]| match Watcher::for_tls().feed(bytes).unwrap() {
        Opening::Tls(name) => name.unwrap_or_else(|| "no name".into()),
        Opening::BadTls(_) => "bad".into(),
        Opening::Http(_) | Opening::Other => "other".into(),
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
