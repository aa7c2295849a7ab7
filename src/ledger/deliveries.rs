//! Webhook deliveries with a recorded effect.

use rusqlite::params;

use super::jobs::record_update;
use super::{DeliveryEffect, ForgeJobUpdate, Ledger, LedgerError};

impl Ledger {
    /// Records a delivery's GUID and its effect in one transaction: after a SIGKILL at any moment,
    /// a delivery that counts as seen has had its effect.
    ///
    /// The audit log has the effect, not the delivery itself.
    pub fn record_delivery(
        &mut self,
        guid: &str,
        effect: Option<&ForgeJobUpdate<'_>>,
    ) -> Result<DeliveryEffect, LedgerError> {
        self.change("record a delivery", |change| {
            let inserted = change.execute(
                "INSERT OR IGNORE INTO deliveries (guid, at) VALUES (?1, ?2)",
                params![guid, change.now],
            )?;
            if inserted == 0 {
                return Ok(DeliveryEffect::AlreadyRecorded);
            }
            effect
                .map(|effect| record_update(change, effect))
                .transpose()
                .map(DeliveryEffect::Recorded)
        })
    }
}
