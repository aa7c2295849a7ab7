//! Forgetting what is old.

use std::time::Duration;

use rusqlite::params;
use serde::Serialize;
use serde_json::json;

use super::{JobId, Ledger, LedgerError, Reader, Time};

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

/// How many rows of a table are forgotten at a time: some milliseconds of the ledger's one writer.
const AT_ONCE: usize = 200;

/// What may be forgotten, no more of each than are forgotten at a time.
#[derive(Debug, Default)]
pub struct Old {
    jobs: Vec<JobId>,
    microvms: Vec<String>,
    registrations: Vec<String>,
    deliveries: Vec<String>,
}

impl Old {
    /// Whether there may be more.
    pub fn is_full(&self) -> bool {
        let rest = [&self.microvms, &self.registrations, &self.deliveries].map(Vec::len);
        rest.into_iter().chain([self.jobs.len()]).any(|count| count >= AT_ONCE)
    }
}

/// Of a table, by its key and the column of its time: those that are old, and the oldest beyond a
/// count.
macro_rules! old {
    ($reader:expr, $table:literal, $key:literal, $time:literal, $age:expr, $count:expr) => {
        $reader.all(
            "look for what is old",
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
            params![before(Time::now(), $age), $count, AT_ONCE],
            |row| row.get(0),
        )?
    };
}

/// Removes rows of a table by their keys, where they are still over.
macro_rules! forget {
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

impl Reader {
    /// What is older or more than is kept. It looks at much, and so is for no loop.
    pub fn old(&self, keep: &Retention) -> Result<Old, LedgerError> {
        let (age, count) = (keep.age, keep.count);
        let (hook_age, hook_count) = (keep.deliveries, keep.delivery_count);
        Ok(Old {
            jobs: old!(self, "jobs", "id", "ended_at", age, count),
            microvms: old!(self, "microvms", "id", "ended_at", age, count),
            registrations: old!(self, "registrations", "name", "deleted_at", age, count),
            deliveries: old!(self, "deliveries", "guid", "at", hook_age, hook_count),
        })
    }
}

impl Ledger {
    /// Forgets what is old.
    pub fn forget(&mut self, old: &Old) -> Result<Pruned, LedgerError> {
        self.change("forget what is old", |change| {
            let pruned = Pruned {
                jobs: forget!(change, "jobs", "id", "ended_at", &old.jobs),
                microvms: forget!(change, "microvms", "id", "ended_at", &old.microvms),
                registrations: forget!(
                    change,
                    "registrations",
                    "name",
                    "deleted_at",
                    &old.registrations
                ),
                deliveries: forget!(change, "deliveries", "guid", "at", &old.deliveries),
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
