//! Packets without a listener are refused by the kernel and recorded.

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::support::Guest;

fn wait_for(guest: &Guest, refusal: &str) {
    guest.wait_for_refusal(0, refusal, "a packet");
}

#[test]
fn a_connection_to_a_port_that_no_rule_names_is_refused_at_once_and_recorded() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    guest.within(|| {
        for to in ["1.1.1.1:22", "169.254.169.254:8080", "172.31.0.1:22", "8.8.8.8:853"] {
            let error = TcpStream::connect(to.parse::<SocketAddr>().unwrap()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to}");
        }
    });
    wait_for(&guest, "1.1.1.1:22 closed-port");
    wait_for(&guest, "169.254.169.254:8080 closed-port");
    wait_for(&guest, "172.31.0.1:22 closed-port");
    wait_for(&guest, "8.8.8.8:853 closed-port");
    guest.wait_for_access(" TCP_DENIED/000 0 SYN 1.1.1.1:22 - ");
}

#[test]
fn datagrams_are_refused_and_recorded_whatever_the_policy() {
    for mode in ["enforce", "audit", "open", "none"] {
        let guest = Guest::new(&format!("mode = {mode:?}"));
        guest.within(|| {
            for to in ["8.8.8.8:53", "1.1.1.1:443", "172.31.0.1:123"] {
                let socket = UdpSocket::bind("172.31.0.2:0").unwrap();
                socket.connect(to).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
                socket.send(b"x").unwrap();
                let error = socket.recv(&mut [0; 10]).unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{to} in {mode}");
            }
        });
        wait_for(&guest, "8.8.8.8:53 protocol");
        wait_for(&guest, "1.1.1.1:443 protocol");
        wait_for(&guest, "172.31.0.1:123 protocol");
    }
}

#[test]
fn pings_are_recorded() {
    let guest = Guest::new("mode = \"open\"");
    let script = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n\
        s.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]), ('9.9.9.9', 0))";
    let output = guest.run(&["python3", "-c", script]);
    assert!(output.status.success(), "{output:?}");
    wait_for(&guest, "9.9.9.9:0 protocol");
}

#[test]
fn connections_with_a_listener_are_not_recorded_as_packets() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    guest.run(&["getent", "ahostsv4", "web.example"]);
    guest.within(|| {
        TcpStream::connect("172.31.0.1:3128").unwrap();
        // Refused, and recorded by the code that decides it.
        TcpStream::connect("1.1.1.1:443").unwrap_err();
        TcpStream::connect("1.1.1.1:1").unwrap_err();
    });
    wait_for(&guest, "1.1.1.1:1 closed-port");
    let packets: Vec<_> =
        guest.events().into_iter().filter(|event| event["via"] == "packet").collect();
    assert_eq!(packets.len(), 1, "{packets:?}");
}

#[test]
fn probes_of_closed_ports_are_recorded_by_their_flags() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    // Sends TCP segments with these flags, unfragmented or split after the ports.
    let script = "import socket, struct, sys\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n\
        source, to = (socket.inet_aton(a) for a in ('172.31.0.2', '9.9.9.9'))\n\
        def checksum(data):\n    \
            total = sum(struct.unpack('!%dH' % (len(data) // 2), data))\n    \
            total = (total >> 16) + (total & 0xffff)\n    \
            return ~(total + (total >> 16)) & 0xffff\n\
        def send(part, fragment):\n    \
            head = struct.pack('!BBHHHBBH4s4s', 0x45, 0, 20 + len(part), 7, fragment, 64, 6, 0, source, to)\n    \
            s.sendto(head + part, ('9.9.9.9', 0))\n\
        for port, flags in enumerate([0x00, 0x01, 0x29, 0x03, 0x12, 0x02], 1001):\n    \
            tcp = struct.pack('!HHIIBBHHH', 4000, port, 1, 0, 0x50, flags, 1024, 0, 0)\n    \
            pseudo = source + to + struct.pack('!BBH', 0, 6, 20)\n    \
            tcp = tcp[:16] + struct.pack('!H', checksum(pseudo + tcp)) + tcp[18:]\n    \
            if flags == 0x02:\n        \
                send(tcp[:8], 0x2000)\n        \
                send(tcp[8:], 1)\n    \
            else:\n        \
                send(tcp, 0)\n";
    let output = guest.run(&["python3", "-c", script]);
    assert!(output.status.success(), "{output:?}");
    for (port, kind) in [
        (1001, "TCP-NULL"),
        (1002, "TCP-FIN"),
        (1003, "TCP-FIN+PSH+URG"),
        (1004, "TCP-FIN+SYN"),
        (1005, "TCP-SYN+ACK"),
        (1006, "TCP-FRAGMENT"),
    ] {
        guest.wait_for_access(&format!(" TCP_DENIED/000 0 {kind} 9.9.9.9:{port} - "));
    }
}

#[test]
fn a_flood_of_packets_does_not_block_the_shutdown() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    let script = "import socket, time\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        end = time.monotonic() + 5\n\
        while time.monotonic() < end:\n    \
            try: s.sendto(b'x', ('9.9.9.9', 9))\n    \
            except OSError: pass\n";
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| guest.run(&["python3", "-c", script]));
        wait_for(&guest, "9.9.9.9:9 protocol");
        // Other tasks run meanwhile.
        let before = std::time::Instant::now();
        let error = guest.within(|| TcpStream::connect("1.1.1.1:22").unwrap_err());
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
        assert_ne!(guest.lookup("web.example").to_string(), "");
        assert!(before.elapsed() < Duration::from_secs(5));
        assert!(flood.join().unwrap().status.success());
    });
    let row = guest.report().rows.into_iter().find(|row| row.host == "9.9.9.9").unwrap();
    assert!(row.connections > 0);
}
