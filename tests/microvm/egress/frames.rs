//! Frames that no well-behaved guest sends, and the expected record of each.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::canary::MARK;

const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
const PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 32, 8);

const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x66];
const BROADCAST: [u8; 6] = [0xff; 6];
/// A placeholder for the gateway's hardware address, which only the guest knows.
const GATEWAY_MAC: [u8; 6] = *b"gate!!";

/// IP protocols (IANA).
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// The name, the frame, and the beginning of a line `VIA HOST:PORT VERDICT CAUSE` of the record.
/// The line is empty if the kernel answers or drops the frame and no verdict is due.
pub(super) type Row = (&'static str, Vec<u8>, String);

/// Returns the text that the guest's shell replaces by the gateway's hardware address.
pub(super) fn gateway_mac() -> String {
    hex(&GATEWAY_MAC)
}

/// Returns the input lines of the guest's program.
pub(super) fn lines(rows: &[Row]) -> String {
    let line = |(what, frame, _): &Row| format!("{} {}", what.replace(' ', "-"), hex(frame));
    rows.iter().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Returns all rows. `host` is an address of the host, and `port` is the canary's port there.
pub(super) fn table(host: Ipv4Addr, port: u16) -> Vec<Row> {
    [datagrams(host, port), forged(host, port), protocols(host), version_six(), links()].concat()
}

fn refused(to: impl std::fmt::Display) -> String {
    format!("packet {to} refused protocol")
}

fn datagrams(host: Ipv4Addr, port: u16) -> Vec<Row> {
    let row = |what, to: Ipv4Addr, port: u16| {
        (what, ip(&ipv4(UDP, GUEST, to, &udp(port))), refused(format_args!("{to}:{port}")))
    };
    vec![
        row("DNS elsewhere", Ipv4Addr::new(8, 8, 8, 8), 53),
        row("QUIC", PUBLIC, 443),
        row("WireGuard", PUBLIC, 51820),
        row("time", PUBLIC, 123),
        row("metadata", Ipv4Addr::new(169, 254, 169, 254), 80),
        row("the host", host, port),
        row("loopback", Ipv4Addr::LOCALHOST, port),
        row("private", Ipv4Addr::new(10, 0, 0, 1), 514),
        row("another microVM", Ipv4Addr::new(172, 31, 0, 3), 9),
        row("the gateway", GATEWAY, port),
        row("multicast DNS", Ipv4Addr::new(224, 0, 0, 251), 5353),
        row("discovery", Ipv4Addr::new(239, 255, 255, 250), 1900),
        row("DHCP", Ipv4Addr::BROADCAST, 67),
    ]
}

/// Returns frames with forged source addresses.
fn forged(host: Ipv4Addr, port: u16) -> Vec<Row> {
    let datagram = |what, from: Ipv4Addr, to: Ipv4Addr, port: u16| {
        (what, ip(&ipv4(UDP, from, to, &udp(port))), refused(format_args!("{to}:{port}")))
    };
    let connection = |what, from: Ipv4Addr, to: Ipv4Addr| {
        let line = format!("packet {to}:80 refused forged-source");
        (what, ip(&ipv4(TCP, from, to, &syn(80))), line)
    };
    let stranger = Ipv4Addr::new(10, 66, 66, 66);
    let lookup = ip(&ipv4(UDP, stranger, GATEWAY, &udp(53)));
    let mac = frame(GATEWAY_MAC, OTHER_MAC, 0x0800, &ipv4(UDP, GUEST, host, &udp(port)));
    vec![
        datagram("from a stranger", stranger, host, port),
        datagram("from loopback", Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2), port),
        datagram("from the gateway", GATEWAY, PUBLIC, 1000),
        datagram("from the host", host, host, port),
        ("from a stranger to DNS", lookup, format!("packet {GATEWAY}:53 refused forged-source")),
        connection("SYN from a stranger", stranger, PUBLIC),
        connection("SYN from a neighbor", Ipv4Addr::new(172, 31, 0, 9), PUBLIC),
        connection("SYN from the host", host, Ipv4Addr::new(169, 254, 169, 254)),
        connection("SYN from the gateway", GATEWAY, GATEWAY),
        ("another MAC", mac, refused(format_args!("{host}:{port}"))),
    ]
}

fn protocols(host: Ipv4Addr) -> Vec<Row> {
    let row = |what, protocol, to: Ipv4Addr, payload: &[u8]| {
        (what, ip(&ipv4(protocol, GUEST, to, payload)), refused(format_args!("{to}:0")))
    };
    let echo = [&[8, 0, 0, 0, 0, 1, 0, 1], MARK].concat();
    let redirect = [&[5, 1, 0, 0, 172, 31, 0, 2], MARK].concat();
    let inner = ipv4(UDP, GUEST, host, &udp(53));
    let mut fragment = ipv4(UDP, GUEST, Ipv4Addr::new(192, 0, 32, 20), &udp(53));
    // A later fragment, at 8 bytes.
    fragment[7] = 1;
    vec![
        row("a ping", ICMP, PUBLIC, &echo),
        row("a ping to metadata", ICMP, Ipv4Addr::new(169, 254, 169, 254), &echo),
        row("a redirect", ICMP, GATEWAY, &redirect),
        row("IP in IP", 4, Ipv4Addr::new(192, 0, 32, 10), &inner),
        row("IPv6 in IP", 41, Ipv4Addr::new(192, 0, 32, 11), MARK),
        row("GRE", 47, Ipv4Addr::new(192, 0, 32, 12), MARK),
        row("ESP", 50, Ipv4Addr::new(192, 0, 32, 13), MARK),
        row("SCTP", 132, Ipv4Addr::new(192, 0, 32, 14), MARK),
        row("IGMP", 2, Ipv4Addr::new(224, 0, 0, 22), MARK),
        row("protocol 253", 253, Ipv4Addr::new(192, 0, 32, 15), MARK),
        ("a fragment", ip(&fragment), refused("192.0.32.20:0")),
    ]
}

fn version_six() -> Vec<Row> {
    let six = |to: &str| to.parse::<Ipv6Addr>().unwrap();
    let row = |what, next, to: &str, payload: &[u8], port: u16| {
        let frame = frame(GATEWAY_MAC, OWN_MAC, 0x86dd, &ipv6(next, six(to), payload));
        (what, frame, refused(format_args!("{}:{port}", six(to))))
    };
    let advertisement = [&[134, 0, 0, 0, 64, 0, 0x07, 0x08], &[0; 8][..], MARK].concat();
    let redirect = [&[137, 0, 0, 0, 0, 0, 0, 0][..], &[0; 32], MARK].concat();
    vec![
        row("IPv6 connection", TCP, "2606:4700::1111", &syn(443), 443),
        row("IPv6 metadata", TCP, "fd00:ec2::254", &syn(80), 80),
        row("IPv6 loopback", TCP, "::1", &syn(22), 22),
        row("IPv4-mapped", TCP, "::ffff:169.254.169.254", &syn(80), 80),
        row("6to4", UDP, "2002:a9fe:a9fe::1", &udp(53), 53),
        row("Teredo", UDP, "2001::1", &udp(3544), 3544),
        row("IPv6 DNS", UDP, "2001:4860:4860::8888", &udp(53), 53),
        row("IPv6 link-local", UDP, "fe80::1", &udp(53), 53),
        row("DHCPv6", UDP, "ff02::1:2", &udp(547), 547),
        row("a router's advertisement", ICMPV6, "ff02::1", &advertisement, 0),
        row("an IPv6 redirect", ICMPV6, "fe80::2", &redirect, 0),
    ]
}

fn links() -> Vec<Row> {
    let row = |what, to, kind, payload: &[u8]| {
        (what, frame(to, OWN_MAC, kind, payload), "packet :0 refused protocol".to_owned())
    };
    let tagged = [&[0, 5, 0x08, 0][..], &ipv4(UDP, GUEST, PUBLIC, &udp(53))].concat();
    let arp = |what, to, claimed| (what, arp(to, claimed), String::new());
    vec![
        row("an experiment", BROADCAST, 0x88b5, MARK),
        row("LLDP", [1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc, MARK),
        row("EAPOL", GATEWAY_MAC, 0x888e, MARK),
        row("PPPoE", BROADCAST, 0x8863, MARK),
        row("MPLS", GATEWAY_MAC, 0x8847, MARK),
        row("spanning tree", [1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42, 0x42, 3, 0, 0, 0, 0, 0]),
        ("a VLAN", frame(GATEWAY_MAC, OWN_MAC, 0x8100, &tagged), "packet ".into()),
        arp("ARP for the gateway", BROADCAST, GATEWAY),
        arp("ARP for a neighbor", GATEWAY_MAC, Ipv4Addr::new(172, 31, 0, 9)),
        arp("ARP for the world", GATEWAY_MAC, PUBLIC),
    ]
}

/// Returns an IPv4 packet in a frame to the gateway.
fn ip(packet: &[u8]) -> Vec<u8> {
    frame(GATEWAY_MAC, OWN_MAC, 0x0800, packet)
}

fn frame(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    // The minimum frame size of Ethernet.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Returns an unsolicited ARP reply that claims an address.
fn arp(to: [u8; 6], claimed: Ipv4Addr) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, 2];
    let body = [&head[..], &OTHER_MAC, &claimed.octets(), &OWN_MAC, &claimed.octets()].concat();
    frame(to, OTHER_MAC, 0x0806, &body)
}

fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    let mut payload = payload.to_vec();
    match protocol {
        TCP => {
            let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
            let pseudo = [&from.octets()[..], &to.octets(), &[0, TCP], &length, &payload].concat();
            payload[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        }
        ICMP => {
            let sum = checksum(&payload).to_be_bytes();
            payload[2..4].copy_from_slice(&sum);
        }
        _ => {}
    }
    packet.extend(payload);
    packet
}

fn ipv6(next: u8, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x60, 0, 0, 0, length[0], length[1], next, 255];
    packet.extend(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66).octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// Returns a datagram from port 4000 with the mark, without a checksum, as IPv4 allows.
fn udp(port: u16) -> Vec<u8> {
    let length = u16::try_from(8 + MARK.len()).unwrap();
    let fields = [4000, port, length, 0].map(u16::to_be_bytes).concat();
    [&fields, MARK].concat()
}

/// Returns a SYN from port 4000.
fn syn(port: u16) -> Vec<u8> {
    let ports = [4000, port].map(u16::to_be_bytes).concat();
    [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]].concat()
}

/// Returns the internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or_default()));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
