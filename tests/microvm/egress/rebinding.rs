//! DNS rebinding: an attacker's name server alternates a name between a public address and
//! forbidden addresses with each query of the host.

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

/// The addresses of `rebind.test`, in the order of queries.
const ADDRESSES: [Ipv4Addr; 6] = [PUBLIC, LOOPBACK, PUBLIC, PRIVATE, PUBLIC, METADATA];

/// Three kinds of connections to the name, four times each: every kind meets both kinds of
/// addresses.
const SCRIPT: &str = "
for round in 1 2 3 4; do
    probe $round-1 proxied -f http://rebind.test/
    probe $round-2 direct -f http://rebind.test/
    probe $round-3 proxied -f -p http://rebind.test/
done
probe mixed proxied -f http://mixed.test/
";

/// Moves this thread and its children to their own network: the addresses above are local there,
/// but not addresses of an interface, and names are resolved at loopback.
fn enter_own_network(directory: &Path) {
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

/// Starts a name server that runs as long as the test. Returns its number of queries for
/// `rebind.test`.
fn name_server() -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind((LOOPBACK, 53)).unwrap();
    let queries = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&queries);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let message = Message::from_vec(&buffer[..length]).unwrap();
            let query = message.queries[0].clone();
            let mut response = Message::response(message.metadata.id, message.metadata.op_code);
            response.metadata.recursion_available = true;
            let addresses = match (query.query_type(), query.name().to_ascii().as_str()) {
                (RecordType::A, "rebind.test.") => {
                    vec![ADDRESSES[counter.fetch_add(1, Ordering::Relaxed) % ADDRESSES.len()]]
                }
                (RecordType::A, "mixed.test.") => vec![PUBLIC, PRIVATE],
                _ => Vec::new(),
            };
            for address in addresses {
                let data = RData::A(A(address));
                response.add_answer(Record::from_rdata(query.name().clone(), 0, data));
            }
            response.add_query(query);
            socket.send_to(&response.to_vec().unwrap(), client).unwrap();
        }
    });
    queries
}

#[test]
fn the_checked_address_is_the_one_that_is_dialed() {
    let host = Host::new();
    enter_own_network(host.root());
    let queries = name_server();
    let public = WebServer::at(&format!("{PUBLIC}:80"), "from outside\n");
    let inside = [LOOPBACK, PRIVATE, METADATA]
        .map(|address| WebServer::at(&format!("{address}:80"), "must not be read\n"));
    let policy = "allow = [{ host = \"rebind.test\" }, { host = \"mixed.test\" }]";
    let outcome = Guest::new(&host, policy).run(SCRIPT);
    for (number, (name, probe)) in
        outcome.probes.iter().filter(|(name, _)| name.contains('-')).enumerate()
    {
        let address = ADDRESSES[number % ADDRESSES.len()];
        let (status, expected) = if address == PUBLIC { (0, "from outside") } else { (22, "403") };
        assert_eq!(probe.status, status, "{name} at {address}: {probe:?}");
        assert!(probe.output.contains(expected), "{name} at {address}: {probe:?}");
    }
    // A second lookup before the connection would have returned another address.
    assert_eq!(queries.load(Ordering::Relaxed), 12);
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
        let is_recorded = details.iter().any(|detail| detail.contains(class));
        assert!(is_recorded, "{class}: {details:?}");
    }
    host.assert_clean();
}
