//! A name server of an attacker's, which the host asks: from one question to the next it takes a
//! name from a public address to one that nobody may reach, and back.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::Message;
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::Guest;
use super::servers::WebServer;
use crate::support::Host;

const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 32, 8);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// What `rebind.test` is, one question after the other.
const ANSWERS: [Ipv4Addr; 6] = [PUBLIC, LOOPBACK, PUBLIC, PRIVATE, PUBLIC, METADATA];

/// Three ways to the name, four times each: every way meets both kinds of answers.
const SCRIPT: &str = "
for round in 1 2 3 4; do
    probe $round-1 proxied -f http://rebind.test/
    probe $round-2 direct -f http://rebind.test/
    probe $round-3 proxied -f -p http://rebind.test/
done
probe mixed proxied -f http://mixed.test/
";

/// Puts this thread, and all that it starts, on a host of its own: the addresses above are local
/// there, without being addresses of an interface, and names are asked for at loopback.
fn become_a_host(directory: &Path) {
    crate::support::require_root();
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let resolv = directory.join("resolv.conf");
    std::fs::write(&resolv, format!("nameserver {LOOPBACK}\noptions attempts:1\n")).unwrap();
    mount(Some(&resolv), "/etc/resolv.conf", none, MsFlags::MS_BIND, none).unwrap();
    let routes = [PUBLIC, PRIVATE, METADATA].map(|to| format!("route add local {to}/32 dev lo"));
    for arguments in ["link set lo up"].into_iter().chain(routes.iter().map(String::as_str)) {
        let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {output:?}");
    }
}

/// Answers questions for addresses; counts those for `rebind.test`. It lives as long as the test.
fn name_server() -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind((LOOPBACK, 53)).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let question = query.queries[0].clone();
            let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
            answer.metadata.recursion_available = true;
            let addresses = match (question.query_type(), question.name().to_ascii().as_str()) {
                (RecordType::A, "rebind.test.") => {
                    vec![ANSWERS[counter.fetch_add(1, Ordering::Relaxed) % ANSWERS.len()]]
                }
                (RecordType::A, "mixed.test.") => vec![PUBLIC, PRIVATE],
                _ => Vec::new(),
            };
            for address in addresses {
                let data = RData::A(A(address));
                answer.add_answer(Record::from_rdata(question.name().clone(), 0, data));
            }
            answer.add_query(question);
            socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
        }
    });
    asked
}

#[test]
fn the_address_that_was_checked_is_the_one_that_is_dialled() {
    let host = Host::new();
    become_a_host(host.root());
    let asked = name_server();
    let public = WebServer::at(&format!("{PUBLIC}:80"), "from outside\n");
    let inside = [LOOPBACK, PRIVATE, METADATA]
        .map(|address| WebServer::at(&format!("{address}:80"), "must not be read\n"));
    let policy = "allow = [{ host = \"rebind.test\" }, { host = \"mixed.test\" }]";
    let outcome = Guest::new(&host, policy).run(SCRIPT);
    for (number, (name, probe)) in
        outcome.probes.iter().filter(|(name, _)| name.contains('-')).enumerate()
    {
        let address = ANSWERS[number % ANSWERS.len()];
        let (status, says) = if address == PUBLIC { (0, "from outside") } else { (22, "403") };
        assert_eq!(probe.status, status, "{name} at {address}: {probe:?}");
        assert!(probe.said.contains(says), "{name} at {address}: {probe:?}");
    }
    // Had a name been looked up once more to be dialled, it would have been elsewhere by then.
    assert_eq!(asked.load(Ordering::Relaxed), 12);
    outcome.assert_fails("mixed", "403");
    assert_eq!(public.requests().len(), 6);
    for server in inside {
        assert!(server.requests().is_empty(), "{:?}", server.requests());
    }
    let ends = outcome.lines.iter().filter_map(|line| line["peer"].as_str());
    let peers: Vec<IpAddr> =
        ends.map(|peer| peer.parse::<std::net::SocketAddr>().unwrap().ip()).collect();
    assert_eq!(peers, [IpAddr::from(PUBLIC); 6]);
    for line in [
        "proxy rebind.test:80 refused address",
        "transparent rebind.test:80 refused address",
        "proxy mixed.test:80 refused address",
    ] {
        outcome.assert_recorded(line);
    }
    let details: Vec<_> = outcome.lines.iter().filter_map(|line| line["detail"].as_str()).collect();
    for class in ["loopback", "private", "link-local"] {
        let is_told = details.iter().any(|detail| detail.contains(class));
        assert!(is_told, "{class}: {details:?}");
    }
    host.assert_clean();
}
