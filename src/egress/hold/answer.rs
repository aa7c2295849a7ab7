//! The packets that a held connection is answered by. Pure: a SYN in, a packet of IPv4 out.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::segment::{ACK, Ends, RST, SHORTEST, Syn, TCP};

/// The IP protocol of ICMP (IANA), its type for a destination that can't be reached and the code for
/// its host (RFC 792). A client that has heard nothing else of its connection gives it up for that.
const ICMP: u8 = 1;
const UNREACHABLE: u8 = 3;
const HOST: u8 = 1;

/// Bytes of a packet that an ICMP message about it repeats, beside its IP header (RFC 792).
const REPEATED: usize = 8;

/// The SYN as it came, for the namespace's own stack.
pub fn again(syn: &Syn) -> Vec<u8> {
    segment(syn.ends().guest, syn.ends().to, syn.header().to_vec())
}

/// What a stack answers for a port on which nobody listens.
pub(super) fn refusal(syn: &Syn) -> Vec<u8> {
    let Ends { guest, to } = syn.ends();
    let acknowledged = syn.sequence().wrapping_add(1);
    let mut header = Vec::with_capacity(SHORTEST);
    header.extend(to.port().to_be_bytes());
    header.extend(guest.port().to_be_bytes());
    header.extend([0; 4]);
    header.extend(acknowledged.to_be_bytes());
    header.extend([0x50, RST | ACK]);
    header.extend([0; 6]);
    segment(to, guest, header)
}

/// What a router answers for a host that it can't reach.
pub(super) fn unreachable(syn: &Syn, router: Ipv4Addr) -> Vec<u8> {
    let guest = *syn.ends().guest.ip();
    let mut message = vec![UNREACHABLE, HOST, 0, 0, 0, 0, 0, 0];
    message.extend(&again(syn)[..SHORTEST + REPEATED]);
    put_checksum(&mut message, 2, &[]);
    packet(ICMP, (router, guest), &message)
}

/// A packet of this TCP segment, whose checksum is made anew: a guest may leave that to its device.
fn segment(from: SocketAddrV4, to: SocketAddrV4, mut segment: Vec<u8>) -> Vec<u8> {
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, TCP]);
    pseudo.extend(u16_of(segment.len()));
    put_checksum(&mut segment, 16, &pseudo);
    packet(TCP, (*from.ip(), *to.ip()), &segment)
}

fn packet(protocol: u8, (from, to): (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16_of(SHORTEST + payload.len());
    // Not to be fragmented; 64 hops.
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    put_checksum(&mut packet, 10, &[]);
    packet.extend(payload);
    packet
}

/// A length in two bytes: all here are below 200.
fn u16_of(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or_default().to_be_bytes()
}

/// Puts the internet checksum (RFC 1071) of some bytes, and of others before them, at its place.
fn put_checksum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let Some(place) = bytes.get_mut(at..at + 2) else { return };
    place.fill(0);
    let sum = checksum(before, bytes).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

/// The internet checksum of some bytes behind others, of which there is an even number.
fn checksum(before: &[u8], bytes: &[u8]) -> u16 {
    let words = before.chunks(2).chain(bytes.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    // Twice, as the first carry may carry.
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::segment::Segment;
    use super::*;
    use crate::egress::packets::filter::tests;

    fn syn(options: usize, sequence: u32) -> Syn {
        let mut bytes = tests::segment(0x02, options, [0x40, 0]);
        bytes[24 + options..28 + options].copy_from_slice(&sequence.to_be_bytes());
        match Segment::read(&bytes) {
            Some(Segment::Syn(syn)) => syn,
            other => panic!("{other:?}"),
        }
    }

    /// Checks the sums of a packet as its receiver does; gives what is behind its header.
    fn payload(packet: &[u8]) -> &[u8] {
        let (header, payload) = packet.split_at(SHORTEST);
        assert_eq!(checksum(&[], header), 0);
        assert_eq!(usize::from(u16::from_be_bytes([header[2], header[3]])), packet.len());
        let mut pseudo = header[12..20].to_vec();
        pseudo.extend([0, header[9]]);
        pseudo.extend(u16_of(payload.len()));
        let before = if header[9] == TCP { &pseudo[..] } else { &[] };
        assert_eq!(checksum(before, payload), 0);
        payload
    }

    proptest! {
        #[test]
        fn a_syn_comes_again_as_it_was(words in 0_usize..=10, sequence in any::<u32>()) {
            let syn = syn(words * 4, sequence);
            let packet = again(&syn);
            payload(&packet);
            let Some(Segment::Syn(read)) = Segment::read(&packet) else { panic!() };
            prop_assert_eq!(read.ends(), syn.ends());
            // All but the checksum.
            prop_assert_eq!(&read.header()[..16], &syn.header()[..16]);
            prop_assert_eq!(&read.header()[18..], &syn.header()[18..]);
        }

        #[test]
        fn answers_are_about_the_syn(words in 0_usize..=10, sequence in any::<u32>()) {
            let syn = syn(words * 4, sequence);
            let refused = refusal(&syn);
            let segment = payload(&refused);
            prop_assert_eq!(&segment[..4], [0, 22, 0x12, 0x34]);
            prop_assert_eq!(&segment[8..12], sequence.wrapping_add(1).to_be_bytes());
            prop_assert_eq!(segment[13], RST | ACK);
            prop_assert_eq!(&refused[12..20], [192, 0, 2, 1, 172, 31, 0, 2]);

            let message = unreachable(&syn, Ipv4Addr::new(172, 31, 0, 1));
            let message = payload(&message);
            prop_assert_eq!(&message[..2], [3, 1]);
            prop_assert_eq!(&message[8 + 12..8 + 20], [172, 31, 0, 2, 192, 0, 2, 1]);
            prop_assert_eq!(&message[8 + 20..], &syn.header()[..8]);
        }
    }
}
