//! The result of a guest's connection attempt is its destination's: accepted, refused, or no
//! answer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mayfly_egress::GateLimits;
use socket2::{Domain, SockFilter, Socket, Type};

use crate::support::{Echo, Guest, Options, WebServer};

/// A listener that drops SYNs until it is opened.
struct BlackHole {
    socket: Socket,
    address: SocketAddr,
}

impl BlackHole {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        // Returns no byte of any packet.
        socket.attach_filter(&[SockFilter::new(0x06, 0, 0, 0)]).unwrap();
        socket.listen(64).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { socket, address }
    }

    /// Accepts SYNs from now on. Returns the listener.
    fn open(self) -> TcpListener {
        self.socket.detach_filter().unwrap();
        self.socket.into()
    }
}

/// Returns a loopback port without a listener.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Runs Python's `connect_ex`. Returns the error name of a connection to a name, and its duration.
fn connect(guest: &Guest, name: &str, port: u16, timeout: u32) -> (String, Duration) {
    let script = format!(
        "import socket, errno\n\
         s = socket.socket()\n\
         s.settimeout({timeout})\n\
         e = s.connect_ex((socket.gethostbyname('{name}'), {port}))\n\
         print(errno.errorcode.get(e, e))"
    );
    let before = Instant::now();
    let output = guest.run(&["python3", "-c", &script]);
    assert!(output.status.success(), "{output:?}");
    (String::from_utf8_lossy(&output.stdout).trim().to_owned(), before.elapsed())
}

/// A Python program that sends raw TCP segments: source port, destination port, flags.
const SEGMENTS: &str = "import socket, struct, sys, time\n\
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n\
    source, to = (socket.inet_aton(a) for a in ('172.31.0.2', sys.argv[1]))\n\
    def checksum(data):\n    \
        total = sum(struct.unpack('!%dH' % (len(data) // 2), data))\n    \
        total = (total >> 16) + (total & 0xffff)\n    \
        return ~(total + (total >> 16)) & 0xffff\n\
    def send(port, to_port, flags, fragment=0):\n    \
        tcp = struct.pack('!HHIIBBHHH', port, to_port, 1, 0, 0x50, flags, 1024, 0, 0)\n    \
        pseudo = source + to + struct.pack('!BBH', 0, 6, 20)\n    \
        tcp = tcp[:16] + struct.pack('!H', checksum(pseudo + tcp)) + tcp[18:]\n    \
        parts = [(tcp, 0)] if not fragment else [(tcp[:16], 0x2000), (tcp[16:], 2)]\n    \
        for part, at in parts:\n        \
            head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(part), 7, at, 64, 6, 0, source, to)\n        \
            try: s.sendto(head + part, (sys.argv[1], 0))\n        \
            except OSError: time.sleep(0.001)\n";

fn send(guest: &Guest, name: &str, script: &str) {
    let address = guest.lookup(name).to_string();
    let output = guest.run(&["python3", "-c", &format!("{SEGMENTS}{script}"), &address]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_closed_port_is_refused_as_its_host_refuses_it() {
    let address = closed();
    for mode in ["enforce", "audit", "open"] {
        let guest = Guest::new(&format!(
            "mode = {mode:?}\n\
             allow = [{{ host = \"db.example\", ports = [80, 443, 5432] }}]\n\
             resolve = {{ \"db.example\" = \"{address}\" }}"
        ));
        for port in [80, 443, 5432] {
            let (error, took) = connect(&guest, "db.example", port, 15);
            assert_eq!(error, "ECONNREFUSED", "{port} in {mode}");
            assert!(took < Duration::from_secs(10), "{port} in {mode}: {took:?}");
        }
        let error = guest.curl(&["https://db.example/"]).unwrap_err();
        assert!(error.contains("onnect"), "{error}");
        guest.expect_refusals(&[
            "db.example:443 connect",
            "db.example:5432 connect",
            "db.example:80 connect",
        ]);
    }
}

#[test]
fn what_the_policy_refuses_is_refused_before_it_is_connected_to() {
    let guest = Guest::new("mode = \"open\"\ndeny = [{ host = \"no.example\", ports = [443] }]");
    guest.within(|| {
        for to in ["10.0.0.1:22", "169.254.169.254:443", "198.18.77.77:443"] {
            let error = TcpStream::connect(to.parse::<SocketAddr>().unwrap()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        }
    });
    guest.expect_refusals(&[
        "10.0.0.1:22 address",
        "169.254.169.254:443 address",
        "198.18.77.77:443 unknown-synthetic",
    ]);
}

#[test]
fn a_loop_that_waits_for_a_port_succeeds_once_it_is_open() {
    let address = closed();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"db.example\", ports = [5432] }}]\n\
         resolve = {{ \"db.example\" = \"{address}\" }}"
    ));
    let started = Mutex::new(None);
    std::thread::scope(|scope| {
        let loops = scope.spawn(|| {
            let until = "until (exec 3<>/dev/tcp/db.example/5432) 2>/dev/null; do \
                         echo waits; sleep 0.1; done; exec 3<>/dev/tcp/db.example/5432; cat <&3";
            let output = guest.run(&["bash", "-c", until]);
            (output, Instant::now())
        });
        std::thread::sleep(Duration::from_secs(3));
        *started.lock().unwrap() = Some(Instant::now());
        let server = TcpListener::bind(address).unwrap();
        // One connection from the loop's check, and one that uses the port.
        for _ in 0..2 {
            let (mut stream, _) = server.accept().unwrap();
            _ = stream.write_all(b"ready\n");
        }
        let (output, ended) = loops.join().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert!(stdout.starts_with("waits\n") && stdout.ends_with("ready\n"), "{output:?}");
        assert!(started.lock().unwrap().is_some_and(|started| ended > started));
    });
}

#[test]
fn an_unresponsive_destination_becomes_unreachable() {
    let hole = BlackHole::new();
    let guest = Guest::with(
        &format!(
            "allow = [{{ host = \"hole.example\", ports = [80, 443, 22] }}, {{ host = \"lost.example\" }}]\n\
             resolve = {{ \"hole.example\" = \"{}\" }}",
            hole.address
        ),
        Options {
            limits: GateLimits { dial: Duration::from_secs(2), ..GateLimits::default() },
            ..Options::default()
        },
    );
    for port in [80, 443, 22] {
        let (error, took) = connect(&guest, "hole.example", port, 15);
        assert_eq!(error, "EHOSTUNREACH", "{port}");
        assert!(took > Duration::from_secs(1), "{port}: {took:?}");
    }
    // The resolver does not know this name.
    assert_eq!(connect(&guest, "lost.example", 443, 15).0, "EHOSTUNREACH");
    guest.expect_refusals(&[
        "hole.example:22 connect-deadline",
        "hole.example:443 connect-deadline",
        "hole.example:80 connect-deadline",
        "lost.example:443 resolve",
    ]);
}

#[test]
fn a_retransmitted_syn_dials_once() {
    let hole = BlackHole::new();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"slow.example\", ports = [5432] }}]\n\
         resolve = {{ \"slow.example\" = \"{}\" }}",
        hole.address
    ));
    send(
        &guest,
        "slow.example",
        "for number in range(20):\n    send(4000, 5432, 2)\n    time.sleep(0.01)\n",
    );
    let server = hole.open();
    // The client's first SYN was lost; it sends another after a second.
    let (mut stream, _) = server.accept().unwrap();
    // The guest has no socket on this port: its stack resets the connection, which closes the
    // destination's.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    server.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    assert!(server.accept().is_err(), "it was dialed twice");
    guest.wait_for_access(" 172.31.0.2 TCP_TUNNEL");
    guest.wait_for("the end", |guest| {
        guest
            .events()
            .iter()
            .any(|event| event.to_string().contains("before it sent"))
            .then_some(())
    });
}

#[test]
fn a_reset_by_the_guest_is_recorded() {
    let hole = BlackHole::new();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"hole.example\", ports = [5432] }}]\n\
         resolve = {{ \"hole.example\" = \"{}\" }}",
        hole.address
    ));
    send(
        &guest,
        "hole.example",
        "send(4000, 5432, 2)\ntime.sleep(0.2)\nsend(4000, 5432, 4)\nsend(4001, 5432, 4)\n",
    );
    guest.expect_refusals(&["hole.example:5432 client-gone"]);
}

#[test]
fn a_late_destination_is_disconnected() {
    let hole = BlackHole::new();
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"late.example\", ports = [5432] }}]\n\
         resolve = {{ \"late.example\" = \"{}\" }}",
        hole.address
    ));
    let script = "import socket\n\
        s = socket.socket()\n\
        s.settimeout(0.3)\n\
        try: s.connect(('late.example', 5432))\n\
        except TimeoutError: print('gave up')";
    let output = guest.run(&["python3", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "gave up\n", "{output:?}");
    let server = hole.open();
    let (mut late, _) = server.accept().unwrap();
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(late.read(&mut [0; 1]).unwrap_or(0), 0);
    // The next connection succeeds.
    let (error, _) = connect(&guest, "late.example", 5432, 15);
    assert_eq!(error, "0");
}

#[test]
fn a_flood_of_connections_leaves_room_for_others() {
    let hole = BlackHole::new();
    let web = WebServer::new("hello");
    let guest = Guest::with(
        &format!(
            "mode = \"open\"\n\
             resolve = {{ \"hole.example\" = \"{}\", \"web.example\" = \"{}\" }}",
            hole.address, web.address
        ),
        Options {
            limits: GateLimits { dial: Duration::from_secs(5), ..GateLimits::default() },
            ..Options::default()
        },
    );
    let flood = "for port in range(1, 10001):\n    send(4000, port, 2)\n";
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| send(&guest, "hole.example", flood));
        for _ in 0..5 {
            assert_eq!(guest.curl(&["http://web.example:8080/"]).unwrap(), "hello 200");
        }
        flood.join().unwrap();
        // The pending connections are still pending.
        assert_eq!(guest.curl(&["http://web.example/"]).unwrap(), "hello 200");
        let proxied = guest.curl(&["-x", "http://172.31.0.1:3128", "http://web.example/"]);
        assert_eq!(proxied.unwrap(), "hello 200");
    });
    guest.wait_for("too many connections", |guest| {
        let report = guest.report();
        let full = report.rows.iter().any(|row| {
            row.host == "hole.example" && row.cause.as_deref() == Some("too-many-connections")
        });
        full.then_some(())
    });
}

#[test]
fn many_simultaneous_connections_all_arrive() {
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let server = Echo::new(move |mut stream| {
        count.fetch_add(1, Ordering::Relaxed);
        _ = stream.write_all(b"hello");
    });
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"many.example\", ports = [5432] }}]\n\
         resolve = {{ \"many.example\" = \"{}\" }}",
        server.address
    ));
    let address = SocketAddr::new(guest.lookup("many.example"), 5432);
    guest.within(|| {
        std::thread::scope(|scope| {
            for _ in 0..300 {
                scope.spawn(move || {
                    let mut stream = TcpStream::connect(address).unwrap();
                    let mut text = String::new();
                    stream.read_to_string(&mut text).unwrap();
                    assert_eq!(text, "hello");
                });
            }
        });
    });
    assert_eq!(answered.load(Ordering::Relaxed), 300);
}

#[test]
fn a_connection_that_begins_in_fragments_is_recorded_without_a_reply() {
    let server = Echo::new(drop);
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\", ports = [99] }}]\n\
         resolve = {{ \"web.example\" = \"{}\" }}",
        server.address
    ));
    send(&guest, "web.example", "send(4000, 99, 2, True)\n");
    guest.wait_for("the fragment", |guest| {
        let found = guest.events().iter().any(|event| {
            event["via"] == "packet" && event.to_string().contains("begins in fragments")
        });
        found.then_some(())
    });
}
