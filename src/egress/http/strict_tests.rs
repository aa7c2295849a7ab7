//! Tests of `strict`, in a separate file for length.

use proptest::prelude::*;

use super::*;

fn feed(bytes: &[u8]) -> Result<(), HttpViolation> {
    StrictChecker::default().feed(bytes)
}

/// Returns a request with these header lines after `Host`.
fn request(fields: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n")
}

#[test]
fn ordinary_requests_pass_in_sequence() {
    let requests = [
        "GET http://a.example/x?y HTTP/1.1\r\nHost: a.example\r\nAccept: */*\r\n\r\n".to_owned(),
        request("Content-Length: 5\r\n") + "hello",
        request("Transfer-Encoding: chunked\r\n") + "5\r\nhello\r\n0A\r\n0123456789\r\n0\r\n\r\n",
        request("Content-Length: 0\r\n"),
        "GET / HTTP/1.0\r\n\r\n".to_owned(),
        request("X-Odd: \u{e4}\t\"quoted\"\r\nEmpty:\r\n"),
    ];
    assert_eq!(feed(requests.concat().as_bytes()), Ok(()));
    let mut strict = StrictChecker::default();
    assert_eq!(
        strict.feed(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"),
        Ok(())
    );
    assert_eq!(strict.connect(), Some(("a.example:443", Some("a.example:443"))));
}

#[test]
fn ambiguous_framing_is_rejected() {
    let both = "both Content-Length and Transfer-Encoding";
    let encoding = "a Transfer-Encoding other than one \"chunked\"";
    let length = "a Content-Length that is not a number";
    for (bytes, violation) in [
        (request("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"), both),
        (request("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"), both),
        (request("Content-Length: 5\r\nContent-Length: 5\r\n"), "more than one Content-Length"),
        (request("Content-Length: 5, 5\r\n"), length),
        (request("Content-Length: +5\r\n"), length),
        (request("Content-Length: 0x5\r\n"), length),
        (request("Content-Length: -1\r\n"), length),
        (request("Content-Length: 99999999999999999999\r\n"), length),
        (request("Content-Length:\r\n"), length),
        (request("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n"), encoding),
        (request("Transfer-Encoding: gzip, chunked\r\n"), encoding),
        (request("Transfer-Encoding: xchunked\r\n"), encoding),
        (request("Transfer-Encoding: chunked, chunked\r\n"), encoding),
        (request("Transfer-Encoding: \"chunked\"\r\n"), encoding),
        (request("Transfer-Encoding : chunked\r\n"), "a malformed header name"),
        (request("Transfer-Encoding\r\n"), "a header without colon"),
        (request("X: y\r\n Transfer-Encoding: chunked\r\n"), "a header field folded over lines"),
        (request("X: y\r\n\tz\r\n"), "a header field folded over lines"),
        (request("X: y\nContent-Length: 5\r\n"), "a line feed without carriage return"),
        (request("X: y\rContent-Length: 5\r\n"), "a carriage return without line feed"),
        (request("X: y\0\r\n"), "a control character"),
        (request("X: y\x0b\r\n"), "a control character"),
        (request("Host: b.example\r\n"), "more than one Host"),
        (request(": x\r\n"), "a malformed header name"),
        (
            request("Connection: close, Content-Length\r\n"),
            "a Connection that names a framing header",
        ),
        ("GET / HTTP/1.1\r\n\r\n".into(), "no Host"),
        (
            "GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            "Transfer-Encoding in HTTP/1.0",
        ),
    ] {
        assert_eq!(feed(bytes.as_bytes()), Err(violation), "{bytes:?}");
    }
}

#[test]
fn malformed_lines_are_rejected() {
    let size = "a chunk size that is not up to 16 hexadecimal digits";
    let chunked = |rest: &str| request("Transfer-Encoding: chunked\r\n") + rest;
    for (bytes, violation) in [
        (
            "GET  / HTTP/1.1\r\nHost: a\r\n\r\n".into(),
            "a request line that is not method, target and version",
        ),
        ("GET /\tx HTTP/1.1\r\nHost: a\r\n\r\n".into(), "a malformed target"),
        (
            "GET / HTTP/1.1 \r\nHost: a\r\n\r\n".into(),
            "a request line that is not method, target and version",
        ),
        ("GET /\r\n\r\n".into(), "a request line that is not method, target and version"),
        ("GET / HTTP/2.0\r\nHost: a\r\n\r\n".into(), "a version other than HTTP/1.1 and HTTP/1.0"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n".into(), "a version other than HTTP/1.1 and HTTP/1.0"),
        ("G(T / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "a malformed method"),
        ("GET / HTTP/1.1\nHost: a\n\n".into(), "a line feed without carriage return"),
        ("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".into(), "an empty line before the request"),
        (chunked("5;a=b\r\nhello\r\n"), size),
        (chunked("0x5\r\nhello\r\n"), size),
        (chunked(" 5\r\nhello\r\n"), size),
        (chunked("\r\n"), size),
        (chunked("00000000000000005\r\nhello\r\n"), size),
        (chunked("5\r\nhello!\r\n"), "a chunk longer than its size"),
        (chunked("5\nhello\r\n"), "a line feed without carriage return"),
        (chunked("0\r\nX: y\r\n\r\n"), "trailer fields"),
        (
            "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\nGET".into(),
            "bytes after CONNECT before its response",
        ),
        (
            "CONNECT a:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n".into(),
            "CONNECT with a body",
        ),
    ] {
        assert_eq!(feed(bytes.as_bytes()), Err(violation), "{bytes:?}");
    }
}

#[test]
fn heads_are_bounded() {
    let field = format!("X: {}\r\n", "y".repeat(1000));
    assert_eq!(feed(request(&field.repeat(40)).as_bytes()), Err("a head or line that is too long"));
    assert_eq!(feed(request(&"X: y\r\n".repeat(100)).as_bytes()), Err("too many header fields"));
    assert_eq!(feed(&b"A".repeat(MAX_HEAD + 1)), Err("a head or line that is too long"));
}

#[test]
fn nothing_passes_after_a_violation() {
    let mut strict = StrictChecker::default();
    strict.feed(b"\n").unwrap_err();
    assert!(strict.feed(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err());
}

proptest! {
    #[test]
    fn segments_do_not_matter(
        parts in prop::collection::vec(prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "Host: a\r\n", "Content-Length: 3\r\n", "\r\n", "abc",
            "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n", "0\r\n\r\n", "\n", "\r",
        ]), 0..12),
        segment in 1_usize..9,
    ) {
        let bytes = parts.concat().into_bytes();
        let mut strict = StrictChecker::default();
        let pieces = bytes.chunks(segment).try_for_each(|piece| strict.feed(piece));
        let mut whole = StrictChecker::default();
        prop_assert_eq!(pieces, whole.feed(&bytes));
        prop_assert_eq!(strict.state, whole.state);
    }

    #[test]
    fn no_bytes_break_the_check(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = feed(&bytes);
        let _ = feed(&[request("").as_bytes(), &bytes].concat());
    }
}
