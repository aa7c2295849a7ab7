//! The table of pending connections: bounded, with the state of each. Pure; what is stored for a
//! connection is opaque to it.
//!
//! ```text
//!          insert            mark_ready             take
//! (none) ─────────▶ waiting ───────────▶ ready ───────────▶ (none): accepted
//!                      └──────── remove, evict ────────┘──▶ (none)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::segment::{Endpoints, Syn};

/// Divisor of the capacity: one destination may have at most a quarter of the table.
const DESTINATION_SHARE: usize = 4;

/// Connections by their endpoints. `H` is the value of each, `R` the additional value of a ready
/// one.
#[derive(Debug)]
pub struct PendingTable<H, R> {
    entries: HashMap<Endpoints, Entry<H, R>>,
    /// Endpoints by time of arrival.
    by_age: BTreeMap<u64, Endpoints>,
    /// Number of connections of each destination.
    per_destination: HashMap<Ipv4Addr, usize>,
    next: u64,
    capacity: usize,
}

#[derive(Debug)]
struct Entry<H, R> {
    ticket: u64,
    syn: Syn,
    held: H,
    ready: Option<R>,
}

/// The state of the connection that a SYN belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SynState {
    /// The connection is not pending.
    New,
    /// Pending; its destination has not answered yet.
    Waiting,
    /// Pending; its upstream is ready.
    Ready,
}

impl<H, R> PendingTable<H, R> {
    /// Creates an empty table for at most `capacity` connections.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
            per_destination: HashMap::new(),
            next: 0,
            capacity,
        }
    }

    /// Records a SYN. For a pending connection it replaces the previous one: a retransmitted SYN is
    /// identical, and a new client on the same port sends a different one.
    pub fn observe(&mut self, syn: &Syn) -> SynState {
        match self.entries.get_mut(&syn.endpoints()) {
            None => SynState::New,
            Some(entry) => {
                entry.syn = syn.clone();
                if entry.ready.is_some() { SynState::Ready } else { SynState::Waiting }
            }
        }
    }

    /// Returns whether the destination may have another connection, regardless of a full table.
    pub fn has_room_for(&self, to: Ipv4Addr) -> bool {
        let share = (self.capacity / DESTINATION_SHARE).max(1);
        self.per_destination.get(&to).is_none_or(|count| *count < share)
    }

    /// Returns whether one must be evicted before another is inserted.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// Returns the number of pending connections.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Inserts a connection. Returns a ticket that identifies it from now on: its endpoints may
    /// belong to another one later.
    pub fn insert(&mut self, syn: Syn, held: H) -> u64 {
        let endpoints = syn.endpoints();
        self.remove_by_endpoints(&endpoints);
        let ticket = self.next;
        self.next += 1;
        self.by_age.insert(ticket, endpoints);
        *self.per_destination.entry(*endpoints.destination.ip()).or_default() += 1;
        self.entries.insert(endpoints, Entry { ticket, syn, held, ready: None });
        ticket
    }

    /// Marks a connection as ready. Returns the SYN to replay, or `ready` itself if the connection
    /// is no longer pending.
    pub fn mark_ready(&mut self, ticket: u64, ready: R) -> Result<Syn, R> {
        let entry = self.by_age.get(&ticket).and_then(|endpoints| self.entries.get_mut(endpoints));
        let Some(entry) = entry else { return Err(ready) };
        entry.ready = Some(ready);
        Ok(entry.syn.clone())
    }

    /// Removes the connection if it is ready.
    pub fn take(&mut self, endpoints: &Endpoints) -> Option<(H, R)> {
        self.entries.get(endpoints)?.ready.as_ref()?;
        let (_, held, ready) = self.remove_at(endpoints)?;
        Some((held, ready?))
    }

    /// Removes the connection of a ticket, ready or not.
    pub fn remove(&mut self, ticket: u64) -> Option<(Syn, H, Option<R>)> {
        let endpoints = *self.by_age.get(&ticket)?;
        self.remove_at(&endpoints)
    }

    /// Removes a connection by its endpoints, ready or not.
    pub fn remove_by_endpoints(&mut self, endpoints: &Endpoints) -> Option<(H, Option<R>)> {
        self.remove_at(endpoints).map(|(_, held, ready)| (held, ready))
    }

    /// Removes the oldest connection.
    pub fn evict_oldest(&mut self) -> Option<(H, Option<R>)> {
        let (_, endpoints) = self.by_age.first_key_value()?;
        let endpoints = *endpoints;
        self.remove_by_endpoints(&endpoints)
    }

    fn remove_at(&mut self, endpoints: &Endpoints) -> Option<(Syn, H, Option<R>)> {
        let Entry { ticket, syn, held, ready } = self.entries.remove(endpoints)?;
        self.by_age.remove(&ticket);
        if let Some(count) = self.per_destination.get_mut(endpoints.destination.ip()) {
            *count -= 1;
            if *count == 0 {
                self.per_destination.remove(endpoints.destination.ip());
            }
        }
        Some((syn, held, ready))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::super::segment::TcpSegment;
    use super::*;
    use crate::packets::filter::tests::segment;

    const CAPACITY: usize = 16;

    fn syn(port: u8, to: u8, sequence: u8) -> Syn {
        let mut bytes = segment(0x02, 0, [0, 0]);
        (bytes[19], bytes[21], bytes[27]) = (to, port, sequence);
        match TcpSegment::parse(&bytes) {
            Some(TcpSegment::Syn(syn)) => syn,
            other => panic!("{other:?}"),
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Syn(u8, u8, u8),
        Ready(u64),
        Fail(u64),
        Come(u8, u8),
        Reset(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        let ticket = 0_u64..60;
        prop_oneof![
            4 => (0_u8..12, 0_u8..6, any::<u8>()).prop_map(|(a, b, c)| Step::Syn(a, b, c)),
            2 => ticket.clone().prop_map(Step::Ready),
            1 => ticket.prop_map(Step::Fail),
            1 => (0_u8..12, 0_u8..6).prop_map(|(a, b)| Step::Come(a, b)),
            1 => (0_u8..12, 0_u8..6).prop_map(|(a, b)| Step::Reset(a, b)),
        ]
    }

    proptest! {
        /// For any sequence of events: the table and each destination keep their bounds, every
        /// connection is dialed once, and every value is returned once.
        #[test]
        fn no_connection_is_lost_or_stored_twice(steps in prop::collection::vec(step(), 0..400)) {
            let mut table: PendingTable<Rc<()>, u64> = PendingTable::new(CAPACITY);
            let held = Rc::new(());
            let mut dialed = 0_u64;
            for step in steps {
                match step {
                    Step::Syn(port, to, sequence) => {
                        let syn = syn(port, to, sequence);
                        let before = table.len();
                        let to = *syn.endpoints().destination.ip();
                        if table.observe(&syn) != SynState::New || !table.has_room_for(to) {
                            prop_assert_eq!(table.len(), before);
                            continue;
                        }
                        if table.is_full() {
                            prop_assert!(table.evict_oldest().is_some());
                        }
                        prop_assert_eq!(table.insert(syn, Rc::clone(&held)), dialed);
                        dialed += 1;
                    }
                    Step::Ready(ticket) => {
                        let known = table.by_age.contains_key(&ticket);
                        prop_assert_eq!(table.mark_ready(ticket, ticket).is_ok(), known);
                    }
                    Step::Fail(ticket) => {
                        let known = table.by_age.contains_key(&ticket);
                        prop_assert_eq!(table.remove(ticket).is_some(), known);
                    }
                    Step::Come(port, to) => {
                        let endpoints = syn(port, to, 0).endpoints();
                        let is_ready = table.entries.get(&endpoints).and_then(|entry| entry.ready);
                        prop_assert_eq!(table.take(&endpoints).map(|(_, ready)| ready), is_ready);
                    }
                    Step::Reset(port, to) => {
                        let endpoints = syn(port, to, 0).endpoints();
                        table.remove_by_endpoints(&endpoints);
                        prop_assert_eq!(table.observe(&syn(port, to, 0)), SynState::New);
                    }
                }
                prop_assert!(table.len() <= CAPACITY);
                prop_assert_eq!(table.by_age.len(), table.len());
                prop_assert_eq!(table.per_destination.values().sum::<usize>(), table.len());
                let share = 1..=CAPACITY / DESTINATION_SHARE;
                prop_assert!(table.per_destination.values().all(|count| share.contains(count)));
                // One for each entry, and our own.
                prop_assert_eq!(Rc::strong_count(&held), table.len() + 1);
            }
        }
    }

    #[test]
    fn the_last_retransmitted_syn_is_replayed() {
        let mut table: PendingTable<(), ()> = PendingTable::new(CAPACITY);
        let first = syn(1, 1, 1);
        assert_eq!(table.observe(&first), SynState::New);
        let ticket = table.insert(first, ());
        assert_eq!(table.observe(&syn(1, 1, 2)), SynState::Waiting);
        assert_eq!(table.mark_ready(ticket, ()), Ok(syn(1, 1, 2)));
        assert_eq!(table.observe(&syn(1, 1, 3)), SynState::Ready);
        assert!(table.take(&syn(1, 1, 3).endpoints()).is_some());
        assert_eq!(table.mark_ready(ticket, ()), Err(()));
    }

    #[test]
    fn a_flood_to_one_destination_leaves_room_for_others() {
        let mut table: PendingTable<(), ()> = PendingTable::new(CAPACITY);
        for port in 0..200 {
            let syn = syn(port, 1, 0);
            if table.has_room_for(*syn.endpoints().destination.ip()) {
                assert!(!table.is_full());
                table.insert(syn, ());
            }
        }
        assert_eq!(table.len(), CAPACITY / DESTINATION_SHARE);
        let good = syn(1, 2, 0);
        assert!(table.has_room_for(*good.endpoints().destination.ip()) && !table.is_full());
    }
}
