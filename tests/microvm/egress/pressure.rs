//! A guest's root that holds on to all it can get: slow clients on every listener, and thousands of
//! connections that are never completed. What is honest beside them is served, and the shepherd
//! stays small.

use std::io::Write;
use std::process::Stdio;

use super::servers::{TlsServer, WebServer};
use super::{Guest, Outcome, PRELUDE};
use crate::support::processes::{Tree, size};
use crate::support::{Host, PATIENCE, Running};

/// The most memory that a shepherd may have had, in bytes: four times what it takes.
const MOST_MEMORY: u64 = 48 << 20;

/// Clients of each kind in `slow.pl`.
const SLOW: &str = "20 of 20";

/// An honest client goes on until the slow ones have all been let go.
const SCRIPT: &str = r#"
slow() { perl /slow.pl; }
half_open() { perl /half_open.pl; }
(probe slow slow; : >/tmp/done) &
number=0
until [ -e /tmp/done ]; do
    probe "honest $number" direct http://web.test/
    probe "honest proxied $number" proxied --cacert /ca.pem https://tls.test/index.html
    number=$((number + 1))
done
wait
probe half-open half_open
probe "honest after" direct http://web.test/
probe "honest proxied after" proxied --cacert /ca.pem https://tls.test/index.html
probe "lookup after" getent ahostsv4 web.test
echo all tried
read end
"#;

#[test]
fn a_guest_that_holds_on_to_connections_gets_no_more_than_its_share() {
    let host = Host::new();
    let (web, tls) = (WebServer::new("from the web\n"), TlsServer::new(&["tls.test"]));
    let policy = format!(
        "allow = [{{ host = \"web.test\", ports = [80] }}, {{ host = \"tls.test\", ports = [443] }}]\n\
         resolve = {{ \"web.test\" = \"{}\", \"tls.test\" = \"{}\" }}",
        web.address, tls.address
    );
    let mut guest = Guest::new(&host, &policy).copy(tls.certificate(), "/ca.pem");
    for (name, text, at) in [
        ("slow.pl", include_str!("scripts/slow.pl"), "/slow.pl"),
        ("half_open.pl", include_str!("scripts/half_open.pl"), "/half_open.pl"),
    ] {
        let path = host.root().join(name);
        std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
        guest = guest.copy(path, at);
    }
    let command = ["-i".to_owned(), "--".into(), "bash".into(), "-c".into()];
    let script = format!("{PRELUDE}{SCRIPT}");
    let arguments = guest.arguments().into_iter().chain(command).chain([script]);
    let mut running = Running::start_with(&mut host.command(arguments), Stdio::piped());
    let shepherd = Tree::of(running.pid()).shepherd;
    running.wait_for_output_within("all tried", 3 * PATIENCE);
    let memory = size(shepherd, "VmHWM").unwrap();
    running.feed(b"\n".to_vec());
    let ending = running.finish(PATIENCE);
    ending.assert_code(0);
    let outcome = Outcome::new(ending, &guest.record());
    eprintln!("the shepherd had {} KiB at most", memory >> 10);
    for probe in ["slow", "half-open"] {
        eprintln!("{probe}: {}", outcome.probe(probe).said);
    }
    assert!(memory < MOST_MEMORY, "{memory} bytes");
    assert_slow_ones_were_let_go(&outcome);
    assert_half_open(&outcome.probe("half-open").said);
    for (name, probe) in outcome.probes.iter().filter(|(name, _)| name.starts_with("honest")) {
        let says = if name.contains("proxied") { "over TLS" } else { "from the web" };
        assert!(probe.status == 0 && probe.said.contains(says), "{name}: {probe:?}");
    }
    let honest = outcome.probes.keys().filter(|name| name.starts_with("honest")).count();
    assert!(honest > 4, "some were beside the slow ones: {honest}");
    outcome.assert_works("lookup after", "198.1");
    host.assert_clean();
}

fn assert_slow_ones_were_let_go(outcome: &Outcome) {
    let said = &outcome.probe("slow").said;
    for kind in ["dns", "proxy", "connect", "tunnel", "tls", "http"] {
        assert!(said.contains(&format!("{kind} {SLOW}")), "{kind}: {said}");
    }
    for line in [
        "dns :0 refused client-deadline",
        "proxy 172.31.0.1:3128 refused client-deadline",
        "proxy tls.test:443 refused client-deadline",
        "transparent tls.test:443 refused client-deadline",
        "transparent web.test:80 refused client-deadline",
    ] {
        outcome.assert_recorded(line);
    }
}

/// Fails unless connections were half open on the host: it answered, and asked again later.
fn assert_half_open(said: &str) {
    let numbers: Vec<u32> = said.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [sent, answered, repeated] = numbers[..] else { panic!("{said}") };
    assert_eq!(sent, 10_000);
    assert!(answered > 0 && repeated > 0, "{said}");
}
