//! Pruning of old rows.

use std::time::Duration;

use rusqlite::params;
use serde::Serialize;
use serde_json::json;

use super::{JobId, Ledger, LedgerError, LedgerReader, Time};

/// How much history the ledger retains. What has not ended is always retained, and so is the audit
/// log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowRetention {
    /// The maximum age of jobs, microVMs and registrations.
    pub age: Duration,
    /// The maximum number of each.
    pub count: u32,
    /// The maximum age of deliveries. GitHub redelivers for three days (its enterprise server for
    /// seven).
    pub deliveries: Duration,
    /// The maximum number of deliveries.
    pub delivery_count: u32,
}

impl Default for RowRetention {
    fn default() -> Self {
        Self {
            age: Duration::from_secs(30 * 24 * 3600),
            count: 500_000,
            deliveries: Duration::from_secs(8 * 24 * 3600),
            delivery_count: 1_000_000,
        }
    }
}

/// The number of pruned rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PruneCounts {
    /// Jobs.
    pub jobs: usize,
    /// `MicroVMs`, with their phases.
    pub microvms: usize,
    /// Registrations.
    pub registrations: usize,
    /// Deliveries.
    pub deliveries: usize,
}

/// The maximum number of rows of a table to prune at a time: some milliseconds of the ledger's only
/// writer.
const BATCH_SIZE: usize = 200;

/// The rows to prune, at most a batch of each table.
#[derive(Debug, Default)]
pub struct OldRows {
    jobs: Vec<JobId>,
    microvms: Vec<String>,
    registrations: Vec<String>,
    deliveries: Vec<String>,
}

impl OldRows {
    /// Returns whether there may be more.
    pub fn is_full(&self) -> bool {
        let rest = [&self.microvms, &self.registrations, &self.deliveries].map(Vec::len);
        rest.into_iter().chain([self.jobs.len()]).any(|count| count >= BATCH_SIZE)
    }
}

/// Selects old rows of a table, by its key and time column: those beyond the age, and the oldest
/// beyond the count.
macro_rules! old_keys {
    ($reader:expr, $table:literal, $key:literal, $time:literal, $age:expr, $count:expr) => {
        $reader.all(
            "find old rows",
            concat!(
                "SELECT ",
                $key,
                " FROM ",
                $table,
                " WHERE ",
                $time,
                " < ?1 UNION SELECT ",
                $key,
                " FROM (SELECT ",
                $key,
                " FROM ",
                $table,
                " WHERE ",
                $time,
                " IS NOT NULL ORDER BY ",
                $time,
                " DESC, ",
                $key,
                " DESC LIMIT -1 OFFSET ?2) LIMIT ?3"
            ),
            params![before(Time::now(), $age), $count, BATCH_SIZE],
            |row| row.get(0),
        )?
    };
}

/// Deletes rows of a table by key, if they have still ended.
macro_rules! delete_rows {
    ($change:expr, $table:literal, $key:literal, $time:literal, $old:expr) => {{
        let sql =
            concat!("DELETE FROM ", $table, " WHERE ", $key, " = ?1 AND ", $time, " IS NOT NULL");
        let mut count = 0;
        for key in $old {
            count += $change.execute(sql, [key])?;
        }
        count
    }};
}

impl LedgerReader {
    /// Returns the rows beyond the retention. It scans whole tables: do not call it in the event
    /// loop.
    pub fn old_rows(&self, keep: &RowRetention) -> Result<OldRows, LedgerError> {
        let (age, count) = (keep.age, keep.count);
        let (hook_age, hook_count) = (keep.deliveries, keep.delivery_count);
        Ok(OldRows {
            jobs: old_keys!(self, "jobs", "id", "ended_at", age, count),
            microvms: old_keys!(self, "microvms", "id", "ended_at", age, count),
            registrations: old_keys!(self, "registrations", "name", "deleted_at", age, count),
            deliveries: old_keys!(self, "deliveries", "guid", "at", hook_age, hook_count),
        })
    }
}

impl Ledger {
    /// Deletes old rows.
    pub fn prune(&mut self, old: &OldRows) -> Result<PruneCounts, LedgerError> {
        self.change("prune old rows", |change| {
            let pruned = PruneCounts {
                jobs: delete_rows!(change, "jobs", "id", "ended_at", &old.jobs),
                microvms: delete_rows!(change, "microvms", "id", "ended_at", &old.microvms),
                registrations: delete_rows!(
                    change,
                    "registrations",
                    "name",
                    "deleted_at",
                    &old.registrations
                ),
                deliveries: delete_rows!(change, "deliveries", "guid", "at", &old.deliveries),
            };
            if pruned != PruneCounts::default() {
                change.audit("ledger.pruned", "ledger", &json!(pruned))?;
            }
            Ok(pruned)
        })
    }
}

fn before(now: Time, age: Duration) -> Time {
    Time(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)))
}
