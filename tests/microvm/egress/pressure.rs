//! A guest that exhausts resources: slow clients on every listener, and thousands of half-open
//! connections. Honest clients beside them are still served, and the shepherd stays small.

use std::io::Write;
use std::process::Stdio;

use super::servers::{TlsServer, WebServer};
use super::{Guest, Outcome, PRELUDE};
use crate::support::processes::{ProcessTree, size};
use crate::support::{Host, Running, TIMEOUT};

/// The limit of a shepherd's peak memory, in bytes: four times its normal use.
const MAX_MEMORY: u64 = 48 << 20;

/// The number of clients of each kind in `slow.pl`.
const SLOW: &str = "20 of 20";

/// Runs an honest client until all slow ones have been disconnected.
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
fn a_guest_that_hoards_connections_gets_only_its_share() {
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
    let shepherd = ProcessTree::wait_for(running.pid()).shepherd;
    running.wait_for_output_within("all tried", 3 * TIMEOUT);
    let memory = size(shepherd, "VmHWM").unwrap();
    running.feed(b"\n".to_vec());
    let ending = running.finish(TIMEOUT);
    ending.assert_code(0);
    let outcome = Outcome::new(ending, &guest.record());
    eprintln!("the shepherd had {} KiB at most", memory >> 10);
    for probe in ["slow", "half-open"] {
        eprintln!("{probe}: {}", outcome.probe(probe).output);
    }
    assert!(memory < MAX_MEMORY, "{memory} bytes");
    assert_slow_clients_disconnected(&outcome);
    assert_half_open(&outcome.probe("half-open").output);
    for (name, probe) in outcome.probes.iter().filter(|(name, _)| name.starts_with("honest")) {
        let expected = if name.contains("proxied") { "over TLS" } else { "from the web" };
        assert!(probe.status == 0 && probe.output.contains(expected), "{name}: {probe:?}");
    }
    let honest = outcome.probes.keys().filter(|name| name.starts_with("honest")).count();
    assert!(honest > 4, "some were beside the slow ones: {honest}");
    outcome.assert_works("lookup after", "198.1");
    host.assert_clean();
}

fn assert_slow_clients_disconnected(outcome: &Outcome) {
    let text = &outcome.probe("slow").output;
    for kind in ["dns", "proxy", "connect", "tunnel", "tls", "http"] {
        assert!(text.contains(&format!("{kind} {SLOW}")), "{kind}: {text}");
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

/// Checks that connections were half-open on the host: it sent a SYN-ACK, and repeated it later.
fn assert_half_open(text: &str) {
    let numbers: Vec<u32> = text.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [sent, answered, repeated] = numbers[..] else { panic!("{text}") };
    assert_eq!(sent, 10_000);
    assert!(answered > 0 && repeated > 0, "{text}");
}
