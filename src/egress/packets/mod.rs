//! Packets without a listener: a packet socket in the namespace sees the first packet of each TCP
//! connection, each UDP and ICMP packet and everything that is not IPv4, so that what the kernel
//! itself refuses is recorded, too. It only observes: nothing here forwards or replies.

pub(super) mod filter;
mod parse;
pub(super) mod socket;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use tokio::time::{Duration, interval};

use super::listeners::{DNS_PORT, PROXY_PORT};
use super::record::{Subject, Via};
use super::state::GateState;
use super::verdict::{RefusalCause, Verdict};
use filter::WATCH_FILTER;
use parse::{Packet, PacketKind};
use socket::PacketSocket;

/// Interval for reading the number of packets that the kernel dropped.
const LOSS_INTERVAL: Duration = Duration::from_secs(5);

/// The socket, and the ports whose connections are recorded by their listeners.
#[derive(Debug)]
pub(super) struct PacketWatch {
    socket: PacketSocket,
    listening: ListeningPorts,
}

/// Connections that a listener accepts and records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ListeningPorts {
    /// Ports that are accepted at any address; `None` is every port.
    pub(super) ports: Option<BTreeSet<u16>>,
    /// The address of the DNS stub and the forward proxy.
    pub(super) gateway: Ipv4Addr,
}

impl ListeningPorts {
    /// Returns whether connections to the port are accepted at any address.
    pub(super) fn accepts(&self, port: u16) -> bool {
        self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
    }

    /// Returns why a packet is dropped, or `None` if a listener replies to the `guest`.
    fn check(&self, packet: &Packet, guest: Ipv4Addr) -> Option<RefusalCause> {
        // The kernel drops most of these, and its replies do not reach the guest.
        let forged = packet.from.filter(|from| *from != guest).map(|_| RefusalCause::ForgedSource);
        let is_gateway = |port| {
            packet.to.is_some_and(|to| to.ip() == IpAddr::V4(self.gateway) && to.port() == port)
        };
        match packet.kind {
            PacketKind::Syn | PacketKind::Fragment | PacketKind::Segment(_) => {
                let port = packet.to.map_or(0, |to| to.port());
                let own = is_gateway(DNS_PORT) || is_gateway(PROXY_PORT);
                match packet.kind {
                    _ if !own && !self.accepts(port) => Some(RefusalCause::Closed),
                    // It starts no connection, so its listener does not see it.
                    PacketKind::Segment(_) => {
                        Some(RefusalCause::Protocol("a TCP segment without a connection"))
                    }
                    _ if !own && packet.is_fragment => {
                        Some(RefusalCause::Protocol("a connection that begins in fragments"))
                    }
                    _ => forged,
                }
            }
            PacketKind::Udp if is_gateway(DNS_PORT) => forged,
            PacketKind::Udp => Some(RefusalCause::Protocol("UDP")),
            PacketKind::Icmp => Some(RefusalCause::Protocol("ICMP")),
            PacketKind::Ip(_) => Some(RefusalCause::Protocol("an IP protocol other than TCP")),
            PacketKind::Ipv6 => Some(RefusalCause::Protocol("IPv6")),
            PacketKind::Ethernet(_) => Some(RefusalCause::Protocol("a protocol other than IP")),
        }
    }
}

impl PacketWatch {
    /// Creates the socket in the network namespace of the calling thread.
    pub(super) fn new(listening: ListeningPorts) -> io::Result<Self> {
        Ok(Self { socket: PacketSocket::new(&WATCH_FILTER)?, listening })
    }
}

/// Describes a packet without its link header, with its destination, as in the record. Returns
/// `None` for packets that any host sends by itself. Entry point for fuzzing.
pub fn describe_packet(ether_type: u16, bytes: &[u8]) -> Option<String> {
    let Packet { kind, to, .. } = parse::read(ether_type, bytes)?;
    Some(to.map_or_else(|| kind.to_string(), |to| format!("{kind} {to}")))
}

/// Records packets until it is dropped.
pub(super) async fn serve(shared: Arc<GateState>, watch: PacketWatch) -> io::Result<()> {
    let PacketWatch { socket, listening } = watch;
    let packets = socket.into_reader()?;
    let guest = shared.recorder.guest();
    let mut losses = interval(LOSS_INTERVAL);
    let take = |ether_type, bytes: &[u8]| {
        if let Some(packet) = parse::read(ether_type, bytes)
            && let Some(cause) = listening.check(&packet, guest)
        {
            record(&shared, &packet, cause);
        }
    };
    loop {
        tokio::select! {
            _ = losses.tick() => shared.recorder.count_unrecorded(packets.take_dropped()?),
            batch = packets.read_batch(take) => batch?,
        }
    }
}

fn record(shared: &GateState, packet: &Packet, cause: RefusalCause) {
    let subject = Subject {
        via: Via::Packet,
        host: packet.to.map_or_else(String::new, |to| to.ip().to_string()),
        port: packet.to.map_or(0, |to| to.port()),
        original: packet.to,
        method: packet.kind.to_string(),
        url: None,
    };
    shared.recorder.record_verdict(subject, &Verdict::Refused(cause), None);
}

#[cfg(test)]
mod tests {
    use super::filter::SNAP_LENGTH;
    use super::filter::tests::{FilterInput, segment};
    use super::*;

    fn passes(ether_type: u16, bytes: &[u8]) -> bool {
        FilterInput::from_guest(ether_type, bytes).passes(&WATCH_FILTER)
    }

    #[test]
    fn probes_of_closed_ports_are_recorded_with_their_kind() {
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
                // As in any open connection.
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
                    let length = bytes.len().min(SNAP_LENGTH as usize);
                    let packet = parse::read(0x0800, &bytes[..length]).unwrap();
                    assert_eq!(packet.to.map(|to| to.port()), Some(22), "{name}");
                    let ports = Some([443].into());
                    let listening = ListeningPorts { ports, gateway: Ipv4Addr::new(172, 31, 0, 1) };
                    assert_eq!(
                        listening.check(&packet, GUEST),
                        Some(RefusalCause::Closed),
                        "{name}"
                    );
                    packet.kind.to_string()
                });
                assert_eq!(seen.as_deref(), kind, "{name}, {options} bytes of options");
            }
        }
    }

    #[test]
    fn a_fragment_with_only_the_ports_is_recorded() {
        let whole = segment(0x02, 0, [0x20, 0]);
        let bytes = &whole[..28];
        assert!(passes(0x0800, bytes));
        let packet = parse::read(0x0800, bytes).unwrap();
        assert_eq!((packet.kind, packet.to.unwrap().port()), (PacketKind::Fragment, 22));
    }

    #[test]
    fn everything_except_tcp_over_ipv4_and_arp_is_captured() {
        let udp = [&segment(0, 0, [0, 0])[..9], &[17], &segment(0, 0, [0, 0])[10..]].concat();
        for (ether_type, seen) in [(0x0800, true), (0x86dd, true), (0x8100, true), (0x0806, false)]
        {
            assert_eq!(passes(ether_type, &udp), seen, "{ether_type:#x}");
        }
    }

    const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);

    fn check(ports: Option<&[u16]>, kind: PacketKind, to: &str) -> Option<RefusalCause> {
        let listening = ListeningPorts {
            ports: ports.map(|ports| ports.iter().copied().collect()),
            gateway: Ipv4Addr::new(172, 31, 0, 1),
        };
        let (from, to, is_fragment) = (Some(GUEST), to.parse().ok(), kind == PacketKind::Fragment);
        listening.check(&Packet { kind, from, to, is_fragment }, GUEST)
    }

    #[test]
    fn a_forged_source_is_recorded_even_where_a_listener_exists() {
        let listening = ListeningPorts { ports: None, gateway: Ipv4Addr::new(172, 31, 0, 1) };
        let from = Some(Ipv4Addr::new(172, 31, 0, 9));
        for (kind, to) in [(PacketKind::Syn, "1.1.1.1:80"), (PacketKind::Udp, "172.31.0.1:53")] {
            let packet = Packet { kind, from, to: to.parse().ok(), is_fragment: false };
            assert_eq!(listening.check(&packet, GUEST), Some(RefusalCause::ForgedSource), "{kind}");
            assert_eq!(listening.check(&Packet { from: Some(GUEST), ..packet }, GUEST), None);
        }
    }

    #[test]
    fn only_packets_without_a_listener_are_recorded() {
        let web = Some(&[80, 443][..]);
        for (ports, kind, to, cause) in [
            (web, PacketKind::Syn, "1.1.1.1:443", None),
            (web, PacketKind::Syn, "1.1.1.1:22", Some(RefusalCause::Closed)),
            (web, PacketKind::Syn, "172.31.0.1:3128", None),
            (web, PacketKind::Syn, "172.31.0.1:53", None),
            (web, PacketKind::Syn, "1.1.1.1:53", Some(RefusalCause::Closed)),
            (web, PacketKind::Udp, "172.31.0.1:53", None),
            (web, PacketKind::Udp, "1.1.1.1:53", Some(RefusalCause::Protocol("UDP"))),
            (web, PacketKind::Udp, "172.31.0.1:443", Some(RefusalCause::Protocol("UDP"))),
            (web, PacketKind::Icmp, "172.31.0.1:0", Some(RefusalCause::Protocol("ICMP"))),
            (None, PacketKind::Syn, "1.1.1.1:22", None),
            (web, PacketKind::Fragment, "1.1.1.1:22", Some(RefusalCause::Closed)),
            (
                web,
                PacketKind::Fragment,
                "1.1.1.1:443",
                Some(RefusalCause::Protocol("a connection that begins in fragments")),
            ),
            (web, PacketKind::Fragment, "172.31.0.1:3128", None),
            (web, PacketKind::Segment(0), "1.1.1.1:22", Some(RefusalCause::Closed)),
            (web, PacketKind::Segment(0x29), "172.31.0.1:22", Some(RefusalCause::Closed)),
            (
                web,
                PacketKind::Segment(0x03),
                "1.1.1.1:443",
                Some(RefusalCause::Protocol("a TCP segment without a connection")),
            ),
            (None, PacketKind::Udp, "1.1.1.1:22", Some(RefusalCause::Protocol("UDP"))),
            (
                None,
                PacketKind::Ethernet(0x88cc),
                "",
                Some(RefusalCause::Protocol("a protocol other than IP")),
            ),
        ] {
            assert_eq!(check(ports, kind, to), cause, "{kind} {to}");
        }
    }
}
