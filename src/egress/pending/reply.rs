//! Reply packets for pending connections. Pure: takes a SYN, returns an IPv4 packet.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::segment::{ACK, Endpoints, MIN_HEADER, RST, Syn, TCP};

/// The IP protocol of ICMP (IANA), its type "destination unreachable" and the code "host" (RFC
/// 792). A client whose connection has received nothing else gives up on it.
const ICMP: u8 = 1;
const UNREACHABLE: u8 = 3;
const HOST: u8 = 1;

/// Bytes of the original packet, after its IP header, that an ICMP error contains (RFC 792).
const QUOTED: usize = 8;

/// Returns the SYN as received, for the namespace's own stack.
pub fn replay_syn(syn: &Syn) -> Vec<u8> {
    segment(syn.endpoints().guest, syn.endpoints().destination, syn.header().to_vec())
}

/// Returns a reset, as a stack sends for a port without a listener.
pub(super) fn reset_packet(syn: &Syn) -> Vec<u8> {
    let Endpoints { guest, destination } = syn.endpoints();
    let acknowledged = syn.sequence().wrapping_add(1);
    let mut header = Vec::with_capacity(MIN_HEADER);
    header.extend(destination.port().to_be_bytes());
    header.extend(guest.port().to_be_bytes());
    header.extend([0; 4]);
    header.extend(acknowledged.to_be_bytes());
    header.extend([0x50, RST | ACK]);
    header.extend([0; 6]);
    segment(destination, guest, header)
}

/// Returns an ICMP error, as a router sends for an unreachable host.
pub(super) fn unreachable_packet(syn: &Syn, router: Ipv4Addr) -> Vec<u8> {
    let guest = *syn.endpoints().guest.ip();
    let mut message = vec![UNREACHABLE, HOST, 0, 0, 0, 0, 0, 0];
    message.extend(&replay_syn(syn)[..MIN_HEADER + QUOTED]);
    put_checksum(&mut message, 2, &[]);
    packet(ICMP, (router, guest), &message)
}

/// Returns a packet with this TCP segment and a new checksum: a guest may leave the checksum to its
/// device.
fn segment(from: SocketAddrV4, to: SocketAddrV4, mut segment: Vec<u8>) -> Vec<u8> {
    let mut pseudo = [from.ip().octets(), to.ip().octets()].concat();
    pseudo.extend([0, TCP]);
    pseudo.extend(u16_of(segment.len()));
    put_checksum(&mut segment, 16, &pseudo);
    packet(TCP, (*from.ip(), *to.ip()), &segment)
}

fn packet(protocol: u8, (from, to): (Ipv4Addr, Ipv4Addr), payload: &[u8]) -> Vec<u8> {
    let [high, low] = u16_of(MIN_HEADER + payload.len());
    // Don't fragment; 64 hops.
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    put_checksum(&mut packet, 10, &[]);
    packet.extend(payload);
    packet
}

/// Returns a length as two bytes: all lengths here are below 200.
fn u16_of(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or_default().to_be_bytes()
}

/// Writes the internet checksum (RFC 1071) of `before` and `bytes` at offset `at`.
fn put_checksum(bytes: &mut [u8], at: usize, before: &[u8]) {
    let Some(field) = bytes.get_mut(at..at + 2) else { return };
    field.fill(0);
    let sum = checksum(before, bytes).to_be_bytes();
    bytes[at..at + 2].copy_from_slice(&sum);
}

/// Returns the internet checksum of `bytes` after `before`, whose length is even.
fn checksum(before: &[u8], bytes: &[u8]) -> u16 {
    let words = before.chunks(2).chain(bytes.chunks(2));
    let sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0)))
        .sum();
    // Twice, because the first addition may carry.
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::segment::TcpSegment;
    use super::*;
    use crate::packets::filter::tests;

    fn syn(options: usize, sequence: u32) -> Syn {
        let mut bytes = tests::segment(0x02, options, [0x40, 0]);
        bytes[24 + options..28 + options].copy_from_slice(&sequence.to_be_bytes());
        match TcpSegment::parse(&bytes) {
            Some(TcpSegment::Syn(syn)) => syn,
            other => panic!("{other:?}"),
        }
    }

    /// Verifies the checksums of a packet as its receiver does. Returns its payload.
    fn payload(packet: &[u8]) -> &[u8] {
        let (header, payload) = packet.split_at(MIN_HEADER);
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
        fn a_replayed_syn_is_unchanged(words in 0_usize..=10, sequence in any::<u32>()) {
            let syn = syn(words * 4, sequence);
            let packet = replay_syn(&syn);
            payload(&packet);
            let Some(TcpSegment::Syn(read)) = TcpSegment::parse(&packet) else { panic!() };
            prop_assert_eq!(read.endpoints(), syn.endpoints());
            // Everything except the checksum.
            prop_assert_eq!(&read.header()[..16], &syn.header()[..16]);
            prop_assert_eq!(&read.header()[18..], &syn.header()[18..]);
        }

        #[test]
        fn replies_match_the_syn(words in 0_usize..=10, sequence in any::<u32>()) {
            let syn = syn(words * 4, sequence);
            let refused = reset_packet(&syn);
            let segment = payload(&refused);
            prop_assert_eq!(&segment[..4], [0, 22, 0x12, 0x34]);
            prop_assert_eq!(&segment[8..12], sequence.wrapping_add(1).to_be_bytes());
            prop_assert_eq!(segment[13], RST | ACK);
            prop_assert_eq!(&refused[12..20], [192, 0, 2, 1, 172, 31, 0, 2]);

            let message = unreachable_packet(&syn, Ipv4Addr::new(172, 31, 0, 1));
            let message = payload(&message);
            prop_assert_eq!(&message[..2], [3, 1]);
            prop_assert_eq!(&message[8 + 12..8 + 20], [172, 31, 0, 2, 192, 0, 2, 1]);
            prop_assert_eq!(&message[8 + 20..], &syn.header()[..8]);
        }
    }
}
