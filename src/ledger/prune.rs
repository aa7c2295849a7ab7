//! Forgetting what is old.

use std::time::Duration;

use rusqlite::params;
use serde::Serialize;
use serde_json::json;

use super::{Ledger, LedgerError, Time};

/// How long and how many are kept of what is over. What is not over is kept; so is the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Jobs, microVMs and registrations: so long.
    pub age: Duration,
    /// So many of each.
    pub count: u32,
    /// Deliveries: so long. GitHub redelivers for three days (its enterprise server for seven).
    pub deliveries: Duration,
    /// So many deliveries.
    pub delivery_count: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(30 * 24 * 3600),
            count: 500_000,
            deliveries: Duration::from_secs(8 * 24 * 3600),
            delivery_count: 1_000_000,
        }
    }
}

/// How many were forgotten.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Jobs.
    pub jobs: usize,
    /// Of microVMs, with their transitions.
    pub microvms: usize,
    /// Registrations.
    pub registrations: usize,
    /// Deliveries.
    pub deliveries: usize,
}

/// Removes from a table, by its key and the column of its time: those that are old, and the oldest
/// beyond a count.
macro_rules! prune {
    ($change:expr, $table:literal, $key:literal, $time:literal, $age:expr, $count:expr) => {
        $change.execute(
            concat!("DELETE FROM ", $table, " WHERE ", $time, " < ?1"),
            params![before($change.now, $age)],
        )? + $change.execute(
            concat!(
                "DELETE FROM ",
                $table,
                " WHERE ",
                $key,
                " IN (SELECT ",
                $key,
                " FROM ",
                $table,
                " WHERE ",
                $time,
                " IS NOT NULL ORDER BY ",
                $time,
                " DESC, ",
                $key,
                " DESC LIMIT -1 OFFSET ?1)"
            ),
            params![$count],
        )?
    };
}

impl Ledger {
    /// Forgets what is older or more than is kept.
    pub fn prune(&mut self, keep: &Retention) -> Result<Pruned, LedgerError> {
        self.change("forget what is old", |change| {
            let (age, count) = (keep.age, keep.count);
            let (hook_age, hook_count) = (keep.deliveries, keep.delivery_count);
            let pruned = Pruned {
                jobs: prune!(change, "jobs", "id", "ended_at", age, count),
                microvms: prune!(change, "microvms", "id", "ended_at", age, count),
                registrations: prune!(change, "registrations", "name", "deleted_at", age, count),
                deliveries: prune!(change, "deliveries", "guid", "at", hook_age, hook_count),
            };
            if pruned != Pruned::default() {
                change.audit("ledger.pruned", "ledger", &json!(pruned))?;
            }
            Ok(pruned)
        })
    }
}

fn before(now: Time, age: Duration) -> Time {
    Time(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}
