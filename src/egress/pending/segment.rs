//! TCP segments that start or reset a connection: a pure function of a packet's bytes, which
//! rejects truncated and ambiguous packets.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The IP protocol of TCP (IANA).
pub(super) const TCP: u8 = 6;
/// Minimum length of an IPv4 header, and of a TCP header.
pub(super) const MIN_HEADER: usize = 20;
/// Flags of a TCP segment (RFC 9293, section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// The endpoints of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Endpoints {
    /// The guest's address and port.
    pub guest: SocketAddrV4,
    /// The destination's address and port.
    pub destination: SocketAddrV4,
}

/// The first segment of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syn {
    endpoints: Endpoints,
    /// The TCP header with options, 20 to 60 bytes. Data in the SYN is dropped; the client sends it
    /// again.
    header: Vec<u8>,
}

/// A segment that this module handles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TcpSegment {
    /// The start of a connection.
    Syn(Syn),
    /// A reset by the guest.
    Reset(Endpoints),
}

impl TcpSegment {
    /// Parses an IPv4 packet. Returns `None` for any other segment and for malformed packets.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = usize::from(first & 0xf) * 4;
        let word = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let is_fragment = word(packet, 6)? & 0x3fff != 0;
        if first >> 4 != 4 || header < MIN_HEADER || is_fragment || *packet.get(9)? != TCP {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        let tcp = packet.get(header..)?;
        let length = usize::from(*tcp.get(12)? >> 4) * 4;
        let whole = usize::from(word(packet, 2)?);
        if length < MIN_HEADER || whole < header + length {
            return None;
        }
        let endpoints = Endpoints {
            guest: SocketAddrV4::new(address(12)?, word(tcp, 0)?),
            destination: SocketAddrV4::new(address(16)?, word(tcp, 2)?),
        };
        match *tcp.get(13)? {
            flags if flags & RST != 0 => Some(Self::Reset(endpoints)),
            flags if flags & (FIN | SYN | ACK) == SYN => {
                Some(Self::Syn(Syn { endpoints, header: tcp.get(..length)?.to_vec() }))
            }
            _ => None,
        }
    }
}

impl Syn {
    /// Returns the endpoints.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints
    }

    /// Returns the TCP header.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Returns the sequence number.
    pub(super) fn sequence(&self) -> u32 {
        self.header
            .get(4..8)
            .map_or(0, |bytes| bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packets::filter::tests::segment;

    #[test]
    fn connection_attempts_are_parsed_with_their_endpoints() {
        for options in [0, 4, 40] {
            for flags in [0x02, 0x0a, 0xc2] {
                let bytes = segment(flags, options, [0x40, 0]);
                let Some(TcpSegment::Syn(syn)) = TcpSegment::parse(&bytes) else {
                    panic!("{flags:#x}")
                };
                assert_eq!(syn.endpoints().guest.to_string(), "172.31.0.2:4660");
                assert_eq!(syn.endpoints().destination.to_string(), "192.0.2.1:22");
                assert_eq!(syn.header().len(), 20 + options);
            }
            for flags in [0x04, 0x14, 0x06] {
                let read = TcpSegment::parse(&segment(flags, options, [0, 0]));
                assert!(matches!(read, Some(TcpSegment::Reset(_))), "{flags:#x}");
            }
        }
    }

    #[test]
    fn truncated_and_ambiguous_packets_are_rejected() {
        let whole = segment(0x02, 8, [0, 0]);
        assert!(TcpSegment::parse(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(TcpSegment::parse(&whole[..length]), None, "{length}");
        }
        for (at, value) in [
            (0, 0x67),       // another version
            (0, 0x44),       // a header that is too short
            (2, 0xff),       // (a length beyond the captured bytes is that of data)
            (3, 0x10),       // a length that ends within a header
            (6, 0x20),       // more fragments
            (7, 0x01),       // a later fragment
            (9, 17),         // another protocol
            (28 + 12, 0x40), // a header of TCP that is too short
            (28 + 13, 0x03), // with FIN
            (28 + 13, 0x12), // with ACK
        ] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            assert_eq!(TcpSegment::parse(&bytes).is_some(), at == 2, "{at} {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            if let Some(TcpSegment::Syn(syn)) = TcpSegment::parse(&bytes) {
                prop_assert!((20..=60).contains(&syn.header().len()));
            }
        }
    }
}
