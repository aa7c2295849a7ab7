//! Which connections are held: a table with a bound, and what becomes of each. Pure; it knows what is
//! held of a connection only as values that it keeps and gives back.
//!
//! ```text
//!          insert              ready               take
//! (none) ─────────▶ waiting ───────────▶ ready ───────────▶ (none): the guest has come
//!                      └─── remove, forget, displace ──┘──▶ (none)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::segment::{Ends, Syn};

/// The part of the table that one destination may have.
const SHARE: usize = 4;

/// Connections by both their ends. `H` is what is held of each, `R` what a ready one has besides.
#[derive(Debug)]
pub struct Table<H, R> {
    entries: HashMap<Ends, Entry<H, R>>,
    /// By the time at which they came.
    order: BTreeMap<u64, Ends>,
    /// How many each destination has.
    shares: HashMap<Ipv4Addr, usize>,
    next: u64,
    most: usize,
}

#[derive(Debug)]
struct Entry<H, R> {
    ticket: u64,
    syn: Syn,
    held: H,
    ready: Option<R>,
}

/// What a SYN is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meeting {
    /// A connection that is not held.
    New,
    /// One whose destination has not answered yet.
    Waiting,
    /// One whose guest may be answered.
    Ready,
}

impl<H, R> Table<H, R> {
    /// An empty one for at most so many connections.
    pub fn new(most: usize) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            shares: HashMap::new(),
            next: 0,
            most,
        }
    }

    /// Notes that a SYN has come. One of a connection that is held takes the place of the last: a
    /// client that sends it again sends the same, and another client at its port another.
    pub fn meet(&mut self, syn: &Syn) -> Meeting {
        match self.entries.get_mut(&syn.ends()) {
            None => Meeting::New,
            Some(entry) => {
                entry.syn = syn.clone();
                if entry.ready.is_some() { Meeting::Ready } else { Meeting::Waiting }
            }
        }
    }

    /// Whether the destination may have one more, however full the table is.
    pub fn may_add(&self, to: Ipv4Addr) -> bool {
        let share = (self.most / SHARE).max(1);
        self.shares.get(&to).is_none_or(|count| *count < share)
    }

    /// Whether another one must go first.
    pub fn is_full(&self) -> bool {
        self.entries.len() >= self.most
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Holds a connection. Gives the ticket by which it is known from now on: its ends may be those
    /// of another one later.
    pub fn insert(&mut self, syn: Syn, held: H) -> u64 {
        let ends = syn.ends();
        self.forget(&ends);
        let ticket = self.next;
        self.next += 1;
        self.order.insert(ticket, ends);
        *self.shares.entry(*ends.to.ip()).or_default() += 1;
        self.entries.insert(ends, Entry { ticket, syn, held, ready: None });
        ticket
    }

    /// Notes that the destination has answered. Gives the SYN to answer, or back what it came with
    /// where the connection is no longer held.
    pub fn ready(&mut self, ticket: u64, ready: R) -> Result<Syn, R> {
        let entry = self.order.get(&ticket).and_then(|ends| self.entries.get_mut(ends));
        let Some(entry) = entry else { return Err(ready) };
        entry.ready = Some(ready);
        Ok(entry.syn.clone())
    }

    /// Takes the connection that its guest has come for, if it is ready.
    pub fn take(&mut self, ends: &Ends) -> Option<(H, R)> {
        self.entries.get(ends)?.ready.as_ref()?;
        let (_, held, ready) = self.remove_at(ends)?;
        Some((held, ready?))
    }

    /// Takes the connection of a ticket, ready or not.
    pub fn remove(&mut self, ticket: u64) -> Option<(Syn, H, Option<R>)> {
        let ends = *self.order.get(&ticket)?;
        self.remove_at(&ends)
    }

    /// Takes a connection by its ends, ready or not.
    pub fn forget(&mut self, ends: &Ends) -> Option<(H, Option<R>)> {
        self.remove_at(ends).map(|(_, held, ready)| (held, ready))
    }

    /// Takes the oldest one.
    pub fn displace(&mut self) -> Option<(H, Option<R>)> {
        let (_, ends) = self.order.first_key_value()?;
        let ends = *ends;
        self.forget(&ends)
    }

    fn remove_at(&mut self, ends: &Ends) -> Option<(Syn, H, Option<R>)> {
        let Entry { ticket, syn, held, ready } = self.entries.remove(ends)?;
        self.order.remove(&ticket);
        if let Some(count) = self.shares.get_mut(ends.to.ip()) {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(ends.to.ip());
            }
        }
        Some((syn, held, ready))
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::super::segment::Segment;
    use super::*;
    use crate::egress::packets::filter::tests::segment;

    const MOST: usize = 16;

    fn syn(port: u8, to: u8, sequence: u8) -> Syn {
        let mut bytes = segment(0x02, 0, [0, 0]);
        (bytes[19], bytes[21], bytes[27]) = (to, port, sequence);
        match Segment::read(&bytes) {
            Some(Segment::Syn(syn)) => syn,
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
        /// Whatever comes in whatever order: the table has its bound, a destination its share, every
        /// connection is dialled once, and what is held is given back once.
        #[test]
        fn nothing_is_lost_nor_held_twice(steps in prop::collection::vec(step(), 0..400)) {
            let mut table: Table<Rc<()>, u64> = Table::new(MOST);
            let held = Rc::new(());
            let mut dialled = 0_u64;
            for step in steps {
                match step {
                    Step::Syn(port, to, sequence) => {
                        let syn = syn(port, to, sequence);
                        let before = table.len();
                        if table.meet(&syn) != Meeting::New || !table.may_add(*syn.ends().to.ip()) {
                            prop_assert_eq!(table.len(), before);
                            continue;
                        }
                        if table.is_full() {
                            prop_assert!(table.displace().is_some());
                        }
                        prop_assert_eq!(table.insert(syn, Rc::clone(&held)), dialled);
                        dialled += 1;
                    }
                    Step::Ready(ticket) => {
                        let known = table.order.contains_key(&ticket);
                        prop_assert_eq!(table.ready(ticket, ticket).is_ok(), known);
                    }
                    Step::Fail(ticket) => {
                        let known = table.order.contains_key(&ticket);
                        prop_assert_eq!(table.remove(ticket).is_some(), known);
                    }
                    Step::Come(port, to) => {
                        let ends = syn(port, to, 0).ends();
                        let is_ready = table.entries.get(&ends).and_then(|entry| entry.ready);
                        prop_assert_eq!(table.take(&ends).map(|(_, ready)| ready), is_ready);
                    }
                    Step::Reset(port, to) => {
                        let ends = syn(port, to, 0).ends();
                        table.forget(&ends);
                        prop_assert_eq!(table.meet(&syn(port, to, 0)), Meeting::New);
                    }
                }
                prop_assert!(table.len() <= MOST);
                prop_assert_eq!(table.order.len(), table.len());
                prop_assert_eq!(table.shares.values().sum::<usize>(), table.len());
                prop_assert!(table.shares.values().all(|count| (1..=MOST / SHARE).contains(count)));
                // One for each entry, and ours.
                prop_assert_eq!(Rc::strong_count(&held), table.len() + 1);
            }
        }
    }

    #[test]
    fn a_syn_that_is_sent_again_is_the_one_that_is_answered() {
        let mut table: Table<(), ()> = Table::new(MOST);
        let first = syn(1, 1, 1);
        assert_eq!(table.meet(&first), Meeting::New);
        let ticket = table.insert(first, ());
        assert_eq!(table.meet(&syn(1, 1, 2)), Meeting::Waiting);
        assert_eq!(table.ready(ticket, ()), Ok(syn(1, 1, 2)));
        assert_eq!(table.meet(&syn(1, 1, 3)), Meeting::Ready);
        assert!(table.take(&syn(1, 1, 3).ends()).is_some());
        assert_eq!(table.ready(ticket, ()), Err(()));
    }

    #[test]
    fn a_flood_for_one_destination_leaves_room_for_others() {
        let mut table: Table<(), ()> = Table::new(MOST);
        for port in 0..200 {
            let syn = syn(port, 1, 0);
            if table.may_add(*syn.ends().to.ip()) {
                assert!(!table.is_full());
                table.insert(syn, ());
            }
        }
        assert_eq!(table.len(), MOST / SHARE);
        let good = syn(1, 2, 0);
        assert!(table.may_add(*good.ends().to.ip()) && !table.is_full());
    }
}
