//! What no listener is there for is refused by the kernel and recorded all the same.

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
fn what_listeners_answer_is_not_recorded_as_a_packet() {
    let guest = Guest::new("allow = [{ host = \"web.example\" }]");
    guest.run(&["getent", "ahostsv4", "web.example"]);
    guest.within(|| {
        TcpStream::connect("172.31.0.1:3128").unwrap();
        TcpStream::connect("1.1.1.1:443").unwrap();
        TcpStream::connect("1.1.1.1:1").unwrap_err();
    });
    wait_for(&guest, "1.1.1.1:1 closed-port");
    let packets: Vec<_> =
        guest.events().into_iter().filter(|event| event["via"] == "packet").collect();
    assert_eq!(packets.len(), 1, "{packets:?}");
}
