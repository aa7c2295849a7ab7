//! Who is served: a share of the connections for each source, so that nobody keeps others out.
//!
//! A source may have its share open. One more of it waits in a short queue, unless one that is open
//! has made the server wait for it: that one ends in its favor. So a client that stands still, or
//! many of them from one source, cost other sources nothing, and the same source little.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A host: its IPv4 address, or the network of its IPv6 address, which a host has for itself.
    Address(IpAddr),
    /// A process of this host, by its number; of a process that is not known, 0.
    Process(i32),
}

impl Source {
    /// The source of a connection from an address.
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) & (u128::MAX << 64);
                Self::Address(Ipv6Addr::from(network).into())
            }
            v4 @ IpAddr::V4(_) => Self::Address(v4),
        }
    }
}

/// How long a client makes the server wait before another may have its place.
pub(super) const STANDSTILL: Duration = Duration::from_secs(1);

/// What is decided of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision<K> {
    /// It is served.
    Serve,
    /// It is served once this other one has ended, which is told to.
    Instead(K),
    /// It waits until one has ended.
    Wait,
}

/// An open connection, as a decision sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Open<K> {
    pub(super) key: K,
    pub(super) source: Source,
    /// How long the server has waited for it to send or to take something.
    pub(super) blocked: Duration,
    /// Whether it was told to end.
    pub(super) ending: bool,
}

/// Decides on a connection of `source`, where at most `most` may be open, and the [`share`] of them
/// from one source.
pub(super) fn decide<K: Copy>(
    source: Source,
    open: impl Iterator<Item = Open<K>>,
    most: usize,
) -> Decision<K> {
    let open: Vec<_> = open.collect();
    let mut counts = HashMap::<Source, usize>::new();
    for one in &open {
        *counts.entry(one.source).or_default() += 1;
    }
    let own = counts.get(&source).copied().unwrap_or_default();
    let largest = counts.values().copied().max().unwrap_or_default();
    let loses = |one: &&Open<K>| {
        if own >= share(most) {
            one.source == source
        } else {
            // Everything is taken: those who have the most give way.
            counts[&one.source] == largest && largest > own
        }
    };
    if own < share(most) && open.len() < most {
        return Decision::Serve;
    }
    let candidates = open.iter().filter(loses);
    let blocked = candidates.filter(|one| !one.ending && one.blocked >= STANDSTILL);
    match blocked.max_by_key(|one| one.blocked) {
        Some(one) => Decision::Instead(one.key),
        None => Decision::Wait,
    }
}

/// How many connections of one source are served at a time: behind a proxy all are of one.
pub(super) fn share(most: usize) -> usize {
    (most / 4 * 3).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(key: usize, source: i32, blocked: u64) -> Open<usize> {
        let blocked = Duration::from_millis(blocked);
        Open { key, source: Source::Process(source), blocked, ending: false }
    }

    #[test]
    fn hosts_are_told_apart_by_address_or_network() {
        let source = |text: &str| Source::of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn nobody_is_kept_out_by_who_stands_still(
            held in prop::collection::vec((0_i32..3, 0_u64..3_000), 0..=64),
            source in 0_i32..5,
        ) {
            let all = || held.iter().enumerate().map(|(key, (from, blocked))| open(key, *from, *blocked));
            let own = held.iter().filter(|(from, _)| *from == source).count();
            let count = |of: i32| held.iter().filter(|(from, _)| *from == of).count();
            match decide(Source::Process(source), all(), 64) {
                Decision::Serve => prop_assert!(own < share(64) && held.len() < 64),
                Decision::Instead(key) => {
                    let (from, blocked) = held[key];
                    prop_assert!(blocked >= 1_000);
                    // Its own, or one of those who have more than it.
                    prop_assert!(from == source || count(from) > own);
                }
                Decision::Wait => {
                    prop_assert!(own >= share(64) || held.len() >= 64);
                    let is_stuck = |one: &&(i32, u64)| one.0 == source && one.1 >= 1_000;
                    prop_assert!(own < share(64) || held.iter().find(is_stuck).is_none());
                }
            }
        }
    }
}
