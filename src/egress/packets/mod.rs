//! Packets that no listener is there for: a packet socket in the namespace sees each first packet
//! of a TCP connection, each UDP and ICMP packet and all that isn't IPv4, so that what the kernel
//! refuses by itself is in the record, too. It only watches: nothing here forwards or answers.

pub(super) mod filter;
mod parse;
pub(super) mod socket;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tokio::time::{Duration, interval};

use super::listen::{DNS_PORT, PROXY_PORT};
use super::record::{Subject, Via};
use super::shared::Shared;
use super::verdict::{Cause, Verdict};
use filter::WATCH;
use parse::{Kind, Packet};
use socket::PacketSocket;

/// How often it is asked how many packets the kernel had no room for.
const LOSS_INTERVAL: Duration = Duration::from_secs(5);

/// The socket, and what need not be recorded because a listener is there for it.
#[derive(Debug)]
pub(super) struct Watch {
    socket: PacketSocket,
    listening: Listening,
}

/// Which connections are accepted, and so recorded elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listening {
    /// Ports accepted at any address; `None` is every port.
    pub(super) ports: Option<BTreeSet<u16>>,
    /// The address of the DNS stub and the forward proxy.
    pub(super) gateway: Ipv4Addr,
}

impl Listening {
    /// Whether connections to the port are accepted at any address.
    pub(super) fn accepts(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Why a packet goes no further; `None` where a listener answers the `guest`.
    fn judge(&self, packet: &Packet, guest: Ipv4Addr) -> Option<Cause> {
        // The kernel drops most of these, and what it answers goes to nobody.
        let forged = packet.from.filter(|from| *from != guest).map(|_| Cause::ForgedSource);
        let is_gateway = |port| {
            packet.to.is_some_and(|to| to.ip() == IpAddr::V4(self.gateway) && to.port() == port)
        };
        match packet.kind {
            Kind::Syn | Kind::Fragment | Kind::Segment(_) => {
                let port = packet.to.map_or(0, |to| to.port());
                let own = is_gateway(DNS_PORT) || is_gateway(PROXY_PORT);
                match packet.kind {
                    _ if !own && !self.accepts(port) => Some(Cause::Closed),
                    // No connection comes of it, so that its listener sees nothing.
                    Kind::Segment(_) => Some(Cause::Protocol("a TCP segment of no connection")),
                    _ if !own && packet.is_fragment => {
                        Some(Cause::Protocol("a connection that begins in fragments"))
                    }
                    _ => forged,
                }
            }
            Kind::Udp if is_gateway(DNS_PORT) => forged,
            Kind::Udp => Some(Cause::Protocol("UDP")),
            Kind::Icmp => Some(Cause::Protocol("ICMP")),
            Kind::Ip(_) => Some(Cause::Protocol("IP other than TCP")),
            Kind::Ipv6 => Some(Cause::Protocol("IPv6")),
            Kind::Ethernet(_) => Some(Cause::Protocol("what is not IP")),
        }
    }
}

impl Watch {
    /// Makes the socket in the network namespace of the calling thread.
    pub(super) fn new(listening: Listening) -> io::Result<Self> {
        Ok(Self { socket: PacketSocket::new(&WATCH)?, listening })
    }
}

/// What a packet without its link header is an attempt at and where to, in the words of the record;
/// `None` for what any host sends by itself. What fuzzing calls.
pub fn attempt(ether_type: u16, bytes: &[u8]) -> Option<String> {
    let Packet { kind, to, .. } = parse::read(ether_type, bytes)?;
    Some(to.map_or_else(|| kind.to_string(), |to| format!("{kind} {to}")))
}

/// Records attempts until it is dropped.
pub(super) async fn serve(shared: Arc<Shared>, watch: Watch) -> io::Result<()> {
    let Watch { socket, listening } = watch;
    let packets = socket.begin()?;
    let guest = shared.recorder.guest();
    let mut losses = interval(LOSS_INTERVAL);
    let take = |ether_type, bytes: &[u8]| {
        if let Some(packet) = parse::read(ether_type, bytes)
            && let Some(cause) = listening.judge(&packet, guest)
        {
            record(&shared, &packet, cause);
        }
    };
    loop {
        tokio::select! {
            _ = losses.tick() => shared.recorder.missed(packets.lost()?),
            turn = packets.turn(take) => turn?,
        }
    }
}

fn record(shared: &Shared, packet: &Packet, cause: Cause) {
    let subject = Subject {
        via: Via::Packet,
        host: packet.to.map_or_else(String::new, |to| to.ip().to_string()),
        port: packet.to.map_or(0, |to| to.port()),
        original: packet.to,
        method: packet.kind.to_string(),
        url: None,
    };
    shared.recorder.verdict(subject, &Verdict::Refused(cause), None);
}

#[cfg(test)]
mod tests {
    use super::filter::LENGTH;
    use super::filter::tests::{Seen, segment};
    use super::*;

    fn passes(ether_type: u16, bytes: &[u8]) -> bool {
        Seen::of_guest(ether_type, bytes).passes(&WATCH)
    }

    #[test]
    fn every_probe_of_a_closed_port_is_recorded_with_its_kind() {
        const MORE: [u8; 2] = [0x20, 0];
        for options in [0, 4, 40] {
            for (name, flags, fragment, kind) in [
                ("SYN", 0x02, [0, 0], Some("SYN")),
                ("SYN with ECN", 0xc2, [0, 0], Some("SYN")),
                ("SYN with data pushed", 0x0a, [0, 0], Some("SYN")),
                ("SYN that may not be fragmented", 0x02, [0x40, 0], Some("SYN")),
                ("SYN, first of fragments", 0x02, MORE, Some("SYN")),
                ("NULL", 0x00, [0, 0], Some("TCP-NULL")),
                ("FIN", 0x01, [0, 0], Some("TCP-FIN")),
                ("XMAS", 0x29, [0, 0], Some("TCP-FIN+PSH+URG")),
                ("PSH", 0x08, [0, 0], Some("TCP-PSH")),
                ("URG", 0x20, [0, 0], Some("TCP-URG")),
                ("SYN and FIN", 0x03, [0, 0], Some("TCP-FIN+SYN")),
                ("SYN and RST", 0x06, [0, 0], Some("TCP-SYN+RST")),
                ("SYN and ACK", 0x12, [0, 0], Some("TCP-SYN+ACK")),
                ("all", 0x3f, [0, 0], Some("TCP-FIN+SYN+RST+PSH+ACK+URG")),
                ("NULL, first of fragments", 0x00, MORE, Some("TCP-NULL")),
                // As in any connection.
                ("ACK", 0x10, [0, 0], None),
                ("ACK with data pushed", 0x18, [0, 0], None),
                ("FIN and ACK", 0x11, [0, 0], None),
                ("RST", 0x04, [0, 0], None),
                ("RST and ACK", 0x14, [0, 0], None),
                ("a later fragment", 0x02, [0, 1], None),
                ("a later fragment, not the last", 0x02, [0x20, 3], None),
            ] {
                let bytes = segment(flags, options, fragment);
                let seen = passes(0x0800, &bytes).then(|| {
                    let length = bytes.len().min(LENGTH as usize);
                    let packet = parse::read(0x0800, &bytes[..length]).unwrap();
                    assert_eq!(packet.to.map(|to| to.port()), Some(22), "{name}");
                    let ports = Some([443].into());
                    let listening = Listening { ports, gateway: Ipv4Addr::new(172, 31, 0, 1) };
                    assert_eq!(listening.judge(&packet, GUEST), Some(Cause::Closed), "{name}");
                    packet.kind.to_string()
                });
                assert_eq!(seen.as_deref(), kind, "{name}, {options} bytes of options");
            }
        }
    }

    #[test]
    fn a_fragment_with_the_ports_alone_is_recorded() {
        let whole = segment(0x02, 0, [0x20, 0]);
        let bytes = &whole[..28];
        assert!(passes(0x0800, bytes));
        let packet = parse::read(0x0800, bytes).unwrap();
        assert_eq!((packet.kind, packet.to.unwrap().port()), (Kind::Fragment, 22));
    }

    #[test]
    fn what_is_not_tcp_on_ipv4_is_seen_but_for_arp() {
        let udp = [&segment(0, 0, [0, 0])[..9], &[17], &segment(0, 0, [0, 0])[10..]].concat();
        for (ether_type, seen) in [(0x0800, true), (0x86dd, true), (0x8100, true), (0x0806, false)]
        {
            assert_eq!(passes(ether_type, &udp), seen, "{ether_type:#x}");
        }
    }

    const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

    fn judge(ports: Option<&[u16]>, kind: Kind, to: &str) -> Option<Cause> {
        let listening = Listening {
            ports: ports.map(|ports| ports.iter().copied().collect()),
            gateway: Ipv4Addr::new(172, 31, 0, 1),
        };
        let (from, to, is_fragment) = (Some(GUEST), to.parse().ok(), kind == Kind::Fragment);
        listening.judge(&Packet { kind, from, to, is_fragment }, GUEST)
    }

    #[test]
    fn a_forged_source_is_recorded_where_a_listener_would_answer_the_guest() {
        let listening = Listening { ports: None, gateway: Ipv4Addr::new(172, 31, 0, 1) };
        let from = Some(Ipv4Addr::new(172, 31, 0, 9));
        for (kind, to) in [(Kind::Syn, "1.1.1.1:80"), (Kind::Udp, "172.31.0.1:53")] {
            let packet = Packet { kind, from, to: to.parse().ok(), is_fragment: false };
            assert_eq!(listening.judge(&packet, GUEST), Some(Cause::ForgedSource), "{kind}");
            assert_eq!(listening.judge(&Packet { from: Some(GUEST), ..packet }, GUEST), None);
        }
    }

    #[test]
    fn only_what_no_listener_answers_is_recorded() {
        let web = Some(&[80, 443][..]);
        for (ports, kind, to, cause) in [
            (web, Kind::Syn, "1.1.1.1:443", None),
            (web, Kind::Syn, "1.1.1.1:22", Some(Cause::Closed)),
            (web, Kind::Syn, "172.31.0.1:3128", None),
            (web, Kind::Syn, "172.31.0.1:53", None),
            (web, Kind::Syn, "1.1.1.1:53", Some(Cause::Closed)),
            (web, Kind::Udp, "172.31.0.1:53", None),
            (web, Kind::Udp, "1.1.1.1:53", Some(Cause::Protocol("UDP"))),
            (web, Kind::Udp, "172.31.0.1:443", Some(Cause::Protocol("UDP"))),
            (web, Kind::Icmp, "172.31.0.1:0", Some(Cause::Protocol("ICMP"))),
            (None, Kind::Syn, "1.1.1.1:22", None),
            (web, Kind::Fragment, "1.1.1.1:22", Some(Cause::Closed)),
            (
                web,
                Kind::Fragment,
                "1.1.1.1:443",
                Some(Cause::Protocol("a connection that begins in fragments")),
            ),
            (web, Kind::Fragment, "172.31.0.1:3128", None),
            (web, Kind::Segment(0), "1.1.1.1:22", Some(Cause::Closed)),
            (web, Kind::Segment(0x29), "172.31.0.1:22", Some(Cause::Closed)),
            (
                web,
                Kind::Segment(0x03),
                "1.1.1.1:443",
                Some(Cause::Protocol("a TCP segment of no connection")),
            ),
            (None, Kind::Udp, "1.1.1.1:22", Some(Cause::Protocol("UDP"))),
            (None, Kind::Ethernet(0x88cc), "", Some(Cause::Protocol("what is not IP"))),
        ] {
            assert_eq!(judge(ports, kind, to), cause, "{kind} {to}");
        }
    }
}
