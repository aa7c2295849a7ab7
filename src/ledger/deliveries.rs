//! Webhooks that were taken.

use rusqlite::params;

use super::{Ledger, LedgerError};

impl Ledger {
    /// Takes down a delivery, by its GUID. Returns whether it is the first of that GUID.
    ///
    /// Not in the audit log: it changes nothing but itself.
    pub fn seen(&mut self, guid: &str) -> Result<bool, LedgerError> {
        self.change("note a delivery", |change| {
            let inserted = change.execute(
                "INSERT OR IGNORE INTO deliveries (guid, at) VALUES (?1, ?2)",
                params![guid, change.now],
            )?;
            Ok(inserted > 0)
        })
    }
}
