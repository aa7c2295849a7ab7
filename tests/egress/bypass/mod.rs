//! The bypass table: known ways around egress controls, tried as root in a guest's namespace. Each
//! must be refused and recorded.

mod rows;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use mayfly_egress::GateLimits;

use crate::support::{FakeResolver, Guest, Options, WebServer};

const PROXY: &str = "172.31.0.1:3128";

/// The attempt of a row.
enum Attempt {
    /// Connects to an address and sends these bytes; no destination may respond.
    Tcp(&'static str, Vec<u8>),
    /// Connects to the synthetic address of a name and sends these bytes.
    Name(&'static str, u16, Vec<u8>),
    /// Sends these bytes to the forward proxy.
    Proxy(Vec<u8>),
    /// Sends a datagram.
    Udp(&'static str, Vec<u8>),
    /// Queries the DNS stub for this type of this name.
    Dns(&'static [u8], u16),
    /// Sends these bytes after an IP header of this protocol.
    Raw(&'static str, i32, Vec<u8>),
    /// Sends a complete frame with this `EtherType`.
    Frame(u16, Vec<u8>),
}

/// The modes in which a row must be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Modes {
    Both,
    Enforce,
}

/// A row: its name, its modes, its attempt, and the recorded refusal.
type Row = (&'static str, Modes, Attempt, &'static str);

fn run_attempt(guest: &Guest, what: &str, row: &Attempt) {
    match row {
        Attempt::Tcp(to, bytes) => guest.within(|| exchange(to.parse().unwrap(), bytes, what)),
        Attempt::Proxy(bytes) => guest.within(|| exchange(PROXY.parse().unwrap(), bytes, what)),
        Attempt::Name(name, port, bytes) => {
            let address = guest.lookup(name);
            guest.within(|| exchange(SocketAddr::new(address, *port), bytes, what));
        }
        Attempt::Udp(to, bytes) => guest.within(|| {
            let socket = UdpSocket::bind("172.31.0.2:0").unwrap();
            socket.send_to(bytes, to).unwrap();
        }),
        Attempt::Dns(name, kind) => guest.within(|| {
            let socket = UdpSocket::bind("172.31.0.2:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            let mut query = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0".to_vec();
            query.extend(*name);
            query.extend(kind.to_be_bytes());
            query.extend([0, 1]);
            socket.send_to(&query, "172.31.0.1:53").unwrap();
            let mut answer = [0; 512];
            socket.recv(&mut answer).unwrap();
            assert_eq!(answer[6..8], [0, 0], "{what}: an answer");
        }),
        Attempt::Raw(to, protocol, payload) => {
            let script = format!(
                "import socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_RAW, {protocol})\n\
                 s.sendto(bytes({payload:?}), ('{to}', 0))"
            );
            assert!(guest.run(&["python3", "-c", &script]).status.success(), "{what}");
        }
        Attempt::Frame(ether_type, payload) => {
            let script = format!(
                "import socket\n\
                 s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
                 s.bind(('eth0', 0))\n\
                 s.send(b'\\xff' * 6 + b'\\x02\\0\\0\\0\\0\\x09' + bytes([{}, {}]) + bytes({payload:?}))",
                ether_type >> 8,
                ether_type & 0xff
            );
            assert!(guest.run(&["python3", "-c", &script]).status.success(), "{what}");
        }
    }
}

/// Sends bytes and reads the response, which must not be a destination's.
fn exchange(to: SocketAddr, bytes: &[u8], what: &str) {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(10)) else { return };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    _ = stream.write_all(bytes);
    let mut received = Vec::new();
    if let Err(error) = stream.read_to_end(&mut received) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
    }
    let received = String::from_utf8_lossy(&received);
    assert!(!received.contains("canary") && !received.contains(" 200 "), "{what}: {received}");
}

fn names() -> FakeResolver {
    let address = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    FakeResolver(Mutex::new(vec![
        ("loopback.example", address(&["127.0.0.1"])),
        ("metadata.example", address(&["169.254.169.254"])),
        ("private.example", address(&["10.1.2.3"])),
        ("host.example", address(&["192.0.32.9"])),
        ("mixed.example", address(&["192.0.32.8", "127.0.0.1"])),
    ]))
}

fn run_table(mode: &str, rows: &[Row]) {
    let canary = WebServer::new("canary");
    let policy = format!(
        "mode = {mode:?}\nallow = [{{ host = \"*.example\" }}]\n\
         resolve = {{ \"web.example\" = \"{}\" }}",
        canary.address
    );
    let options = Options {
        names: names(),
        host: vec![IpAddr::from([192, 0, 32, 9])],
        limits: GateLimits { opening: Duration::from_millis(500), ..GateLimits::default() },
    };
    let guest = Guest::with(&policy, options);
    for (what, modes, row, refusal) in rows {
        if *modes == Modes::Enforce && mode != "enforce" {
            continue;
        }
        let before = guest.events().len();
        run_attempt(&guest, what, row);
        guest.wait_for_refusal(before, refusal, what);
    }
    assert!(canary.requests().is_empty(), "{:?}", canary.requests());
}

#[test]
fn no_row_gets_out_in_enforce_mode() {
    let rows = rows::table();
    assert!(rows.len() >= 100, "{} rows", rows.len());
    run_table("enforce", &rows);
}

#[test]
fn no_absolute_row_gets_out_in_open_mode() {
    run_table("open", &rows::table());
}

#[test]
fn a_name_at_a_forbidden_address_is_refused_every_time() {
    let options = Options { names: names(), ..Options::default() };
    let guest = Guest::with("allow = [{ host = \"*.example\" }]", options);
    for _ in 0..2 {
        let answer = guest.curl(&["-x", "http://172.31.0.1:3128", "http://loopback.example/"]);
        assert!(answer.unwrap().ends_with(" 403"));
    }
}
