//! Which addresses a guest may ever reach: a pure classification, checked on the very address that
//! is dialled.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for, as far as egress cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// A public unicast address.
    Global,
    /// A private range: RFC 1918, carrier-grade NAT (RFC 6598), IPv6 unique local (RFC 4193).
    Private,
    /// This machine by itself.
    Loopback,
    /// One link only; the usual home of cloud metadata services.
    LinkLocal,
    /// A cloud's metadata or host service at an address outside the link-local range.
    Metadata,
    /// Multicast or broadcast.
    Multicast,
    /// No address: `0.0.0.0/8`, `::`.
    Unspecified,
    /// Set aside by IANA: documentation, benchmarks, translation, the future.
    Reserved,
    /// An address that belongs to the host Mayfly runs on.
    Host,
}

impl fmt::Display for Class {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Global => "public",
            Self::Private => "private",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link-local",
            Self::Metadata => "cloud metadata",
            Self::Multicast => "multicast",
            Self::Unspecified => "unspecified",
            Self::Reserved => "reserved",
            Self::Host => "host's own",
        })
    }
}

/// Services of clouds that answer their machines at addresses which are neither link-local nor
/// (some of them) even private: Azure's host, Alibaba's metadata.
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];

/// IPv6 prefixes of 32 bits of the same kind: Amazon's `fd00:ec2::`, Google's `fd20:ce::`,
/// Scaleway's `fd00:42::`.
const METADATA_V6: [[u16; 2]; 3] = [[0xfd00, 0xec2], [0xfd20, 0xce], [0xfd00, 0x42]];

/// What kind of address it is, without knowing the host's own.
pub fn classify(address: IpAddr) -> Class {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

/// By the IANA special-purpose registry (RFC 6890 and its updates).
fn classify_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [0, ..] => Class::Unspecified,
        [127, ..] => Class::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Private,
        [169, 254, ..] => Class::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => Class::Multicast,
        // IETF protocols, documentation, 6to4 relays, AS112, AMT, benchmarks, class E. Mayfly's
        // own synthetic addresses are of the benchmark range, so none is ever dialled.
        [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [192, 31, 196, _]
        | [192, 52, 193, _]
        | [192, 175, 48, _]
        | [198, 18..=19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => Class::Reserved,
        _ => Class::Global,
    }
}

/// Global unicast is `2000::/3` without what tunnels IPv4 or is set aside; of all else only NAT64
/// of a global IPv4 address leaves the host.
fn classify_v6(address: Ipv6Addr) -> Class {
    let segments = address.segments();
    if METADATA_V6.iter().any(|prefix| segments.starts_with(prefix)) {
        return Class::Metadata;
    }
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Class::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Loopback,
        // NAT64 (RFC 6052): what the translator would dial is in the last 32 bits.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            classify_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        [0xfc00..=0xfdff, ..] => Class::Private,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xff00..=0xffff, ..] => Class::Multicast,
        // 2001::/23 (Teredo, ORCHID and other IETF protocols), documentation, 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => Class::Reserved,
        [0x2000..=0x3fff, ..] => Class::Global,
        // IPv4-mapped and -compatible, discard, site-local, unassigned.
        _ => Class::Reserved,
    }
}

/// Decides about addresses, knowing the host's own.
#[derive(Debug, Clone, Default)]
pub struct AddressCheck {
    host: HashSet<IpAddr>,
}

impl AddressCheck {
    /// With the host's own addresses, which are refused whatever range they are of.
    pub fn new(host: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { host: host.into_iter().collect() }
    }

    /// What kind of address it is.
    pub fn classify(&self, address: IpAddr) -> Class {
        if self.host.contains(&address.to_canonical()) || self.host.contains(&address) {
            return match classify(address) {
                Class::Global | Class::Private => Class::Host,
                other => other,
            };
        }
        classify(address)
    }

    /// Whether it may be dialled; the class that forbids it where not.
    pub fn check(&self, address: IpAddr, allow_private: bool) -> Result<(), Class> {
        match self.classify(address) {
            Class::Global => Ok(()),
            Class::Private if allow_private => Ok(()),
            class => Err(class),
        }
    }
}

/// The addresses of this host's network interfaces, in the network namespace of the calling
/// thread.
pub fn of_this_host() -> nix::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_range_has_its_class() {
        for (text, class) in [
            ("1.1.1.1", Class::Global),
            ("140.82.121.4", Class::Global),
            ("172.15.0.1", Class::Global),
            ("172.32.0.1", Class::Global),
            ("100.63.255.255", Class::Global),
            ("100.128.0.1", Class::Global),
            ("198.17.0.1", Class::Global),
            ("198.20.0.1", Class::Global),
            ("0.0.0.0", Class::Unspecified),
            ("0.1.2.3", Class::Unspecified),
            ("10.0.0.1", Class::Private),
            ("172.16.0.1", Class::Private),
            ("172.31.255.255", Class::Private),
            ("192.168.1.1", Class::Private),
            ("100.64.0.1", Class::Private),
            ("127.0.0.1", Class::Loopback),
            ("127.255.255.254", Class::Loopback),
            ("169.254.169.254", Class::LinkLocal),
            ("169.254.170.2", Class::LinkLocal),
            ("168.63.129.16", Class::Metadata),
            ("100.100.100.200", Class::Metadata),
            ("192.0.0.192", Class::Reserved),
            ("192.0.2.1", Class::Reserved),
            ("198.18.0.1", Class::Reserved),
            ("198.19.255.255", Class::Reserved),
            ("198.51.100.1", Class::Reserved),
            ("203.0.113.1", Class::Reserved),
            ("240.0.0.1", Class::Reserved),
            ("224.0.0.1", Class::Multicast),
            ("255.255.255.255", Class::Multicast),
            ("2606:4700::1111", Class::Global),
            ("2001:4860:4860::8888", Class::Global),
            ("::", Class::Unspecified),
            ("::1", Class::Loopback),
            ("::ffff:1.1.1.1", Class::Reserved),
            ("::ffff:169.254.169.254", Class::Reserved),
            ("::1.1.1.1", Class::Reserved),
            ("64:ff9b::1.1.1.1", Class::Global),
            ("64:ff9b::169.254.169.254", Class::LinkLocal),
            ("64:ff9b::10.0.0.1", Class::Private),
            ("64:ff9b:1::1", Class::Reserved),
            ("100::1", Class::Reserved),
            ("2001::1", Class::Reserved),
            ("2001:db8::1", Class::Reserved),
            ("2002:a9fe:a9fe::", Class::Reserved),
            ("3fff::1", Class::Reserved),
            ("fc00::1", Class::Private),
            ("fd12::1", Class::Private),
            ("fd00:ec2::254", Class::Metadata),
            ("fd20:ce::254", Class::Metadata),
            ("fe80::1", Class::LinkLocal),
            ("fec0::1", Class::Reserved),
            ("ff02::1", Class::Multicast),
            ("4000::1", Class::Reserved),
        ] {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn a_private_address_needs_leave_and_the_rest_gets_none() {
        let check = AddressCheck::new(["10.0.0.5".parse().unwrap(), "1.2.3.4".parse().unwrap()]);
        let private = "10.0.0.6".parse().unwrap();
        assert_eq!(check.check(private, false), Err(Class::Private));
        assert_eq!(check.check(private, true), Ok(()));
        for own in ["10.0.0.5", "1.2.3.4"] {
            assert_eq!(check.check(own.parse().unwrap(), true), Err(Class::Host), "{own}");
        }
        for never in ["127.0.0.1", "169.254.169.254", "100.100.100.200", "fd00:ec2::254"] {
            assert!(check.check(never.parse().unwrap(), true).is_err(), "{never}");
        }
    }

    #[test]
    fn this_host_has_loopback_among_its_addresses() {
        let addresses = of_this_host().unwrap();
        assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
    }

    proptest! {
        #[test]
        fn nat64_is_what_it_carries(address in any::<u32>()) {
            let v4 = Ipv4Addr::from(address);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            prop_assert_eq!(classify(nat64.into()), classify(v4.into()));
        }

        #[test]
        fn nothing_mapped_is_ever_dialled(address in any::<u32>()) {
            let mapped = Ipv4Addr::from(address).to_ipv6_mapped();
            prop_assert!(AddressCheck::default().check(mapped.into(), true).is_err());
        }
    }
}
