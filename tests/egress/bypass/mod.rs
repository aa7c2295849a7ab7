//! The bypass table: ways out that others' controls were beaten by, tried from inside a guest's
//! namespace as root. Each must be refused and recorded.

mod rows;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Mutex;
use std::time::Duration;

use mayfly::egress::Limits;

use crate::support::{Guest, Names, Options, WebServer};

const PROXY: &str = "172.31.0.1:3128";

/// What a row does.
enum Try {
    /// Connects to an address, says this, and must hear nothing of a destination.
    Tcp(&'static str, Vec<u8>),
    /// Connects to the synthetic address of a name.
    Name(&'static str, u16, Vec<u8>),
    /// Says this to the forward proxy.
    Proxy(Vec<u8>),
    /// Sends a datagram.
    Udp(&'static str, Vec<u8>),
    /// Asks the DNS stub for this type of this name.
    Dns(&'static [u8], u16),
    /// Sends these bytes after an IP header of this protocol.
    Raw(&'static str, i32, Vec<u8>),
    /// Sends a whole frame with this `EtherType`.
    Frame(u16, Vec<u8>),
}

/// In which modes a row must be refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Both,
    Enforce,
}

/// A row: what it is, where it must be refused, what it does, and the refusal in the record.
type Row = (&'static str, In, Try, &'static str);

fn attempt(guest: &Guest, what: &str, row: &Try) {
    match row {
        Try::Tcp(to, says) => guest.within(|| talk(to.parse().unwrap(), says, what)),
        Try::Proxy(says) => guest.within(|| talk(PROXY.parse().unwrap(), says, what)),
        Try::Name(name, port, says) => {
            let address = guest.lookup(name);
            guest.within(|| talk(SocketAddr::new(address, *port), says, what));
        }
        Try::Udp(to, says) => guest.within(|| {
            let socket = UdpSocket::bind("172.31.0.2:0").unwrap();
            socket.send_to(says, to).unwrap();
        }),
        Try::Dns(name, kind) => guest.within(|| {
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
        Try::Raw(to, protocol, payload) => {
            let script = format!(
                "import socket\n\
                 s = socket.socket(socket.AF_INET, socket.SOCK_RAW, {protocol})\n\
                 s.sendto(bytes({payload:?}), ('{to}', 0))"
            );
            assert!(guest.run(&["python3", "-c", &script]).status.success(), "{what}");
        }
        Try::Frame(ether_type, payload) => {
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

/// Says something and hears what comes; nothing of it may be a destination's.
fn talk(to: SocketAddr, says: &[u8], what: &str) {
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(10)) else { return };
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    _ = stream.write_all(says);
    let mut heard = Vec::new();
    if let Err(error) = stream.read_to_end(&mut heard) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{what}");
    }
    let heard = String::from_utf8_lossy(&heard);
    assert!(!heard.contains("canary") && !heard.contains(" 200 "), "{what}: {heard}");
}

fn names() -> Names {
    let address = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    Names(Mutex::new(vec![
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
        limits: Limits { opening: Duration::from_millis(500), ..Limits::default() },
    };
    let guest = Guest::with(&policy, options);
    for (what, modes, row, refusal) in rows {
        if *modes == In::Enforce && mode != "enforce" {
            continue;
        }
        let before = guest.events().len();
        attempt(&guest, what, row);
        guest.wait_for_refusal(before, refusal, what);
    }
    assert!(canary.requests().is_empty(), "{:?}", canary.requests());
}

#[test]
fn no_row_of_the_table_gets_out_where_rules_are_enforced() {
    let rows = rows::table();
    assert!(rows.len() >= 100, "{} rows", rows.len());
    run_table("enforce", &rows);
}

#[test]
fn no_absolute_row_of_the_table_gets_out_where_anything_public_is_open() {
    run_table("open", &rows::table());
}

#[test]
fn a_name_that_is_rebound_between_two_connections_is_refused_the_second_time() {
    let options = Options { names: names(), ..Options::default() };
    let guest = Guest::with("allow = [{ host = \"*.example\" }]", options);
    for _ in 0..2 {
        let answer = guest.curl(&["-x", "http://172.31.0.1:3128", "http://loopback.example/"]);
        assert!(answer.unwrap().ends_with(" 403"));
    }
}
