//! Tests of `observer`, in a separate file for length.

use proptest::prelude::*;

use super::*;

/// Observes a client's bytes in parts of a given size. Returns the names or the refusal, and the
/// forwarded bytes.
fn watch(bytes: &[u8], part: usize) -> (Result<Vec<String>, RefusalCause>, Vec<u8>) {
    let mut observer = HttpObserver::default();
    let (mut names, mut passed) = (Vec::new(), Vec::new());
    for part in bytes.chunks(part) {
        match observer.feed(part) {
            Ok(named) => names.extend(named.iter().map(ToString::to_string)),
            Err(cause) => return (Err(cause), passed),
        }
        passed.extend(observer.take_released());
    }
    (Ok(names), passed)
}

const GOOD: &str = "GET / HTTP/1.1\r\nHost: good.test\r\n\r\n";
const EVIL: &str = "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n";

/// Requests for `evil.test` that at least one server understands. Each must be refused, or its name
/// found before a byte of the request is forwarded.
#[expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]
fn evil_requests() -> Vec<(&'static str, String)> {
    let long = "x".repeat(9 << 10);
    let own = |text: &str| text.to_owned();
    vec![
        ("plain", own(EVIL)),
        ("second request", format!("{GOOD}{EVIL}")),
        (
            "after a body",
            own("POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 3\r\n\r\nabc") + EVIL,
        ),
        (
            "after chunks",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            ) + EVIL,
        ),
        ("second Host", own("GET / HTTP/1.1\r\nHost: good.test\r\nHost: evil.test\r\n\r\n")),
        ("leading line end", format!("\r\n{EVIL}")),
        ("leading line feeds", format!("\n\n{EVIL}")),
        ("leading blanks", format!(" \t{EVIL}")),
        ("many line ends", "\r\n".repeat(8 << 10) + EVIL),
        ("lower-case method", EVIL.replace("GET", "get")),
        ("unknown method", EVIL.replace("GET", "FROBNICATE")),
        ("odd method", EVIL.replace("GET", "M-SEARCH")),
        ("method of signs", EVIL.replace("GET", "!#$%&")),
        ("bare line feeds", EVIL.replace("\r\n", "\n")),
        ("bare returns", EVIL.replace("\r\n", "\r")),
        (
            "absolute form",
            EVIL.replace("GET /", "GET http://evil.test/").replace("Host: evil", "Host: good"),
        ),
        (
            "absolute form, odd scheme",
            own("GET x-y://evil.test/ HTTP/1.1\r\nHost: good.test\r\n\r\n"),
        ),
        ("user info", EVIL.replace("GET /", "GET http://good.test@evil.test/")),
        ("user info in Host", EVIL.replace("evil.test", "good.test@evil.test")),
        ("space before the colon", EVIL.replace("Host:", "Host :")),
        ("tab before the colon", EVIL.replace("Host:", "Host\t:")),
        ("folded", EVIL.replace("Host: ", "Host:\r\n ")),
        ("folded first field", EVIL.replace("Host:", "X: y\r\n Host:")),
        ("no space after the colon", EVIL.replace("Host: ", "Host:")),
        ("upper case", EVIL.replace("Host: evil.test", "HOST: EVIL.TEST")),
        ("trailing dot", EVIL.replace("evil.test", "evil.test.")),
        ("a port", EVIL.replace("evil.test", "evil.test:80")),
        ("another port", EVIL.replace("evil.test", "evil.test:8080")),
        ("percent", EVIL.replace("evil.test", "%65vil.test")),
        ("an empty port", EVIL.replace("evil.test", "evil.test:")),
        ("a large head", EVIL.replace("Host:", &format!("X: {long}\r\nHost:"))),
        ("a large target", EVIL.replace("GET /", &format!("GET /{long}"))),
        (
            "a large target without slash",
            EVIL.replace("GET /", &format!("GET http://evil.test/{long}")),
        ),
        ("version 1.0", EVIL.replace("HTTP/1.1", "HTTP/1.0")),
        ("version 1.2", EVIL.replace("HTTP/1.1", "HTTP/1.2")),
        ("small letters", EVIL.replace("HTTP/1.1", "http/1.1")),
        ("version 0.9", own("GET http://evil.test/\r\n")),
        ("tabs for spaces", EVIL.replace("GET / ", "GET\t/\t")),
        ("two spaces", EVIL.replace("GET /", "GET  /")),
        ("a control character", EVIL.replace("GET /", "GET /\x01")),
        ("a zero byte", EVIL.replace("GET /", "GET /\0")),
        (
            "both lengths",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
            ) + EVIL,
        ),
        (
            "two lengths",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nContent-Length: 40\r\nContent-Length: 0\r\n\r\n",
            ) + EVIL,
        ),
        (
            "a chunk extension",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\n\r\n",
            ) + EVIL,
        ),
        (
            "a trailer",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: evil.test\r\n\r\n",
            ) + EVIL,
        ),
        (
            "an odd encoding",
            own("POST / HTTP/1.1\r\nHost: good.test\r\nTransfer-Encoding: xchunked\r\n\r\n") + EVIL,
        ),
        (
            "expectation",
            own(
                "POST / HTTP/1.1\r\nHost: good.test\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
            ) + EVIL,
        ),
        (
            "an upgrade",
            GOOD.replace("\r\n\r\n", "\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n")
                + "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        ("HTTP/2 at once", own("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        ("CONNECT", own("CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n")),
        ("a target that is a name", own("GET evil.test HTTP/1.1\r\nHost: good.test\r\n\r\n")),
        ("no Host", own("GET http://evil.test/ HTTP/1.0\r\n\r\n")),
    ]
}

/// Requests for `evil.test` whose first line is not text, or very long. Each reached Python's or
/// Java's server.
fn odd_evil_requests() -> Vec<(&'static str, Vec<u8>)> {
    let with = |method: &[u8], blank: &[u8], version: &[u8]| {
        let line = [method, blank, b"/", blank, version].concat();
        [&line[..], b"\r\nHost: evil.test\r\n\r\n"].concat()
    };
    let get = |blank| with(b"GET", blank, b"HTTP/1.1");
    let method = |method| with(method, b" ", b"HTTP/1.1");
    let long = "x".repeat(9_000);
    vec![
        ("separators of files", get(b"\x1c")),
        ("separators of units", get(b"\x1f")),
        ("no-break spaces", get(b"\xa0")),
        ("next lines", get(b"\x85")),
        ("returns", get(b"\r")),
        ("many spaces", get(" ".repeat(9_000).as_bytes())),
        ("a separator before it", method(b"\x1cGET")),
        ("a next line before it", method(b"\x85GET")),
        ("a control byte before it", method(b"\x80GET")),
        ("a zero byte before it", method(b"\0GET")),
        ("a byte order mark before it", method(b"\xef\xbb\xbfGET")),
        ("a method like git", method(b"0000git-x")),
        ("a method like git, any version", with(b"0000git-x", b" ", b"x")),
        ("git's request", with(b"0000git-x /\0host=", b" ", b"HTTP/1.1")),
        ("a method like PostgreSQL", method(b"\0\0\0\x08\x04\xd2\x16\x2f")),
        ("a method like a hello of SSL 2", method(b"\x80\x2e\x01")),
        ("a line feed in the method", method(b"SSH-2.0-x\n")),
        ("a long method", method(long.as_bytes())),
        ("a long binary method", method(&[b"\0", long.as_bytes()].concat())),
        ("any version", with(b"GET", b" ", b"x")),
        ("any version, a binary method", with(b"\x01GET", b" ", b"\x02")),
        ("any version, no method", with(b"", b" ", b"x")),
    ]
}

#[test]
fn no_request_for_a_name_passes_unnoticed() {
    let plain = evil_requests().into_iter().map(|(what, text)| (what, text.into_bytes()));
    for (what, bytes) in plain.chain(odd_evil_requests()) {
        for part in [1, 3, 100, 1_400, bytes.len()] {
            let (names, passed) = watch(&bytes, part);
            let seen = matches!(&names, Ok(names) if names.iter().any(|name| name == "evil.test"));
            let passed = String::from_utf8_lossy(&passed);
            let asked = passed.to_lowercase().contains("evil") || passed.contains("PRI");
            assert!(seen || !asked, "{what}, {part} at once: {names:?}, passed {passed}");
        }
    }
}

#[test]
fn other_protocols_pass_unchanged() {
    let rows: [&[u8]; 19] = [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\nPING\r\n",
        b"PING\r\n",
        b"GET key\r\n",
        b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\n",
        b"USER anonymous\r\n",
        b"NICK me\r\nUSER me 0 * :me\r\n",
        b"CONNECT {\"verbose\":false}\r\nPING\r\n",
        b"0032git-upload-pack /x\0host=a.test\0",
        b"003egit-upload-pack /x y/z.git\0host=a.test\0\0version=2\0",
        b"\0\0\0\x19\0\x03\0\0user\0a\0database\0b\0\0",
        b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$13\r\nGET / HTTP/1.1\r\n",
        b"EHLO client.test\r\nMAIL FROM:<a@b.test>\r\nDATA\r\nGET / HTTP/1.1\r\n",
        b"\x13BitTorrent protocol\0\0\0\0",
        b"AMQP\0\0\x09\x01",
        b"\x10\x0c\0\x04MQTT",
        b"{\"message\": \"a line of JSON\"}\n",
        b"\xe2\x82\xac\n",
    ];
    for bytes in rows {
        for part in [1, bytes.len()] {
            let (names, passed) = watch(bytes, part);
            let text = String::from_utf8_lossy(bytes);
            assert_eq!(names, Ok(Vec::new()), "{text}");
            assert_eq!(passed, bytes, "{text}");
        }
    }
}

#[test]
fn a_client_that_waits_for_an_answer_is_not_held_back() {
    for (bytes, protocol) in [
        (&b"\0\0\0\x08\x04\xd2\x16\x2f"[..], SpokenProtocol::OtherSoFar),
        (b"\x05\x01\0", SpokenProtocol::OtherSoFar),
        (b"{\"id\": 1}\n", SpokenProtocol::OtherSoFar),
        (b"SSH-2.0-OpenSSH_9.2\r\n", SpokenProtocol::Other),
    ] {
        let mut observer = HttpObserver::default();
        assert_eq!(observer.feed(bytes), Ok(Vec::new()));
        assert_eq!(observer.protocol(), Some(protocol));
        assert_eq!(observer.take_released(), bytes);
    }
}

#[test]
fn a_long_first_line_is_refused() {
    let refused = |text: &[u8]| watch(text, 1_000).0;
    let text = "x".repeat(8 << 10);
    assert_eq!(refused(text.as_bytes()), Ok(Vec::new()));
    let cause = RefusalCause::Request("a first line that is too long".into());
    assert_eq!(refused(format!("{text}x").as_bytes()), Err(cause));
}

#[test]
fn the_names_of_the_first_request_are_found() {
    let first = |bytes: &str, part: usize| {
        let mut observer = HttpObserver::default();
        bytes.as_bytes().chunks(part).find_map(|part| observer.feed_first(part))
    };
    let request = |text: &str| Some(Err(RefusalCause::Request(text.into())));
    for part in [1, 1000] {
        for (bytes, names) in [
            (GOOD, &["good.test"][..]),
            ("GET / HTTP/1.1\r\nUser-Agent: x\r\nHOST: a.example:80\r\n\r\n", &["a.example"]),
            (
                "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
                &["a.example", "b.example"],
            ),
            ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n", &[]),
        ] {
            let names = names.iter().map(|name| HostName::parse(name).unwrap()).collect();
            assert_eq!(first(bytes, part), Some(Ok(names)), "{bytes}");
        }
        assert_eq!(first("SSH-2.0-x\r\n", part), request("it is not HTTP/1"));
        assert_eq!(first("GET / HTTP/1.1\r\nHost: a", part), None);
        assert_eq!(first("GE", part), None);
        assert!(matches!(first("GET / HTTP/1.1\n\n", part), Some(Err(RefusalCause::Request(_)))));
    }
}

#[test]
fn a_body_is_streamed_and_a_head_is_forwarded_whole() {
    let mut observer = HttpObserver::default();
    observer.feed(b"PUT /x HTTP/1.1\r\nHost: good.test\r\n").unwrap();
    assert!(observer.take_released().is_empty());
    let named = observer.feed(b"Content-Length: 9\r\n\r\nab").unwrap();
    assert_eq!(named, [HostName::parse("good.test").unwrap()]);
    assert!(observer.take_released().ends_with(b"\r\n\r\nab"));
    observer.feed(b"cdefghiGE").unwrap();
    assert_eq!(observer.take_released(), b"cdefghi");
}

proptest! {
    #[test]
    fn forwarded_bytes_are_unchanged(
        bytes in prop::collection::vec(any::<u8>(), 0..200), part in 1_usize..50,
    ) {
        let (_, passed) = watch(&bytes, part);
        prop_assert!(bytes.starts_with(&passed));
    }

    /// Whatever precedes a target and a version in the first line, and however it is split.
    #[test]
    fn no_server_gets_a_whole_request_line(
        before in prop::collection::vec(any::<u8>(), 0..40), part in 1_usize..60,
    ) {
        let method: Vec<u8> =
            before.into_iter().filter(|byte| !b"\r\n".contains(byte)).collect();
        let bytes = [&method[..], b" evil HTTP/1.1\r\nHost: evil.test\r\n\r\n"].concat();
        let (names, passed) = watch(&bytes, part);
        let seen = matches!(&names, Ok(names) if names.iter().any(|name| name == "evil.test"));
        prop_assert!(seen || !passed.windows(5).any(|part| part == b"HTTP/"));
    }

    #[test]
    fn a_name_is_found_however_it_is_split(
        before in 0_usize..4, parts in prop::collection::vec(1_usize..30, 1..40),
    ) {
        let text = format!("{}{EVIL}", GOOD.repeat(before));
        let mut observer = HttpObserver::default();
        let (mut rest, mut names) = (text.as_bytes(), Vec::new());
        for part in parts.iter().cycle() {
            let (now, later) = rest.split_at((*part).min(rest.len()));
            names.extend(observer.feed(now).unwrap());
            let passed = observer.take_released();
            prop_assert!(names.iter().any(|name| name.to_string() == "evil.test")
                || !passed.windows(4).any(|part| part == b"evil"));
            rest = later;
            if rest.is_empty() { break }
        }
        prop_assert_eq!(names.len(), before + 1);
    }
}
