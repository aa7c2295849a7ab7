//! Packet filters: classic BPF programs (`packet(7)`, and the kernel's networking/filter), which
//! unprivileged users may set and which run before anything is copied.

use std::net::Ipv4Addr;

use socket2::SockFilter;

use super::super::listeners::{DNS_PORT, PROXY_PORT};

/// Bytes of a packet that are captured: an IPv4 and a TCP header, each at its maximum length.
pub(in super::super) const SNAP_LENGTH: u32 = 120;

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` of the kernel's `net/flow.h`).
/// Its packets come from the host side; a guest's packets never arrive there.
const LOOPBACK: u32 = 1;
/// `PACKET_OUTGOING` of `linux/if_packet.h`.
const OUTGOING: u32 = 4;
/// `EtherType`s (IEEE 802 numbers).
const ARP: u32 = 0x0806;
const IPV4: u32 = 0x0800;
/// The IP protocol (IANA).
const TCP: u32 = 6;
/// Masks of the fragment field: the offset, and the flag "more fragments".
const OFFSET: u32 = 0x1fff;
const MORE: u32 = 0x2000;

/// Flags of a TCP segment (RFC 9293, section 3.1).
const FIN: u32 = 0x01;
const SYN: u32 = 0x02;
const RST: u32 = 0x04;
const ACK: u32 = 0x10;

/// Offsets of packet metadata: `SKF_AD_OFF` with `SKF_AD_PROTOCOL`, `_PKTTYPE` and `_IFINDEX`; and
/// `SKF_NET_OFF`, the start of the IP header.
const ETHER_TYPE: u32 = (-0x1000_i32).cast_unsigned();
const PACKET_TYPE: u32 = (-0x1000_i32 + 4).cast_unsigned();
const INTERFACE: u32 = (-0x1000_i32 + 8).cast_unsigned();
const IP_HEADER: u32 = (-0x10_0000_i32).cast_unsigned();

// Instructions. Loads take an offset; jumps take the number of instructions to skip if the
// condition holds and if not.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_BYTE_INDEXED: u16 = 0x50;
const LOAD_INDEX_HEADER: u16 = 0xb1;
const AND: u16 = 0x54;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_SET: u16 = 0x45;
const RETURN: u16 = 0x06;

/// Passes the guest's packets except ARP and TCP segments of open connections (with ACK or RST,
/// without SYN), so that bulk traffic is excluded. Later fragments of TCP carry no information, and
/// without the first one nothing replies to them.
pub(super) const WATCH_FILTER: [SockFilter; 18] = [
    SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
    SockFilter::new(JUMP_EQUAL, 15, 0, OUTGOING),
    SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
    SockFilter::new(JUMP_EQUAL, 13, 0, LOOPBACK),
    SockFilter::new(LOAD_WORD, 0, 0, ETHER_TYPE),
    SockFilter::new(JUMP_EQUAL, 11, 0, ARP),
    SockFilter::new(JUMP_EQUAL, 0, 9, IPV4),
    SockFilter::new(LOAD_BYTE, 0, 0, 9),
    SockFilter::new(JUMP_EQUAL, 0, 7, TCP),
    // A later fragment has no TCP header; the first may have part of one.
    SockFilter::new(LOAD_HALF, 0, 0, 6),
    SockFilter::new(JUMP_SET, 6, 0, OFFSET),
    SockFilter::new(JUMP_SET, 4, 0, MORE),
    SockFilter::new(LOAD_INDEX_HEADER, 0, 0, 0),
    SockFilter::new(LOAD_BYTE_INDEXED, 0, 0, 13),
    SockFilter::new(JUMP_SET, 1, 0, SYN),
    SockFilter::new(JUMP_SET, 1, 0, RST | ACK),
    SockFilter::new(RETURN, 0, 0, SNAP_LENGTH),
    SockFilter::new(RETURN, 0, 0, 0),
];

/// Passes the guest's segments that start or reset a connection, unfragmented ones only.
pub(in super::super) const ATTEMPT_FILTER: [SockFilter; 17] = [
    SockFilter::new(LOAD_WORD, 0, 0, PACKET_TYPE),
    SockFilter::new(JUMP_EQUAL, 14, 0, OUTGOING),
    SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
    SockFilter::new(JUMP_EQUAL, 12, 0, LOOPBACK),
    SockFilter::new(LOAD_WORD, 0, 0, ETHER_TYPE),
    SockFilter::new(JUMP_EQUAL, 0, 10, IPV4),
    SockFilter::new(LOAD_BYTE, 0, 0, 9),
    SockFilter::new(JUMP_EQUAL, 0, 8, TCP),
    SockFilter::new(LOAD_HALF, 0, 0, 6),
    SockFilter::new(JUMP_SET, 6, 0, OFFSET | MORE),
    SockFilter::new(LOAD_INDEX_HEADER, 0, 0, 0),
    SockFilter::new(LOAD_BYTE_INDEXED, 0, 0, 13),
    SockFilter::new(JUMP_SET, 2, 0, RST),
    SockFilter::new(AND, 0, 0, FIN | SYN | ACK),
    SockFilter::new(JUMP_EQUAL, 0, 1, SYN),
    SockFilter::new(RETURN, 0, 0, SNAP_LENGTH),
    SockFilter::new(RETURN, 0, 0, 0),
];

/// Passes nothing: for a socket that only sends.
pub(in super::super) const DROP_FILTER: [SockFilter; 1] = [SockFilter::new(RETURN, 0, 0, 0)];

/// Returns the filter of a listener. It drops a SYN from the guest, which is replayed through `lo`
/// once its destination has answered. The DNS stub and the forward proxy, at the gateway's address,
/// accept directly. A listener's filter sees the TCP header first.
pub(in super::super) fn listener_filter(gateway: Ipv4Addr) -> [SockFilter; 12] {
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 13),
        SockFilter::new(AND, 0, 0, FIN | SYN | RST | ACK),
        SockFilter::new(JUMP_EQUAL, 0, 8, SYN),
        SockFilter::new(LOAD_WORD, 0, 0, INTERFACE),
        SockFilter::new(JUMP_EQUAL, 6, 0, LOOPBACK),
        // The destination: 16 bytes into the IP header, and 2 into the TCP header.
        SockFilter::new(LOAD_WORD, 0, 0, IP_HEADER.wrapping_add(16)),
        SockFilter::new(JUMP_EQUAL, 0, 3, gateway.to_bits()),
        SockFilter::new(LOAD_HALF, 0, 0, 2),
        SockFilter::new(JUMP_EQUAL, 2, 0, DNS_PORT.into()),
        SockFilter::new(JUMP_EQUAL, 1, 0, PROXY_PORT.into()),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

#[cfg(test)]
pub(in super::super) mod tests {
    use super::*;

    /// A packet as seen by a filter.
    #[derive(Clone, Copy)]
    pub(in super::super::super) struct FilterInput<'a> {
        pub(in super::super::super) outgoing: bool,
        pub(in super::super::super) interface: u32,
        pub(in super::super::super) ether_type: u16,
        /// The bytes from the filter's start offset.
        pub(in super::super::super) bytes: &'a [u8],
        pub(in super::super::super) ip_header: &'a [u8],
    }

    impl<'a> FilterInput<'a> {
        /// A packet from the guest, as seen by a packet socket.
        pub(in super::super::super) fn from_guest(ether_type: u16, bytes: &'a [u8]) -> Self {
            Self { outgoing: false, interface: 2, ether_type, bytes, ip_header: bytes }
        }

        /// Runs a filter: an interpreter of the classic BPF instructions used here.
        pub(in super::super::super) fn passes(self, filter: &[SockFilter]) -> bool {
            let (mut accumulator, mut index, mut at) = (0_u32, 0_usize, 0_usize);
            loop {
                // SAFETY: a `SockFilter` is a transparent `sock_filter`.
                let libc::sock_filter { code, jt, jf, k } =
                    unsafe { std::mem::transmute_copy(&filter[at]) };
                at += 1;
                let mut jump = |holds: bool| at += usize::from(if holds { jt } else { jf });
                let byte = |offset: usize| self.bytes.get(offset).copied();
                let offset = k as usize;
                match code {
                    LOAD_WORD => {
                        accumulator = match k {
                            PACKET_TYPE => {
                                if self.outgoing {
                                    OUTGOING
                                } else {
                                    0
                                }
                            }
                            ETHER_TYPE => self.ether_type.into(),
                            INTERFACE => self.interface,
                            _ => {
                                let from = k.wrapping_sub(IP_HEADER) as usize;
                                let Some(word) = self.ip_header.get(from..from + 4) else {
                                    return false;
                                };
                                u32::from_be_bytes(word.try_into().unwrap())
                            }
                        };
                    }
                    LOAD_HALF => match (byte(offset), byte(offset + 1)) {
                        (Some(high), Some(low)) => {
                            accumulator = u16::from_be_bytes([high, low]).into();
                        }
                        _ => return false,
                    },
                    LOAD_BYTE | LOAD_BYTE_INDEXED => {
                        let index = if code == LOAD_BYTE_INDEXED { index } else { 0 };
                        match byte(offset + index) {
                            Some(byte) => accumulator = byte.into(),
                            None => return false,
                        }
                    }
                    LOAD_INDEX_HEADER => match byte(offset) {
                        Some(byte) => index = usize::from(byte & 0xf) * 4,
                        None => return false,
                    },
                    AND => accumulator &= k,
                    JUMP_EQUAL => jump(accumulator == k),
                    JUMP_SET => jump(accumulator & k != 0),
                    RETURN => return k > 0,
                    other => panic!("unknown instruction: {other:#x}"),
                }
            }
        }
    }

    /// Returns a TCP segment with these flags in an IPv4 packet, both with `options` bytes of
    /// options.
    pub(in super::super::super) fn segment(
        flags: u8,
        options: usize,
        fragment: [u8; 2],
    ) -> Vec<u8> {
        let mut bytes = vec![0; 20 + options + 20 + options];
        let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
        let words = u8::try_from(options / 4).unwrap();
        bytes[0] = 0x45 + words;
        bytes[2..4].copy_from_slice(&length);
        bytes[6..8].copy_from_slice(&fragment);
        bytes[9] = 6;
        bytes[12..16].copy_from_slice(&[172, 31, 0, 2]);
        bytes[16..20].copy_from_slice(&[192, 0, 2, 1]);
        let tcp = &mut bytes[20 + options..];
        tcp[..4].copy_from_slice(&[0x12, 0x34, 0, 22]);
        tcp[12] = 0x50 + (words << 4);
        tcp[13] = flags;
        bytes
    }

    #[test]
    fn packets_from_the_host_side_are_dropped() {
        let syn = segment(0x02, 0, [0, 0]);
        let seen = FilterInput::from_guest(0x0800, &syn);
        for filter in [&WATCH_FILTER[..], &ATTEMPT_FILTER] {
            assert!(seen.passes(filter));
            assert!(!FilterInput { outgoing: true, ..seen }.passes(filter));
            assert!(!FilterInput { interface: 1, ..seen }.passes(filter));
        }
    }

    #[test]
    fn attempts_are_unfragmented_segments_that_start_or_reset() {
        for options in [0, 4, 40] {
            for (name, flags, fragment, seen) in [
                ("SYN", 0x02, [0, 0], true),
                ("SYN that may not be fragmented", 0x02, [0x40, 0], true),
                ("SYN with ECN", 0xc2, [0, 0], true),
                ("SYN with data pushed", 0x0a, [0, 0], true),
                ("RST", 0x04, [0, 0], true),
                ("RST and ACK", 0x14, [0, 0], true),
                ("SYN and ACK", 0x12, [0, 0], false),
                ("SYN and FIN", 0x03, [0, 0], false),
                ("ACK", 0x10, [0, 0], false),
                ("FIN and ACK", 0x11, [0, 0], false),
                ("NULL", 0x00, [0, 0], false),
                ("SYN, first of fragments", 0x02, [0x20, 0], false),
                ("a later fragment", 0x02, [0, 1], false),
            ] {
                let bytes = segment(flags, options, fragment);
                assert_eq!(
                    FilterInput::from_guest(0x0800, &bytes).passes(&ATTEMPT_FILTER),
                    seen,
                    "{name}"
                );
            }
        }
        for ether_type in [0x0806, 0x86dd, 0x8100] {
            let bytes = segment(0x02, 0, [0, 0]);
            assert!(!FilterInput::from_guest(ether_type, &bytes).passes(&ATTEMPT_FILTER));
        }
    }

    #[test]
    fn a_listener_drops_syns_from_the_guest() {
        const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
        let filter = listener_filter(GATEWAY);
        for (flags, interface, to, port, passes) in [
            (0x02, 2, [192, 0, 2, 1], 443, false),
            (0xc2, 2, [192, 0, 2, 1], 443, false),
            (0x02, 2, [192, 0, 2, 1], 53, false),
            (0x02, 2, [192, 0, 2, 1], 3128, false),
            (0x02, 2, GATEWAY.octets(), 443, false),
            (0x02, 2, GATEWAY.octets(), 53, true),
            (0x02, 2, GATEWAY.octets(), 3128, true),
            // Replayed, from the host side.
            (0x02, 1, [192, 0, 2, 1], 443, true),
            // Segments of an existing connection, and those that the kernel drops itself.
            (0x10, 2, [192, 0, 2, 1], 443, true),
            (0x12, 2, [192, 0, 2, 1], 443, true),
            (0x04, 2, [192, 0, 2, 1], 443, true),
            (0x03, 2, [192, 0, 2, 1], 443, true),
        ] {
            let mut bytes = segment(flags, 8, [0, 0]);
            bytes[16..20].copy_from_slice(&to);
            let (ip_header, tcp) = bytes.split_at_mut(28);
            tcp[2..4].copy_from_slice(&u16::to_be_bytes(port));
            let seen = FilterInput {
                interface,
                ip_header,
                bytes: tcp,
                ..FilterInput::from_guest(0x0800, &[])
            };
            assert_eq!(seen.passes(&filter), passes, "{flags:#x} {interface} {to:?} {port}");
        }
    }
}
