//! Where the forge has something for a pool that outlives the daemon: a scale set in a runner group.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Ledger, LedgerError};

const PLACES: &str = "forge_places";

/// The places by the pools' names.
pub type Places = BTreeMap<String, BTreeSet<String>>;

impl Ledger {
    /// Keeps that the forge has something for this pool in this place, or has nothing there any
    /// more.
    pub fn note_place(
        &mut self,
        pool: &str,
        place: &str,
        is_there: bool,
    ) -> Result<(), LedgerError> {
        self.change("keep the forge's places", |change| {
            let mut places: Places = change.meta_json(PLACES)?;
            let of_pool = places.entry(pool.to_owned()).or_default();
            let (is_new, action) = if is_there {
                (of_pool.insert(place.to_owned()), "forge.holds")
            } else {
                (of_pool.remove(place), "forge.left")
            };
            if !is_new {
                return Ok(());
            }
            places.retain(|_, places| !places.is_empty());
            change.set_meta_json(PLACES, &places)?;
            change.audit(action, pool, &json!({ "place": place }))
        })
    }

    /// All places that were kept.
    pub fn places(&mut self) -> Result<Places, LedgerError> {
        self.change("read the forge's places", |change| change.meta_json(PLACES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stay_until_they_are_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.places().unwrap(), Places::new());
        ledger.note_place("linux", "", true).unwrap();
        ledger.note_place("linux", "builders", true).unwrap();
        ledger.note_place("linux", "builders", true).unwrap();
        ledger.note_place("linux", "", false).unwrap();
        ledger.note_place("other", "", true).unwrap();
        ledger.note_place("other", "", false).unwrap();
        drop(ledger);
        let mut ledger = Ledger::open(&path).unwrap();
        let kept = Places::from([("linux".to_owned(), BTreeSet::from(["builders".to_owned()]))]);
        assert_eq!(ledger.places().unwrap(), kept);
        let mut actions = Vec::new();
        ledger
            .reader()
            .audit_lines(0, |line| {
                actions.push(line.action.clone());
                Ok::<_, LedgerError>(())
            })
            .unwrap();
        let holds = actions.iter().filter(|action| *action == "forge.holds").count();
        let left = actions.iter().filter(|action| *action == "forge.left").count();
        assert_eq!((holds, left), (3, 2), "{actions:?}");
    }
}
