//! Parses a guest's packet: its kind and destination, as a pure function of its bytes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `EtherType` of IPv4 (IEEE 802 numbers).
const IPV4: u16 = 0x0800;
/// `EtherType` of IPv6.
const IPV6: u16 = 0x86dd;

/// IP protocol numbers (IANA).
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// The header that precedes multicast listener reports.
const HOP_BY_HOP: u8 = 0;

/// Length of an IPv6 header, without those that may follow it.
const V6_HEADER: usize = 40;

/// The flags of a TCP segment, lowest bit first (RFC 9293, section 3.1). The two above them are for
/// congestion control and do not affect the kind.
const FLAGS: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// The kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PacketKind {
    /// The first packet of a TCP connection.
    Syn,
    /// A TCP segment that neither starts nor belongs to a connection, by its flags.
    Segment(u8),
    /// The first fragment of a TCP segment, too short for its flags.
    Fragment,
    Udp,
    Icmp,
    /// Another protocol over IP, by its number.
    Ip(u8),
    /// An IPv6 packet that hosts do not send by themselves.
    Ipv6,
    /// Not IP, by its `EtherType`.
    Ethernet(u16),
}

impl fmt::Display for PacketKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syn => formatter.write_str("SYN"),
            Self::Segment(flags) => {
                let set = |(bit, name): (usize, &&'static str)| {
                    (flags & (1 << bit) != 0).then_some(*name)
                };
                let names: Vec<_> = FLAGS.iter().enumerate().filter_map(set).collect();
                let names = if names.is_empty() { "NULL".to_owned() } else { names.join("+") };
                write!(formatter, "TCP-{names}")
            }
            Self::Fragment => formatter.write_str("TCP-FRAGMENT"),
            Self::Udp => formatter.write_str("UDP"),
            Self::Icmp => formatter.write_str("ICMP"),
            Self::Ip(number) => write!(formatter, "IP-{number}"),
            Self::Ipv6 => formatter.write_str("IPV6"),
            Self::Ethernet(kind) => write!(formatter, "ETHERNET-{kind:04x}"),
        }
    }
}

/// The relevant parts of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) kind: PacketKind,
    /// The claimed source; IPv4 only.
    pub(super) from: Option<Ipv4Addr>,
    /// The destination; port 0 if the protocol has none or it is cut off.
    pub(super) to: Option<SocketAddr>,
    /// Whether it is a fragment of an IPv4 packet.
    pub(super) is_fragment: bool,
}

/// Parses a packet without its link header. Returns `None` for packets that any host sends by
/// itself.
pub(super) fn read(ether_type: u16, bytes: &[u8]) -> Option<Packet> {
    match ether_type {
        IPV4 => Some(read_v4(bytes)),
        IPV6 => read_v6(bytes),
        other => Some(Packet {
            kind: PacketKind::Ethernet(other),
            from: None,
            to: None,
            is_fragment: false,
        }),
    }
}

fn read_v4(bytes: &[u8]) -> Packet {
    let header = bytes.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    let protocol = bytes.get(9).copied().unwrap_or_default();
    let kind = match protocol {
        TCP => segment(bytes.get(header + 13).copied()),
        UDP => PacketKind::Udp,
        ICMP => PacketKind::Icmp,
        other => PacketKind::Ip(other),
    };
    let address = |at: usize| {
        let octets = bytes.get(at..at + 4)?;
        Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]))
    };
    // A later fragment has no ports.
    let fragment = bytes.get(6..8).map_or(0, |field| u16::from_be_bytes([field[0], field[1]]));
    let (is_later, is_fragment) = (fragment & 0x1fff != 0, fragment & 0x3fff != 0);
    let port = |bytes: &[u8]| if is_later { 0 } else { port(kind, bytes, header) };
    let to = address(16).map(|to| SocketAddr::new(IpAddr::V4(to), port(&bytes[20..])));
    Packet { kind, from: address(12), to, is_fragment }
}

/// Returns the kind of a TCP segment with these flags; `None` if they are cut off.
fn segment(flags: Option<u8>) -> PacketKind {
    match flags {
        None => PacketKind::Fragment,
        Some(flags) if flags & (FIN | SYN | RST | ACK) == SYN => PacketKind::Syn,
        Some(flags) => PacketKind::Segment(flags & 0x3f),
    }
}

/// Returns the destination port; `after` are the bytes after the fixed part of the header.
fn port(kind: PacketKind, after: &[u8], header: usize) -> u16 {
    let payload = header.checked_sub(20).and_then(|options| after.get(options..));
    match (kind, payload) {
        (
            PacketKind::Syn | PacketKind::Segment(_) | PacketKind::Fragment | PacketKind::Udp,
            Some([_, _, high, low, ..]),
        ) => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

fn read_v6(bytes: &[u8]) -> Option<Packet> {
    let packet = |to| Packet { kind: PacketKind::Ipv6, from: None, to, is_fragment: false };
    let Some((header, payload)) = bytes.split_first_chunk::<V6_HEADER>() else {
        return Some(packet(None));
    };
    let mut address = [0; 16];
    address.copy_from_slice(&header[24..]);
    let (next, hops, address) = (header[6], header[7], Ipv6Addr::from(address));
    let is_routine = match next {
        ICMPV6 => is_discovery(payload, hops, address),
        HOP_BY_HOP => is_listener_report(payload, hops, address),
        _ => false,
    };
    let port = match next {
        TCP => port(PacketKind::Syn, payload, 20),
        UDP => port(PacketKind::Udp, payload, 20),
        _ => 0,
    };
    (!is_routine).then(|| packet(Some(SocketAddr::new(address.into(), port))))
}

/// Returns whether an `ICMPv6` message is a part of neighbor discovery that any host with IPv6 sends
/// by itself (RFC 4861, sections 4 and 7.1): solicitations and advertisements within the link, but
/// no router advertisements or redirects.
fn is_discovery(message: &[u8], hops: u8, to: Ipv6Addr) -> bool {
    let is_for_link = match message.first() {
        Some(133) => is_link_multicast(to),
        Some(135 | 136) => is_link_multicast(to) || to.is_unicast_link_local(),
        _ => false,
    };
    // No router passes it on, and no other host could have sent it.
    is_for_link && hops == 255
}

/// Returns whether a packet with a hop-by-hop header is a report of multicast listeners (RFC 2710,
/// section 3; RFC 3810, section 5).
fn is_listener_report(payload: &[u8], hops: u8, to: Ipv6Addr) -> bool {
    // The header of eight bytes has nothing but the router alert.
    let is_report = matches!(payload, [ICMPV6, 0, 5, 2, 0, 0, _, _, 131 | 132 | 143, ..]);
    is_report && hops == 1 && is_link_multicast(to)
}

/// Returns whether an address is of all listeners of a group on the link.
fn is_link_multicast(address: Ipv6Addr) -> bool {
    address.segments()[0] == 0xff02
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn v4(protocol: u8, options: usize, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options];
        bytes[0] = 0x45 + u8::try_from(options / 4).unwrap();
        bytes[9] = protocol;
        bytes[12..16].copy_from_slice(&[172, 31, 0, 2]);
        bytes[16..20].copy_from_slice(&[169, 254, 169, 254]);
        [&bytes[..], payload].concat()
    }

    fn v6(next: u8, to: &str, payload: &[u8]) -> Vec<u8> {
        let mut bytes = [0; 40];
        bytes[0] = 0x60;
        bytes[6] = next;
        bytes[24..40].copy_from_slice(&to.parse::<Ipv6Addr>().unwrap().octets());
        [&bytes[..], payload].concat()
    }

    #[test]
    fn each_kind_of_packet_is_parsed_with_its_destination() {
        let ports = [0x12, 0x34, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x02];
        for (ether_type, bytes, kind, to) in [
            (IPV4, v4(TCP, 0, &ports), "SYN", "169.254.169.254:80"),
            (IPV4, v4(TCP, 8, &ports), "SYN", "169.254.169.254:80"),
            (IPV4, v4(UDP, 0, &ports), "UDP", "169.254.169.254:80"),
            (IPV4, v4(UDP, 40, &ports), "UDP", "169.254.169.254:80"),
            (IPV4, v4(ICMP, 0, &ports), "ICMP", "169.254.169.254:0"),
            (IPV4, v4(47, 0, &[]), "IP-47", "169.254.169.254:0"),
            (IPV6, v6(TCP, "2001:db8::1", &ports), "IPV6", "[2001:db8::1]:80"),
            (IPV6, v6(ICMPV6, "ff02::1", &[134]), "IPV6", "[ff02::1]:0"),
        ] {
            let packet = read(ether_type, &bytes).unwrap();
            assert_eq!(packet.kind.to_string(), kind);
            assert_eq!(packet.to.unwrap().to_string(), to);
        }
        assert_eq!(read(0x88cc, &[]).unwrap().kind.to_string(), "ETHERNET-88cc");
    }

    #[test]
    fn a_later_fragment_has_a_source_and_no_port() {
        let mut bytes = v4(UDP, 0, &[0x12, 0x34, 0, 80]);
        // The flag "more fragments" is not an offset.
        for (flags, port) in [([0x20, 0], 80), ([0x20, 1], 0), ([1, 0], 0)] {
            bytes[6..8].copy_from_slice(&flags);
            let packet = read(IPV4, &bytes).unwrap();
            assert_eq!(packet.from, Some(Ipv4Addr::new(172, 31, 0, 2)));
            assert_eq!(packet.to.unwrap().port(), port, "{flags:?}");
        }
    }

    fn with_hops(mut packet: Vec<u8>, hops: u8) -> Vec<u8> {
        packet[7] = hops;
        packet
    }

    /// A hop-by-hop header with the router alert for listener reports, and a message of a type.
    fn report(kind: u8) -> [u8; 10] {
        [ICMPV6, 0, 5, 2, 0, 0, 1, 0, kind, 0]
    }

    #[test]
    fn routine_packets_are_ignored() {
        for (kind, to) in
            [(133, "ff02::2"), (135, "ff02::1:ff00:1"), (135, "fe80::1"), (136, "ff02::1")]
        {
            assert_eq!(read(IPV6, &with_hops(v6(ICMPV6, to, &[kind]), 255)), None, "{kind} {to}");
        }
        for (kind, to) in [(131, "ff02::fb"), (132, "ff02::2"), (143, "ff02::16")] {
            let packet = with_hops(v6(HOP_BY_HOP, to, &report(kind)), 1);
            assert_eq!(read(IPV6, &packet), None, "{kind} {to}");
        }
    }

    #[test]
    fn nothing_else_passes_for_a_routine_packet() {
        for (next, to, payload, hops) in [
            (ICMPV6, "2001:db8::1", &[135][..], 255),
            (ICMPV6, "2001:db8::1", &[143], 255),
            (ICMPV6, "ff02::16", &[143], 255),
            (ICMPV6, "fe80::1", &[133], 255),
            (ICMPV6, "ff02::1", &[135], 64),
            (ICMPV6, "ff05::1", &[135], 255),
            (ICMPV6, "ff02::1", &[134], 255),
            (ICMPV6, "ff02::1", &[], 255),
            (HOP_BY_HOP, "ff02::16", &[UDP, 0, 5, 2, 0, 0, 1, 0, 143, 0], 1),
            (HOP_BY_HOP, "ff02::16", &[ICMPV6, 1, 5, 2, 0, 0, 1, 0, 143, 0], 1),
            (HOP_BY_HOP, "ff02::16", &report(128), 1),
            (HOP_BY_HOP, "ff02::16", &report(143), 64),
            (HOP_BY_HOP, "ff05::16", &report(143), 1),
            (HOP_BY_HOP, "ff02::16", &[ICMPV6, 0], 1),
        ] {
            let packet = read(IPV6, &with_hops(v6(next, to, payload), hops));
            let kind = packet.map(|packet| packet.kind);
            assert_eq!(kind, Some(PacketKind::Ipv6), "{next} {to} {payload:?} {hops}");
        }
    }

    proptest! {
        #[test]
        fn a_packet_shorter_than_its_header_is_recorded(
            bytes in prop::collection::vec(any::<u8>(), 0..V6_HEADER),
        ) {
            let packet = read(IPV6, &bytes);
            prop_assert!(packet.is_some_and(|packet| packet.kind == PacketKind::Ipv6));
        }

        #[test]
        fn no_bytes_break_the_reader(
            ether_type in prop::sample::select(vec![IPV4, IPV6, 0x0806]),
            bytes in prop::collection::vec(any::<u8>(), 0..80),
        ) {
            let packet = read(ether_type, &bytes);
            prop_assert!(packet.is_none_or(|packet| packet.kind.to_string().len() < 40));
        }
    }
}
