//! Admission of connections: each source gets a share of them, so that no client keeps others out.
//!
//! A source may have its share of connections open. Another one of it waits in a short queue, or
//! replaces an open one on which the server waits for the client. So a stalled client, or many of
//! them from one source, cost other sources nothing, and the same source little.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// The origin of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum ClientSource {
    /// A host: its IPv4 address, or the /64 network of its IPv6 address.
    Address(IpAddr),
    /// A process of this host, by its PID; 0 if unknown.
    Process(i32),
}

impl ClientSource {
    /// Returns the source of a connection from `address`.
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

/// How long a connection stalls before it may be replaced.
pub(super) const STALL_LIMIT: Duration = Duration::from_secs(1);

/// The decision on a queued connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdmissionDecision<K> {
    /// Serve it.
    Serve,
    /// End this open one, and serve the new one then.
    Replace(K),
    /// Wait until an open one has ended.
    Wait,
}

/// An open connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct OpenConnection<K> {
    pub(super) key: K,
    pub(super) source: ClientSource,
    /// How long the server has been waiting for the client to send or receive.
    pub(super) blocked: Duration,
    /// Whether it is being ended.
    pub(super) is_ending: bool,
}

/// Decides on a connection from `source`, with at most `max_connections` open, and at most the
/// [`share`] of them from one source.
pub(super) fn decide<K: Copy>(
    source: ClientSource,
    open: impl Iterator<Item = OpenConnection<K>>,
    max_connections: usize,
) -> AdmissionDecision<K> {
    let open: Vec<_> = open.collect();
    let mut counts = HashMap::<ClientSource, usize>::new();
    for one in &open {
        *counts.entry(one.source).or_default() += 1;
    }
    let own = counts.get(&source).copied().unwrap_or_default();
    let largest = counts.values().copied().max().unwrap_or_default();
    let may_lose = |one: &&OpenConnection<K>| {
        if own >= share(max_connections) {
            one.source == source
        } else {
            // All are in use: the sources with the most connections lose one.
            counts[&one.source] == largest && largest > own
        }
    };
    if own < share(max_connections) && open.len() < max_connections {
        return AdmissionDecision::Serve;
    }
    let candidates = open.iter().filter(may_lose);
    let blocked = candidates.filter(|one| !one.is_ending && one.blocked >= STALL_LIMIT);
    match blocked.max_by_key(|one| one.blocked) {
        Some(one) => AdmissionDecision::Replace(one.key),
        None => AdmissionDecision::Wait,
    }
}

/// Returns the maximum number of connections of one source. Behind a proxy, all are of one.
pub(super) fn share(max_connections: usize) -> usize {
    (max_connections / 4 * 3).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn open(key: usize, source: i32, blocked: u64) -> OpenConnection<usize> {
        let blocked = Duration::from_millis(blocked);
        OpenConnection { key, source: ClientSource::Process(source), blocked, is_ending: false }
    }

    #[test]
    fn hosts_are_distinguished_by_address_or_network() {
        let source = |text: &str| ClientSource::of(text.parse().unwrap());
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.2"), source("192.0.2.1"));
    }

    proptest! {
        #[test]
        fn stalled_clients_keep_no_source_out(
            held in prop::collection::vec((0_i32..3, 0_u64..3_000), 0..=64),
            source in 0_i32..5,
        ) {
            let all = || held.iter().enumerate().map(|(key, (from, blocked))| open(key, *from, *blocked));
            let own = held.iter().filter(|(from, _)| *from == source).count();
            let count = |of: i32| held.iter().filter(|(from, _)| *from == of).count();
            match decide(ClientSource::Process(source), all(), 64) {
                AdmissionDecision::Serve => prop_assert!(own < share(64) && held.len() < 64),
                AdmissionDecision::Replace(key) => {
                    let (from, blocked) = held[key];
                    prop_assert!(blocked >= 1_000);
                    // One of the same source, or of a source with more connections.
                    prop_assert!(from == source || count(from) > own);
                }
                AdmissionDecision::Wait => {
                    prop_assert!(own >= share(64) || held.len() >= 64);
                    let is_stuck = |one: &&(i32, u64)| one.0 == source && one.1 >= 1_000;
                    prop_assert!(own < share(64) || held.iter().find(is_stuck).is_none());
                }
            }
        }
    }
}
