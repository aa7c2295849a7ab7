//! Which addresses a guest may reach: a pure classification, applied to the exact address that is
//! dialed.

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The class of an address, as far as egress distinguishes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// A public unicast address.
    Global,
    /// A private range: RFC 1918, carrier-grade NAT (RFC 6598), IPv6 unique local (RFC 4193).
    Private,
    /// The machine itself.
    Loopback,
    /// Link-local; typical for cloud metadata services.
    LinkLocal,
    /// A cloud's metadata or host service outside the link-local range.
    Metadata,
    /// Multicast or broadcast.
    Multicast,
    /// Unspecified: `0.0.0.0/8`, `::`.
    Unspecified,
    /// Reserved by IANA: documentation, benchmarks, translation, future use.
    Reserved,
    /// An address of the host that Mayfly runs on.
    Host,
}

impl fmt::Display for AddressClass {
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

/// Cloud services at addresses that are neither link-local nor, in part, private: Azure's host
/// service, Alibaba's metadata.
const METADATA_V4: [Ipv4Addr; 2] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];

/// IPv6 prefixes of 32 bits of such services: Amazon's `fd00:ec2::`, Google's `fd20:ce::`,
/// Scaleway's `fd00:42::`.
const METADATA_V6: [[u16; 2]; 3] = [[0xfd00, 0xec2], [0xfd20, 0xce], [0xfd00, 0x42]];

/// Returns the class of an address, without knowledge of the host's own addresses.
pub fn classify(address: IpAddr) -> AddressClass {
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => classify_v6(address),
    }
}

/// Classifies by the IANA special-purpose registry (RFC 6890 and its updates).
fn classify_v4(address: Ipv4Addr) -> AddressClass {
    if METADATA_V4.contains(&address) {
        return AddressClass::Metadata;
    }
    match address.octets() {
        [0, ..] => AddressClass::Unspecified,
        [127, ..] => AddressClass::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => {
            AddressClass::Private
        }
        [169, 254, ..] => AddressClass::LinkLocal,
        [224..=239, ..] | [255, 255, 255, 255] => AddressClass::Multicast,
        // IETF protocols, documentation, 6to4 relays, AS112, AMT, benchmarks, class E. Mayfly's own
        // synthetic addresses are in the benchmark range, so none is ever dialed.
        [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [192, 31, 196, _]
        | [192, 52, 193, _]
        | [192, 175, 48, _]
        | [198, 18..=19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _]
        | [240..=255, ..] => AddressClass::Reserved,
        _ => AddressClass::Global,
    }
}

/// Global unicast is `2000::/3` except for IPv4 tunnels and reserved ranges; beyond it, only NAT64
/// of a global IPv4 address leaves the host.
fn classify_v6(address: Ipv6Addr) -> AddressClass {
    let segments = address.segments();
    if METADATA_V6.iter().any(|prefix| segments.starts_with(prefix)) {
        return AddressClass::Metadata;
    }
    if let Some(address) = translated(address) {
        return classify_v4(address);
    }
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => AddressClass::Unspecified,
        [0, 0, 0, 0, 0, 0, 0, 1] => AddressClass::Loopback,
        [0xfc00..=0xfdff, ..] => AddressClass::Private,
        [0xfe80..=0xfebf, ..] => AddressClass::LinkLocal,
        [0xff00..=0xffff, ..] => AddressClass::Multicast,
        // 2001::/23 (Teredo, ORCHID and other IETF protocols), documentation, 6to4.
        [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x2002, ..] | [0x3fff, 0..=0xfff, ..] => {
            AddressClass::Reserved
        }
        [0x2000..=0x3fff, ..] => AddressClass::Global,
        // IPv4-mapped and -compatible, discard, site-local, unassigned.
        _ => AddressClass::Reserved,
    }
}

/// Returns the IPv4 address that a NAT64 translator dials for an address: the last 32 bits after the
/// well-known prefix (RFC 6052).
fn translated(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

/// Checks addresses, with knowledge of the host's own.
#[derive(Debug, Clone, Default)]
pub struct AddressCheck {
    host: HashSet<IpAddr>,
}

impl AddressCheck {
    /// Creates a check with the host's own addresses, which are always refused.
    pub fn new(host: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { host: host.into_iter().collect() }
    }

    /// Returns the class of an address.
    pub fn classify(&self, address: IpAddr) -> AddressClass {
        if self.is_own(address) {
            return match classify(address) {
                AddressClass::Global | AddressClass::Private => AddressClass::Host,
                other => other,
            };
        }
        classify(address)
    }

    /// Returns whether an address leads to the host itself, in whatever form it is written.
    fn is_own(&self, address: IpAddr) -> bool {
        let translated = match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => translated(address).map(IpAddr::V4),
        };
        let forms = [Some(address), Some(address.to_canonical()), translated];
        forms.into_iter().flatten().any(|form| self.host.contains(&form))
    }

    /// Returns whether an address may be dialed, or the class that forbids it.
    pub fn check(&self, address: IpAddr, allow_private: bool) -> Result<(), AddressClass> {
        match self.classify(address) {
            AddressClass::Global => Ok(()),
            AddressClass::Private if allow_private => Ok(()),
            class => Err(class),
        }
    }
}

/// Returns the addresses of this host's network interfaces, in the network namespace of the calling
/// thread.
pub fn host_addresses() -> nix::Result<Vec<IpAddr>> {
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
            ("1.1.1.1", AddressClass::Global),
            ("140.82.121.4", AddressClass::Global),
            ("172.15.0.1", AddressClass::Global),
            ("172.32.0.1", AddressClass::Global),
            ("100.63.255.255", AddressClass::Global),
            ("100.128.0.1", AddressClass::Global),
            ("198.17.0.1", AddressClass::Global),
            ("198.20.0.1", AddressClass::Global),
            ("0.0.0.0", AddressClass::Unspecified),
            ("0.1.2.3", AddressClass::Unspecified),
            ("10.0.0.1", AddressClass::Private),
            ("172.16.0.1", AddressClass::Private),
            ("172.31.255.255", AddressClass::Private),
            ("192.168.1.1", AddressClass::Private),
            ("100.64.0.1", AddressClass::Private),
            ("127.0.0.1", AddressClass::Loopback),
            ("127.255.255.254", AddressClass::Loopback),
            ("169.254.169.254", AddressClass::LinkLocal),
            ("169.254.170.2", AddressClass::LinkLocal),
            ("168.63.129.16", AddressClass::Metadata),
            ("100.100.100.200", AddressClass::Metadata),
            ("192.0.0.192", AddressClass::Reserved),
            ("192.0.2.1", AddressClass::Reserved),
            ("198.18.0.1", AddressClass::Reserved),
            ("198.19.255.255", AddressClass::Reserved),
            ("198.51.100.1", AddressClass::Reserved),
            ("203.0.113.1", AddressClass::Reserved),
            ("240.0.0.1", AddressClass::Reserved),
            ("224.0.0.1", AddressClass::Multicast),
            ("255.255.255.255", AddressClass::Multicast),
            ("2606:4700::1111", AddressClass::Global),
            ("2001:4860:4860::8888", AddressClass::Global),
            ("::", AddressClass::Unspecified),
            ("::1", AddressClass::Loopback),
            ("::ffff:1.1.1.1", AddressClass::Reserved),
            ("::ffff:169.254.169.254", AddressClass::Reserved),
            ("::1.1.1.1", AddressClass::Reserved),
            ("64:ff9b::1.1.1.1", AddressClass::Global),
            ("64:ff9b::169.254.169.254", AddressClass::LinkLocal),
            ("64:ff9b::10.0.0.1", AddressClass::Private),
            ("64:ff9b:1::1", AddressClass::Reserved),
            ("100::1", AddressClass::Reserved),
            ("2001::1", AddressClass::Reserved),
            ("2001:db8::1", AddressClass::Reserved),
            ("2002:a9fe:a9fe::", AddressClass::Reserved),
            ("3fff::1", AddressClass::Reserved),
            ("fc00::1", AddressClass::Private),
            ("fd12::1", AddressClass::Private),
            ("fd00:ec2::254", AddressClass::Metadata),
            ("fd20:ce::254", AddressClass::Metadata),
            ("fe80::1", AddressClass::LinkLocal),
            ("fec0::1", AddressClass::Reserved),
            ("ff02::1", AddressClass::Multicast),
            ("4000::1", AddressClass::Reserved),
        ] {
            assert_eq!(classify(text.parse().unwrap()), class, "{text}");
        }
    }

    #[test]
    fn private_addresses_need_permission_and_others_are_always_refused() {
        let check = AddressCheck::new(["10.0.0.5".parse().unwrap(), "1.2.3.4".parse().unwrap()]);
        let private = "10.0.0.6".parse().unwrap();
        assert_eq!(check.check(private, false), Err(AddressClass::Private));
        assert_eq!(check.check(private, true), Ok(()));
        for own in ["10.0.0.5", "1.2.3.4"] {
            assert_eq!(check.check(own.parse().unwrap(), true), Err(AddressClass::Host), "{own}");
        }
        for never in ["127.0.0.1", "169.254.169.254", "100.100.100.200", "fd00:ec2::254"] {
            assert!(check.check(never.parse().unwrap(), true).is_err(), "{never}");
        }
    }

    #[test]
    fn this_host_has_loopback_among_its_addresses() {
        let addresses = host_addresses().unwrap();
        assert!(addresses.contains(&IpAddr::from([127, 0, 0, 1])), "{addresses:?}");
    }

    proptest! {
        #[test]
        fn nat64_has_the_class_of_its_ipv4_address(address in any::<u32>()) {
            let v4 = Ipv4Addr::from(address);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            prop_assert_eq!(classify(nat64.into()), classify(v4.into()));
        }

        #[test]
        fn the_hosts_own_address_is_never_dialed_through_nat64(address in any::<u32>()) {
            let v4 = Ipv4Addr::from(address);
            let [a, b, c, d] = v4.octets().map(u16::from);
            let nat64 = Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            let check = AddressCheck::new([v4.into()]);
            prop_assert!(check.check(nat64.into(), true).is_err());
            prop_assert_eq!(check.classify(nat64.into()), check.classify(v4.into()));
        }

        #[test]
        fn ipv4_mapped_addresses_are_never_dialed(address in any::<u32>()) {
            let mapped = Ipv4Addr::from(address).to_ipv6_mapped();
            prop_assert!(AddressCheck::default().check(mapped.into(), true).is_err());
        }
    }
}
