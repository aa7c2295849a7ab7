//! The domain names that GitHub listed last, for use while GitHub does not respond.

use std::collections::BTreeSet;

use serde_json::json;

use super::{Ledger, LedgerError};

const NAMES: &str = "github_names";

impl Ledger {
    /// Records the names from GitHub's list. Returns whether they have changed.
    pub fn record_github_names(&mut self, names: &BTreeSet<String>) -> Result<bool, LedgerError> {
        let before = self.github_names()?;
        if before == *names {
            return Ok(false);
        }
        let detail = json!({
            "added": names.difference(&before).collect::<Vec<_>>(),
            "removed": before.difference(names).collect::<Vec<_>>(),
        });
        self.change("record GitHub's names", |change| {
            change.set_meta_json(NAMES, names)?;
            change.audit("egress.names", "github", &detail)
        })?;
        Ok(true)
    }

    /// Returns the names that were recorded last.
    pub fn github_names(&mut self) -> Result<BTreeSet<String>, LedgerError> {
        self.change("read GitHub's names", |change| change.meta_json(NAMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_list_stays_and_each_change_is_audited_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.db");
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.github_names().unwrap(), BTreeSet::new());
        assert!(!ledger.record_github_names(&BTreeSet::new()).unwrap());
        assert!(ledger.record_github_names(&of(&["a", "b"])).unwrap());
        assert!(!ledger.record_github_names(&of(&["b", "a"])).unwrap());
        assert!(ledger.record_github_names(&of(&["b", "c"])).unwrap());
        drop(ledger);
        let mut ledger = Ledger::open(&path).unwrap();
        assert_eq!(ledger.github_names().unwrap(), of(&["b", "c"]));
        let mut details = Vec::new();
        let take = |line: &crate::audit::AuditEntry| {
            if line.action == "egress.names" {
                details.push(line.detail.clone());
            }
            Ok::<_, LedgerError>(())
        };
        ledger.reader().audit_entries(0, take).unwrap();
        assert_eq!(
            details,
            [r#"{"added":["a","b"],"removed":[]}"#, r#"{"added":["c"],"removed":["a"]}"#]
        );
    }
}
