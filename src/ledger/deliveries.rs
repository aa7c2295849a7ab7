//! Webhook deliveries whose effect is recorded.

use rusqlite::params;

use super::jobs::note;
use super::{Delivered, ForgeNote, Ledger, LedgerError};

impl Ledger {
    /// Records a delivery's effect, and by its GUID that it was seen, in one transaction: after a
    /// SIGKILL at any moment a delivery that counts as seen has had its effect.
    ///
    /// A delivery by itself is not in the audit log; its effect is.
    pub fn deliver(
        &mut self,
        guid: &str,
        effect: Option<&ForgeNote<'_>>,
    ) -> Result<Delivered, LedgerError> {
        self.change("record a delivery", |change| {
            let inserted = change.execute(
                "INSERT OR IGNORE INTO deliveries (guid, at) VALUES (?1, ?2)",
                params![guid, change.now],
            )?;
            if inserted == 0 {
                return Ok(Delivered::Before);
            }
            effect.map(|effect| note(change, effect)).transpose().map(Delivered::Now)
        })
    }
}
