//! The host's own network, the report of a run, and a guest without egress.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::path::Path;
use std::process::Command;

use super::servers::{Echo, WebServer};
use super::{Guest, PRELUDE};
use crate::support::host::Devices;
use crate::support::{Host, TIMEOUT};

/// The configuration of the host's network namespace, by file or command.
type Network = BTreeMap<String, String>;

fn network() -> Network {
    let commands: [&[&str]; 8] = [
        &["ip", "-details", "link"],
        &["ip", "address"],
        &["ip", "route", "show", "table", "all"],
        &["ip", "-6", "route", "show", "table", "all"],
        &["ip", "rule"],
        &["ip", "-6", "rule"],
        &["ip", "netns", "list"],
        &["nft", "list", "ruleset"],
    ];
    let mut network = Network::new();
    for command in commands {
        let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // These counters change by themselves.
        let counts = ["valid_lft", "counter packets", "gc_timer"];
        let kept = text.lines().filter(|line| !counts.iter().any(|count| line.contains(count)));
        network.insert(command.join(" "), kept.collect::<Vec<_>>().join("\n"));
    }
    for directory in ["ipv4", "ipv6"] {
        read_all(&Path::new("/proc/sys/net").join(directory), &mut network);
    }
    network
}

fn read_all(directory: &Path, network: &mut Network) {
    // IPv6 may be disabled.
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, network);
        } else if let Ok(value) = fs::read_to_string(&path) {
            network.insert(path.to_string_lossy().into_owned(), value);
        }
    }
}

#[track_caller]
fn assert_same(before: &Network, after: &Network) {
    let changed = before.iter().filter(|(key, value)| after.get(*key) != Some(value));
    let new = after.iter().filter(|(key, _)| !before.contains_key(*key));
    let differences: Vec<_> = changed.chain(new).map(|(key, _)| (key, after.get(key))).collect();
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn an_ordinary_users_egress_does_not_change_the_hosts_network() {
    let mut host = Host::new();
    host.run_as_ordinary_user(&Devices::default());
    let web = WebServer::new("from the web\n");
    for mode in ["enforce", "open"] {
        let policy = format!(
            "mode = {mode:?}\nallow = [{{ host = \"web.test\" }}]\n\
             resolve = {{ \"web.test\" = \"{}\" }}",
            web.address
        );
        let guest = Guest::new(&host, &policy);
        let before = network();
        assert!(before.len() > 100, "{before:?}");
        let script =
            format!("{PRELUDE}direct http://web.test/; proxied http://web.test/; read end");
        let command = ["-i", "--", "bash", "-c", &script].map(str::to_owned);
        let arguments = guest.arguments().into_iter().chain(command);
        let mut command = host.command(arguments);
        let mut running =
            crate::support::Running::start_with(&mut command, std::process::Stdio::piped());
        running.wait_for_output("web\n after");
        assert_same(&before, &network());
        running.feed(b"\n".to_vec());
        let ending = running.finish(TIMEOUT);
        ending.assert_code(0);
        assert_eq!(ending.text().matches("from the web").count(), 2, "{ending:?}");
        assert_same(&before, &network());
    }
    host.assert_clean();
}

#[test]
fn the_report_summarizes_the_record() {
    const UP: usize = 1000;
    const DOWN: usize = 300_000;
    let host = Host::new();
    let bulk = Echo::new(|mut stream| {
        if stream.read_exact(&mut [0; UP]).is_ok() {
            // The sums show whether all of it arrived.
            _ = stream.write_all(&vec![b'x'; DOWN]);
            _ = stream.shutdown(Shutdown::Write);
        }
    });
    let policy = format!(
        "allow = [{{ host = \"bulk.test\", ports = [7777] }}]\n\
         resolve = {{ \"bulk.test\" = \"{}\" }}",
        bulk.address
    );
    let outcome = Guest::new(&host, &policy).run(
        r"
        bulk() {
            exec 3<>/dev/tcp/bulk.test/7777 || return
            head -c 1000 /dev/zero >&3
            wc -c <&3
        }
        probe bulk bulk
        probe again bulk
        probe other proxied http://other.test/
        probe other proxied http://other.test/
        probe other proxied http://other.test/
        ",
    );
    outcome.assert_works("bulk", &DOWN.to_string());
    outcome.assert_works("again", &DOWN.to_string());
    let row = |host: &str, verdict: &str| {
        let rows = outcome.report();
        let found = rows.iter().find(|row| row["host"] == host && row["verdict"] == verdict);
        found.cloned().unwrap_or_else(|| panic!("no row for {host}: {rows:#?}"))
    };
    let bulk = row("bulk.test", "allowed");
    let sums = ["connections", "up", "down"].map(|key| bulk[key].as_u64().unwrap());
    assert_eq!(sums, [2, 2 * UP as u64, 2 * DOWN as u64], "{:#?}", outcome.ending);
    assert_eq!(bulk["port"], 7777);
    let other = row("other.test", "refused");
    assert_eq!(other["connections"], 3);
    assert_eq!(other["cause"], "no-rule");
    let closed = outcome.lines.iter().filter(|line| line["event"] == "closed");
    let up: u64 = closed.clone().map(|line| line["up"].as_u64().unwrap()).sum();
    let down: u64 = closed.map(|line| line["down"].as_u64().unwrap()).sum();
    assert_eq!([up, down], [2 * UP as u64, 2 * DOWN as u64], "{:#?}", outcome.lines);
    host.assert_clean();
}

#[test]
fn a_guest_without_egress_has_no_proxy_and_is_refused_at_once() {
    let host = Host::new();
    let outcome = Guest::new(&host, "mode = \"none\"").run(
        r"
        probe variables sh -c 'env | grep -ic _proxy'
        probe lookup getent ahostsv4 example.com
        probe name direct http://example.com/
        probe literal direct http://192.0.32.8/
        probe gateway direct http://172.31.0.1:3128/
        probe through proxied -x http://172.31.0.1:3128 http://example.com/
        ",
    );
    outcome.print_refusals();
    outcome.assert_fails("variables", "0");
    outcome.assert_fails("lookup", "");
    outcome.assert_fails("name", "Could not resolve host");
    outcome.assert_fails("literal", "Could not connect");
    outcome.assert_recorded("dns example.com:0 refused no-egress");
    outcome.assert_recorded("packet 192.0.32.8:80 refused closed-port");
    outcome.assert_works("through", "the policy allows no egress");
    host.assert_clean();
}
