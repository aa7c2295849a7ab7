//! The ways out that need a real guest: what its root can send past its own kernel, and what
//! addresses it can reach of the host that it runs on. Nothing arrives, in any mode.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};

use super::canary::Canary;
use super::{Guest, Outcome, frames};
use crate::support::{Host, image};

/// The ports of the host that are tried, besides the canary's.
const MOST_PORTS: usize = 24;

/// Connects and prints what it hears, or the first line of the proxy's answer.
const SCRIPT: &str = r#"
reach() { line "$1" "$2" "GET / HTTP/1.0"; }
ask() {
    exec 3<>/dev/tcp/172.31.0.1/3128 || return
    printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$1" "$1" >&3
    timeout 20 head -n 1 <&3
}
query() {
    exec 3<>"/dev/udp/$1/53" || return
    printf '\0\1\1\0\0\1\0\0\0\0\0\0\4evil\4test\0\0\1\0\1' >&3
    timeout 5 head -c 12 <&3 | od -An -tx1
}
"#;

/// Spellings of 169.254.169.254, 127.0.0.1 and the host, for the forward proxy.
const TARGETS: [&str; 22] = [
    "169.254.169.254:80",
    "2852039166:80",
    "0xa9fea9fe:80",
    "0xa9.0xfe.0xa9.0xfe:80",
    "0251.0376.0251.0376:80",
    "169.16689662:80",
    "169.254.169.254.:80",
    "[::ffff:169.254.169.254]:80",
    "[::ffff:a9fe:a9fe]:80",
    "[64:ff9b::a9fe:a9fe]:80",
    "[2002:a9fe:a9fe::1]:80",
    "[fd00:ec2::254]:80",
    "168.63.129.16:80",
    "100.100.100.200:80",
    "127.1:22",
    "0:22",
    "0.0.0.0:22",
    "[::1]:22",
    "[::]:22",
    "localhost:22",
    "web.test@127.0.0.1:22",
    "172.31.0.1:3128",
];

/// Addresses that no mode lets a guest connect to.
const ADDRESSES: [&str; 13] = [
    "169.254.169.254",
    "169.254.170.2",
    "168.63.129.16",
    "100.100.100.200",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "172.31.0.1",
    "172.31.0.9",
    "0.1.2.3",
    "198.19.99.99",
    "240.0.0.1",
];

/// The IPv4 addresses of this host, without loopback.
fn own_addresses() -> Vec<Ipv4Addr> {
    let addresses = mayfly::egress::address::of_this_host().unwrap();
    let v4 = addresses.into_iter().filter_map(|address| match address {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    });
    v4.collect()
}

/// The TCP ports that something listens on here, on any address.
fn listening_ports() -> BTreeSet<u16> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(fs::read_to_string);
    let tables: String = tables.into_iter().flatten().collect();
    let ports = tables.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // State 0A is LISTEN (`net/tcp_states.h`).
        let port = fields.get(1)?.rsplit_once(':')?.1;
        (*fields.get(3)? == "0A").then(|| u16::from_str_radix(port, 16).ok()).flatten()
    });
    ports.collect()
}

fn script(hosts: &[Ipv4Addr], ports: &BTreeSet<u16>) -> String {
    use std::fmt::Write as _;
    let mut script = SCRIPT.to_owned();
    for target in TARGETS {
        writeln!(script, "probe 'CONNECT {target}' ask '{target}'").unwrap();
    }
    for address in ADDRESSES {
        writeln!(script, "probe 'to {address}' reach {address} 80").unwrap();
    }
    for (host, port) in hosts.iter().flat_map(|host| ports.iter().map(move |port| (host, port))) {
        writeln!(script, "probe 'own {host}:{port}' reach {host} {port}").unwrap();
    }
    for host in hosts {
        let port = ports.first().unwrap();
        writeln!(script, "probe 'CONNECT {host}:{port}' ask {host}:{port}").unwrap();
    }
    for server in ["8.8.8.8", "169.254.169.253", "172.31.0.9"] {
        writeln!(script, "probe 'DNS at {server}' query {server}").unwrap();
    }
    script
        + "probe 'DNS at the stub' query 172.31.0.1\n\
              mac=$(sed -n 's/^172.31.0.1 .* \\(..:..:..:..:..:..\\) .*/\\1/p' /proc/net/arp)\n\
              sed \"s/GATE/${mac//:/}/g\" /frames.txt | /frames 60\n\
              probe 'after it all' query 172.31.0.1\n"
}

fn try_everything(mode: &str) {
    let host = Host::new();
    let canary = Canary::new();
    let hosts = own_addresses();
    let mut ports: BTreeSet<u16> = listening_ports().into_iter().take(MOST_PORTS).collect();
    ports.insert(canary.port);
    let rows = frames::table(*hosts.first().unwrap(), canary.port);
    let lines = host.root().join("frames.txt");
    fs::write(&lines, frames::lines(&rows).replace(&frames::gateway_mac(), "GATE")).unwrap();
    let policy = format!("mode = {mode:?}\nallow = [{{ host = \"web.test\" }}]");
    let outcome = Guest::new(&host, &policy)
        .copy(lines, "/frames.txt")
        .copy(image::guest_program("frames"), "/frames")
        .run(&script(&hosts, &ports));
    outcome.print_refusals();
    assert_refused(&outcome, mode);
    let text = outcome.ending.text();
    let [heard, failed] =
        ["heard ", "failed "].map(|word| text.matches(&format!("\n{word}")).count());
    assert!(heard > 0 && failed == 0, "every frame leaves the guest: {text}");
    // The guest's own network still works.
    outcome.assert_works("DNS at the stub", "00 01 81");
    outcome.assert_works("after it all", "00 01 81");
    let recorded = outcome.recorded();
    let missing: Vec<_> = rows
        .iter()
        .filter(|(_, _, line)| !recorded.iter().any(|found| found.starts_with(line.as_str())))
        .map(|(what, _, line)| (what, line))
        .collect();
    assert!(missing.is_empty(), "not recorded: {missing:#?}\nbut: {recorded:#?}");
    canary.assert_silent();
    host.assert_clean();
}

/// Fails if a probe got anywhere.
fn assert_refused(outcome: &Outcome, mode: &str) {
    for (name, probe) in &outcome.probes {
        if name.starts_with("CONNECT") {
            let status = probe.said.split(' ').nth(1).unwrap_or_default();
            let refused = ["400", "403", "502"].contains(&status);
            assert!(refused, "{mode}: {name}: {probe:?}");
        } else if name.starts_with("to ") || name.starts_with("own ") {
            let heard = &probe.said;
            let refused =
                heard.contains("refused") || heard.contains("reset") || heard.contains("mayfly:");
            assert!(refused, "{mode}: {name}: {probe:?}");
        }
    }
}

#[test]
fn nothing_that_a_guests_root_sends_arrives_where_rules_are_enforced() {
    try_everything("enforce");
}

#[test]
fn nothing_that_a_guests_root_sends_arrives_where_anything_public_is_open() {
    try_everything("open");
}
