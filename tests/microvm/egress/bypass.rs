//! Bypass attempts that need a real guest: frames that its root sends past its own kernel, and
//! connections to addresses of the host. Nothing arrives in any mode.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::attempts::{Row, Sign};
use super::canary::Canary;
use super::servers::Echo;
use super::{Guest, Outcome, attempts, frames, summary};
use crate::support::{Host, image};

/// The ports of the host to try, besides the canary's.
const MOST_PORTS: usize = 24;

/// Returns the IPv4 addresses of this host, without loopback.
fn own_addresses() -> Vec<Ipv4Addr> {
    let addresses = mayfly_egress::address::host_addresses().unwrap();
    let v4 = addresses.into_iter().filter_map(|address| match address {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    });
    v4.collect()
}

/// Returns the TCP ports with a listener on this host, on any address.
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

fn script(rows: &[Row]) -> String {
    use std::fmt::Write as _;
    let mut script = attempts::FUNCTIONS.to_owned();
    for (number, row) in rows.iter().enumerate() {
        writeln!(script, "probe 'row {number}' {}", row.command).unwrap();
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
    let mut rows = attempts::absolute(mode, &hosts, &ports);
    if mode == "enforce" {
        rows.extend(attempts::by_rule());
    }
    let frames = frames::table(*hosts.first().unwrap(), canary.port);
    assert!(rows.len() + frames.len() >= 60, "{} rows", rows.len() + frames.len());
    let lines = host.root().join("frames.txt");
    fs::write(&lines, frames::lines(&frames).replace(&frames::gateway_mac(), "GATE")).unwrap();
    // The one allowed name: connections succeed, but it receives no payload.
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let arrives = Arc::clone(&arrived);
    let web = Echo::new(move |mut stream| {
        let mut bytes = Vec::new();
        _ = stream.read_to_end(&mut bytes);
        arrives.lock().unwrap().extend(bytes);
    });
    let policy = format!(
        "mode = {mode:?}\nallow = [{{ host = \"web.test\" }}]\n\
         resolve = {{ \"web.test\" = \"{}\" }}",
        web.address
    );
    let outcome = Guest::new(&host, &policy)
        .copy(lines, "/frames.txt")
        .copy(image::guest_program("frames"), "/frames")
        .run(&script(&rows));
    outcome.print_refusals();
    eprintln!("{} attempts and {} frames in mode {mode}", rows.len(), frames.len());
    for (number, row) in rows.iter().enumerate() {
        assert_refused(&outcome, row, &format!("row {number}"));
    }
    let text = outcome.ending.text();
    let [heard, failed] =
        ["heard ", "failed "].map(|word| text.matches(&format!("\n{word}")).count());
    assert!(heard > 0 && failed == 0, "every frame leaves the guest: {text}");
    // The guest's own network still works.
    outcome.assert_works("DNS at the stub", "00 01 81");
    outcome.assert_works("after it all", "00 01 81");
    let recorded = outcome.recorded();
    let missing: Vec<_> = frames
        .iter()
        .filter(|(_, _, line)| !recorded.iter().any(|found| found.starts_with(line.as_str())))
        .map(|(what, _, line)| (what, line))
        .collect();
    assert!(missing.is_empty(), "not recorded: {missing:#?}\nbut: {recorded:#?}");
    canary.assert_silent();
    let arrived = String::from_utf8_lossy(&arrived.lock().unwrap()).into_owned();
    assert!(arrived.is_empty(), "{arrived}");
    host.assert_clean();
}

/// Checks that an attempt failed, and that the record contains its destination and cause.
fn assert_refused(outcome: &Outcome, row: &Row, name: &str) {
    let probe = outcome.probe(name);
    let text = &probe.output;
    let is_refused = match row.sign {
        Sign::Status => {
            let status = text.split(' ').nth(1).unwrap_or_default();
            ["400", "403", "502"].contains(&status)
        }
        Sign::Closed => ["refused", "reset", "mayfly:"].iter().any(|word| text.contains(word)),
        Sign::Fails => probe.status != 0,
    };
    assert!(is_refused, "{}: {probe:?}", row.command);
    let is_of_row = |line: &Value| {
        let original = row.original.as_deref();
        let detail = line["detail"].as_str().unwrap_or_default();
        row.recorded.contains(&summary(line))
            && original.is_none_or(|original| line["original"] == original)
            && detail.contains(row.detail)
    };
    let found = outcome.lines.iter().any(is_of_row);
    assert!(found, "{}: no {:?} in {:#?}", row.command, row.recorded, outcome.lines);
}

#[test]
fn nothing_that_a_guests_root_sends_arrives_where_rules_are_enforced() {
    try_everything("enforce");
}

#[test]
fn nothing_that_a_guests_root_sends_arrives_where_anything_public_is_open() {
    try_everything("open");
}
