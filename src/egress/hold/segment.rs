//! The segments that begin a connection or give one up: a pure function of a packet's bytes, which
//! takes nothing that is cut or says two things.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The IP protocol of TCP (IANA).
pub(super) const TCP: u8 = 6;
/// The shortest header of IPv4, and of TCP.
pub(super) const SHORTEST: usize = 20;
/// Flags of a TCP segment (RFC 9293, section 3.1).
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

/// Both ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ends {
    /// Who connects.
    pub guest: SocketAddrV4,
    /// Where to.
    pub to: SocketAddrV4,
}

/// The first segment of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Syn {
    ends: Ends,
    /// Its header with options, 20 to 60 bytes. Data that comes with it would be sent again.
    header: Vec<u8>,
}

/// A segment that matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A connection begins.
    Syn(Syn),
    /// The guest gives one up.
    Reset(Ends),
}

impl Segment {
    /// Reads a packet of IPv4. `None` for any other segment and for what is malformed.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let first = *packet.first()?;
        let header = usize::from(first & 0xf) * 4;
        let word = |bytes: &[u8], at: usize| {
            Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
        };
        let is_fragment = word(packet, 6)? & 0x3fff != 0;
        if first >> 4 != 4 || header < SHORTEST || is_fragment || *packet.get(9)? != TCP {
            return None;
        }
        let address = |at: usize| {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        let tcp = packet.get(header..)?;
        let length = usize::from(*tcp.get(12)? >> 4) * 4;
        let whole = usize::from(word(packet, 2)?);
        if length < SHORTEST || whole < header + length {
            return None;
        }
        let ends = Ends {
            guest: SocketAddrV4::new(address(12)?, word(tcp, 0)?),
            to: SocketAddrV4::new(address(16)?, word(tcp, 2)?),
        };
        match *tcp.get(13)? {
            flags if flags & RST != 0 => Some(Self::Reset(ends)),
            flags if flags & (FIN | SYN | ACK) == SYN => {
                Some(Self::Syn(Syn { ends, header: tcp.get(..length)?.to_vec() }))
            }
            _ => None,
        }
    }
}

impl Syn {
    /// Both ends.
    pub fn ends(&self) -> Ends {
        self.ends
    }

    /// Its header.
    pub(super) fn header(&self) -> &[u8] {
        &self.header
    }

    /// Its sequence number.
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
    use crate::egress::packets::filter::tests::segment;

    #[test]
    fn attempts_are_told_with_their_ends() {
        for options in [0, 4, 40] {
            for flags in [0x02, 0x0a, 0xc2] {
                let bytes = segment(flags, options, [0x40, 0]);
                let Some(Segment::Syn(syn)) = Segment::read(&bytes) else { panic!("{flags:#x}") };
                assert_eq!(syn.ends().guest.to_string(), "172.31.0.2:4660");
                assert_eq!(syn.ends().to.to_string(), "192.0.2.1:22");
                assert_eq!(syn.header().len(), 20 + options);
            }
            for flags in [0x04, 0x14, 0x06] {
                let read = Segment::read(&segment(flags, options, [0, 0]));
                assert!(matches!(read, Some(Segment::Reset(_))), "{flags:#x}");
            }
        }
    }

    #[test]
    fn what_is_cut_or_says_two_things_is_not_taken() {
        let whole = segment(0x02, 8, [0, 0]);
        assert!(Segment::read(&whole).is_some());
        for length in 0..whole.len() {
            assert_eq!(Segment::read(&whole[..length]), None, "{length}");
        }
        for (at, value) in [
            (0, 0x67),       // another version
            (0, 0x44),       // a header that is too short
            (2, 0xff),       // (a length that is larger than what is seen is that of data)
            (3, 0x10),       // a length that ends in a header
            (6, 0x20),       // more fragments
            (7, 0x01),       // a later fragment
            (9, 17),         // another protocol
            (28 + 12, 0x40), // a header of TCP that is too short
            (28 + 13, 0x03), // with FIN
            (28 + 13, 0x12), // with ACK
        ] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            assert_eq!(Segment::read(&bytes).is_some(), at == 2, "{at} {value:#x}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..140)) {
            if let Some(Segment::Syn(syn)) = Segment::read(&bytes) {
                prop_assert!((20..=60).contains(&syn.header().len()));
            }
        }
    }
}
