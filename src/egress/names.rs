//! Synthetic addresses: each name that a guest looks up gets its own address, so that a connection
//! to the address identifies the name.
//!
//! A name keeps its address while it is among the last [`CAPACITY`] names used. An evicted name's
//! address is reused only after every other address of the range, so a client that still uses it
//! must look up again and is not sent elsewhere.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use super::host::HostName;

/// The range that RFC 2544 reserves for benchmarks: no network that a guest may reach uses it.
const BASE: u32 = Ipv4Addr::new(198, 18, 0, 0).to_bits();

/// A /15.
const SIZE: u32 = 1 << 17;

/// Maximum number of names of a microVM: 6 MiB if each has the maximum length.
pub const CAPACITY: usize = 16_384;

#[derive(Debug)]
struct Entry {
    name: HostName,
    /// The last use; 0 is never.
    used: u64,
}

/// The synthetic addresses of one microVM.
#[derive(Debug, Default)]
pub struct NameTable {
    offsets: HashMap<HostName, u32>,
    entries: HashMap<u32, Entry>,
    /// Offsets by last use, oldest first.
    uses: BTreeMap<u64, u32>,
    /// A counter of uses.
    clock: u64,
    /// The last assigned offset.
    last: u32,
}

/// Returns whether the address is in the synthetic range.
pub fn is_synthetic(address: Ipv4Addr) -> bool {
    address.to_bits() & !(SIZE - 1) == BASE
}

impl NameTable {
    /// Returns the name's address, and assigns one if needed.
    pub fn address_of(&mut self, name: &HostName) -> Ipv4Addr {
        let offset = match self.offsets.get(name) {
            Some(offset) => *offset,
            None => self.assign(name),
        };
        self.touch(offset);
        Ipv4Addr::from_bits(BASE + offset)
    }

    /// Returns the name of an address.
    pub fn name_of(&mut self, address: Ipv4Addr) -> Option<HostName> {
        let offset = address.to_bits().checked_sub(BASE)?;
        let name = self.entries.get(&offset)?.name.clone();
        self.touch(offset);
        Some(name)
    }

    /// Assigns the next free address, and evicts the least recently used name if needed.
    fn assign(&mut self, name: &HostName) -> u32 {
        if self.entries.len() >= CAPACITY
            && let Some((_, oldest)) = self.uses.pop_first()
            && let Some(entry) = self.entries.remove(&oldest)
        {
            self.offsets.remove(&entry.name);
        }
        // There are more addresses than names, so one is free. The first and the last of the range
        // look like network and broadcast addresses, which some clients refuse.
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
        let mut names = NameTable::default();
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
    fn the_least_recently_used_name_is_evicted_and_its_address_rests() {
        let mut names = NameTable::default();
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
    fn the_range_wraps_around() {
        let mut names = NameTable::default();
        for number in 0..SIZE as usize + 10 {
            let address = names.address_of(&name(number));
            assert!(is_synthetic(address));
            assert!(!matches!(address.octets(), [198, 18, 0, 0] | [198, 19, 255, 255]));
        }
    }

    proptest! {
        #[test]
        fn an_address_never_maps_to_another_name(
            steps in prop::collection::vec((0_usize..50, any::<bool>()), 1..200)
        ) {
            let mut names = NameTable::default();
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
