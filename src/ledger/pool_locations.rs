//! Where the forge has something for a pool that outlives the daemon: a scale set in a runner
//! group.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Ledger, LedgerError};

const LOCATIONS: &str = "forge_places";

/// Locations by pool name.
pub type PoolLocations = BTreeMap<String, BTreeSet<String>>;

impl Ledger {
    /// Records that the forge has something for this pool at this location, or no longer has.
    pub fn record_location(
        &mut self,
        pool: &str,
        location: &str,
        is_there: bool,
    ) -> Result<(), LedgerError> {
        self.change("record the forge's locations", |change| {
            let mut locations: PoolLocations = change.meta_json(LOCATIONS)?;
            let of_pool = locations.entry(pool.to_owned()).or_default();
            let (is_new, action) = if is_there {
                (of_pool.insert(location.to_owned()), "forge.holds")
            } else {
                (of_pool.remove(location), "forge.left")
            };
            if !is_new {
                return Ok(());
            }
            locations.retain(|_, locations| !locations.is_empty());
            change.set_meta_json(LOCATIONS, &locations)?;
            change.audit(action, pool, &json!({ "place": location }))
        })
    }

    /// Returns all recorded locations.
    pub fn locations(&mut self) -> Result<PoolLocations, LedgerError> {
        self.change("read the forge's locations", |change| change.meta_json(LOCATIONS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_stay_until_they_are_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.locations().unwrap(), PoolLocations::new());
        ledger.record_location("linux", "", true).unwrap();
        ledger.record_location("linux", "builders", true).unwrap();
        ledger.record_location("linux", "builders", true).unwrap();
        ledger.record_location("linux", "", false).unwrap();
        ledger.record_location("other", "", true).unwrap();
        ledger.record_location("other", "", false).unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(&path).unwrap();
        let expected =
            PoolLocations::from([("linux".to_owned(), BTreeSet::from(["builders".to_owned()]))]);
        assert_eq!(ledger.locations().unwrap(), expected);
        let mut actions = Vec::new();
        ledger
            .reader()
            .audit_entries(0, |line| {
                actions.push(line.action.clone());
                Ok::<_, LedgerError>(())
            })
            .unwrap();
        let holds = actions.iter().filter(|action| *action == "forge.holds").count();
        let removed = actions.iter().filter(|action| *action == "forge.left").count();
        assert_eq!((holds, removed), (3, 2), "{actions:?}");
    }
}
