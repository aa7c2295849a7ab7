//! Packets that no listener is there for: a packet socket in the namespace sees each first packet
//! of a TCP connection, each UDP and ICMP packet and all that isn't IPv4, so that what the kernel
//! refuses by itself is in the record, too. It only watches: nothing here forwards or answers.

mod parse;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Duration, interval, sleep};

use super::listen::{DNS_PORT, PROXY_PORT};
use super::record::{Subject, Via};
use super::shared::Shared;
use super::verdict::{Cause, Verdict};
use parse::{Kind, Packet};

/// Every protocol, in network byte order as `socket(2)` takes it (`ETH_P_ALL` of
/// `linux/if_ether.h`).
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;

/// The bytes of a packet that are looked at: the longest IPv4 header, and a TCP header up to its
/// flags.
const LENGTH: u32 = 80;

/// Packets that are looked at in one turn. After a full one there is a rest, in which others have
/// theirs; what comes meanwhile waits in the socket, and what has no room there is counted as lost.
const TURN: usize = 128;
const REST: Duration = Duration::from_millis(5);

/// How often it is asked how many packets the kernel had no room for.
const LOSS_INTERVAL: Duration = Duration::from_secs(5);

/// Keeps the guest's bulk traffic out of the socket: what passes is neither sent by this side nor
/// ARP nor a TCP segment as a connection that is open sends it, with ACK or RST and without SYN. Later
/// fragments of TCP say nothing, and without the first one nothing answers them. (Classic BPF, see
/// `packet(7)` and the kernel's networking/filter; a jump counts the instructions to skip.)
const FILTER: [SockFilter; 16] = {
    // Ancillary data: SKF_AD_OFF + SKF_AD_PKTTYPE, SKF_AD_PROTOCOL.
    const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
    const ETHER_TYPE: u32 = (-0x1000_i32).cast_unsigned();
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_BYTE_INDEXED: u16 = 0x50;
    const LOAD_INDEX_HEADER: u16 = 0xb1;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
        // PACKET_OUTGOING.
        SockFilter::new(JUMP_EQUAL, 13, 0, 4),
        SockFilter::new(LOAD_WORD, 0, 0, ETHER_TYPE),
        SockFilter::new(JUMP_EQUAL, 11, 0, 0x0806),
        SockFilter::new(JUMP_EQUAL, 0, 9, 0x0800),
        SockFilter::new(LOAD_BYTE, 0, 0, 9),
        SockFilter::new(JUMP_EQUAL, 0, 7, 6),
        // A later fragment has no TCP header; the first of several may have part of one.
        SockFilter::new(LOAD_HALF, 0, 0, 6),
        SockFilter::new(JUMP_SET, 6, 0, 0x1fff),
        SockFilter::new(JUMP_SET, 4, 0, 0x2000),
        SockFilter::new(LOAD_INDEX_HEADER, 0, 0, 0),
        SockFilter::new(LOAD_BYTE_INDEXED, 0, 0, 13),
        // Its flags: SYN; else neither RST nor ACK.
        SockFilter::new(JUMP_SET, 1, 0, 0x02),
        SockFilter::new(JUMP_SET, 1, 0, 0x14),
        SockFilter::new(RETURN, 0, 0, LENGTH),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
};

/// The socket, and what need not be recorded because a listener is there for it.
#[derive(Debug)]
pub(super) struct PacketSocket {
    socket: OwnedFd,
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
                let accepted = self.ports.as_ref().is_none_or(|ports| ports.contains(&port))
                    || is_gateway(DNS_PORT)
                    || is_gateway(PROXY_PORT);
                match packet.kind {
                    _ if !accepted => Some(Cause::Closed),
                    // No connection comes of it, so that its listener sees nothing.
                    Kind::Segment(_) => Some(Cause::Protocol("a TCP segment of no connection")),
                    // What comes of a fragment is a connection like any other.
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

impl PacketSocket {
    /// Makes the socket in the network namespace of the calling thread. There should be no guest in
    /// it yet: what comes before the filter is there is seen unfiltered.
    pub(super) fn new(listening: Listening) -> io::Result<Self> {
        let protocol = Protocol::from(ALL_PROTOCOLS);
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.attach_filter(&FILTER)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: socket.into(), listening })
    }
}

/// Records attempts until it is dropped.
pub(super) async fn serve(shared: Arc<Shared>, socket: PacketSocket) -> io::Result<()> {
    let PacketSocket { socket, listening } = socket;
    // SAFETY: an `OwnedFd` is the same open descriptor from here until it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    let guest = shared.recorder.guest();
    let mut losses = interval(LOSS_INTERVAL);
    loop {
        tokio::select! {
            _ = losses.tick() => shared.recorder.missed(lost(socket.get_ref())?),
            ready = socket.readable() => {
                let mut ready = ready?;
                let mut taken = 0;
                while taken < TURN {
                    let mut buffer = [0; LENGTH as usize];
                    let receive = |socket: &AsyncFd<OwnedFd>| receive(socket.get_ref(), &mut buffer);
                    let Ok(received) = ready.try_io(receive) else { break };
                    taken += 1;
                    if let Ok((length, ether_type)) = received
                        && let Some(packet) = parse::read(ether_type, &buffer[..length])
                        && let Some(cause) = listening.judge(&packet, guest)
                    {
                        record(&shared, &packet, cause);
                    }
                }
                if taken == TURN {
                    sleep(REST).await;
                }
            }
        }
    }
}

/// The length and the `EtherType` of the next packet.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, u16)> {
    let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer)?;
    let ether_type = from.map_or(0, |from| u16::from_be(from.protocol()));
    Ok((length.min(buffer.len()), ether_type))
}

/// How many packets the kernel had no room for since it was asked last.
fn lost(socket: &OwnedFd) -> io::Result<u64> {
    let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = libc::socklen_t::try_from(size_of_val(&statistics)).unwrap_or(0);
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `statistics`, and both
    // outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(statistics.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
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
    use super::*;

    /// What [`FILTER`] says of a packet from the guest: a reading of classic BPF as far as it is used.
    fn passes(ether_type: u16, bytes: &[u8]) -> bool {
        let (mut accumulator, mut index, mut at) = (0_u32, 0_usize, 0_usize);
        loop {
            let SockFilter { .. } = FILTER[at];
            // SAFETY: a `SockFilter` is a transparent `sock_filter`.
            let libc::sock_filter { code, jt, jf, k } =
                unsafe { std::mem::transmute_copy(&FILTER[at]) };
            at += 1;
            let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
            let byte = |offset: usize| bytes.get(offset).copied();
            let offset = k as usize;
            match code {
                // The packet's type is that of one for this host; its protocol.
                0x20 if k == (-0x1000_i32 + 4).cast_unsigned() => accumulator = 0,
                0x20 => accumulator = ether_type.into(),
                0x28 => match (byte(offset), byte(offset + 1)) {
                    (Some(high), Some(low)) => {
                        accumulator = u16::from_be_bytes([high, low]).into();
                    }
                    _ => return false,
                },
                0x30 | 0x50 => match byte(offset + if code == 0x50 { index } else { 0 }) {
                    Some(byte) => accumulator = byte.into(),
                    None => return false,
                },
                0xb1 => match byte(offset) {
                    Some(byte) => index = usize::from(byte & 0xf) * 4,
                    None => return false,
                },
                0x15 => jump(accumulator == k),
                0x45 => jump(accumulator & k != 0),
                0x06 => return k > 0,
                other => panic!("no such instruction: {other:#x}"),
            }
        }
    }

    /// A TCP segment with these flags, in an IPv4 packet with so many bytes of options.
    fn segment(flags: u8, options: usize, fragment: [u8; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options + 20];
        bytes[0] = 0x45 + u8::try_from(options / 4).unwrap();
        bytes[6..8].copy_from_slice(&fragment);
        bytes[9] = 6;
        bytes[12..16].copy_from_slice(&GUEST.octets());
        bytes[16..20].copy_from_slice(&[192, 0, 2, 1]);
        bytes[20 + options + 3] = 22;
        bytes[20 + options + 13] = flags;
        bytes
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
        listening.judge(&Packet { kind, from: Some(GUEST), to: to.parse().ok() }, GUEST)
    }

    #[test]
    fn a_forged_source_is_recorded_where_a_listener_would_answer_the_guest() {
        let listening = Listening { ports: None, gateway: Ipv4Addr::new(172, 31, 0, 1) };
        let from = Some(Ipv4Addr::new(172, 31, 0, 9));
        for (kind, to) in [(Kind::Syn, "1.1.1.1:80"), (Kind::Udp, "172.31.0.1:53")] {
            let packet = Packet { kind, from, to: to.parse().ok() };
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
            (web, Kind::Fragment, "1.1.1.1:443", None),
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
