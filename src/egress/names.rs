//! Synthetic addresses: each name that a guest looks up gets an address of its own, so that a
//! connection to the address says which name is meant.
//!
//! A name keeps its address as long as it is among the last [`CAPACITY`] names used. The address
//! of one that fell out is given to another only after every other address of the range has had
//! its turn, so a client that held on to it is told to look up again rather than sent elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::host::HostName;

/// The range that RFC 2544 sets aside for benchmarks: no address of it is used on any network that
/// a guest may reach.
const BASE: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();

/// A /15.
const SIZE: u32 = 1 << 17;

/// The most names that a microVM has at a time: 6 MiB where each is as long as may be.
pub const CAPACITY: usize = 16_384;

#[derive(Debug)]
struct Entry {
    name: HostName,
    /// When it was used last; 0 is never.
    used: u64,
}

/// The names and addresses of one microVM.
#[derive(Debug, Default)]
pub struct Names {
    offsets: HashMap<HostName, u32>,
    entries: HashMap<u32, Entry>,
    /// Offsets by the time of their last use, oldest first.
    uses: BTreeMap<u64, u32>,
    /// Counts uses.
    clock: u64,
    /// The offset given last.
    last: u32,
}

/// Whether the address is of the synthetic range.
pub fn is_synthetic(address: Ipv4Addr) -> bool {
    address.to_bits() & !(SIZE - 1) == BASE
}

impl Names {
    /// The address that stands for the name from now on.
    pub fn address_of(&mut self, name: &HostName) -> Ipv4Addr {
        let offset = match self.offsets.get(name) {
            Some(offset) => *offset,
            None => self.give(name),
        };
        self.touch(offset);
        Ipv4Addr::from_bits(BASE + offset)
    }

    /// The name that an address stands for.
    pub fn name_of(&mut self, address: Ipv4Addr) -> Option<HostName> {
        let offset = address.to_bits().checked_sub(BASE)?;
        let name = self.entries.get(&offset)?.name.clone();
        self.touch(offset);
        Some(name)
    }

    /// Gives the name the next free address, at the cost of the name used longest ago.
    fn give(&mut self, name: &HostName) -> u32 {
        if self.entries.len() >= CAPACITY
            && let Some((_, oldest)) = self.uses.pop_first()
            && let Some(entry) = self.entries.remove(&oldest)
        {
            self.offsets.remove(&entry.name);
        }
        // There are more addresses than names: one is free. The first and the last of the range
        // look like a network's and a broadcast address, which some clients refuse.
        loop {
            self.last = if self.last >= SIZE - 2 { 1 } else { self.last + 1 };
            if !self.entries.contains_key(&self.last) {
                break;
            }
        }
        self.offsets.insert(name.clone(), self.last);
        self.entries.insert(self.last, Entry { name: name.clone(), used: 0 });
        self.last
    }

    fn touch(&mut self, offset: u32) {
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&offset) {
            self.uses.remove(&entry.used);
            entry.used = self.clock;
            self.uses.insert(self.clock, offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(number: usize) -> HostName {
        HostName::parse(&format!("n{number}.example")).unwrap()
    }

    #[test]
    fn a_name_keeps_its_address_and_the_address_its_name() {
        let mut names = Names::default();
        let first = names.address_of(&name(1));
        let second = names.address_of(&name(2));
        assert_ne!(first, second);
        assert_eq!(names.address_of(&name(1)), first);
        assert_eq!(names.name_of(second), Some(name(2)));
        assert_eq!(names.name_of(Ipv4Addr::new(198, 18, 9, 9)), None);
        assert_eq!(names.name_of(Ipv4Addr::new(1, 1, 1, 1)), None);
        assert_eq!(names.name_of(Ipv4Addr::BROADCAST), None);
    }

    #[test]
    fn the_name_used_longest_ago_goes_and_its_address_rests() {
        let mut names = Names::default();
        let first = names.address_of(&name(0));
        let second = names.address_of(&name(1));
        for number in 2..CAPACITY {
            names.address_of(&name(number));
        }
        names.name_of(first);
        let added = names.address_of(&name(CAPACITY));
        assert_eq!(names.name_of(first), Some(name(0)));
        assert_eq!(names.name_of(second), None);
        assert_ne!(added, second);
        assert_eq!(names.entries.len(), CAPACITY);
        assert_eq!(names.uses.len(), CAPACITY);
        assert_eq!(names.offsets.len(), CAPACITY);
    }

    #[test]
    fn the_range_can_be_gone_through_more_than_once() {
        let mut names = Names::default();
        for number in 0..SIZE as usize + 10 {
            let address = names.address_of(&name(number));
            assert!(is_synthetic(address));
            assert!(!matches!(address.octets(), [198, 18, 0, 0] | [198, 19, 255, 255]));
        }
    }

    proptest! {
        #[test]
        fn an_address_never_stands_for_another_name(
            steps in prop::collection::vec((0_usize..50, any::<bool>()), 1..200)
        ) {
            let mut names = Names::default();
            let mut known = HashMap::new();
            for (number, back) in steps {
                if back {
                    if let Some(address) = known.get(&number) {
                        prop_assert_eq!(names.name_of(*address), Some(name(number)));
                    }
                } else {
                    let address = names.address_of(&name(number));
                    prop_assert_eq!(*known.entry(number).or_insert(address), address);
                }
            }
        }

        #[test]
        fn the_synthetic_range_is_the_benchmark_range(address in any::<u32>()) {
            let address = Ipv4Addr::from(address);
            let expected = matches!(address.octets(), [198, 18..=19, ..]);
            prop_assert_eq!(is_synthetic(address), expected);
        }
    }
}
