//! The egress of microVMs: totals by destination.

use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::open::Change;
use super::{Ledger, LedgerError, LedgerReader};

/// The maximum number of rows of one microVM: the shepherd's limit, plus a row for each verdict and
/// cause of destinations without a row.
const MAX_ROWS: usize = 640;

/// A destination of a microVM, with one verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DestinationRecord {
    /// The name or address as the guest sent it.
    pub host: String,
    /// The port; 0 for protocols without ports.
    pub port: u16,
    /// The verdict.
    pub verdict: String,
    /// The cause of a refusal.
    pub cause: Option<String>,
    /// Number of connections, requests, lookups or packets.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

/// The totals of a microVM's egress, including destinations without a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct VerdictTotals {
    /// Connections, requests, lookups and packets that passed.
    pub allowed: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those that would be refused if the policy were enforced.
    pub would_refuse: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
    /// Destinations without a row of their own.
    pub omitted: u64,
    /// Lines missing from the egress record.
    pub unrecorded: u64,
}

impl VerdictTotals {
    fn add(&mut self, verdict: &str, [connections, up, down]: [u64; 3]) {
        let sum = match verdict {
            "allowed" => &mut self.allowed,
            "would-refuse" => &mut self.would_refuse,
            _ => &mut self.refused,
        };
        for (sum, more) in [(sum, connections), (&mut self.up, up), (&mut self.down, down)] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// The egress of a microVM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressSummary {
    /// The totals.
    pub verdicts: VerdictTotals,
    /// One row per destination, in display order.
    pub destinations: Vec<DestinationRecord>,
}

impl Ledger {
    /// Records the egress of a microVM. A shepherd may report it again after a reconnect: the first
    /// report counts.
    pub fn record_egress(
        &mut self,
        microvm: &str,
        egress: &EgressSummary,
    ) -> Result<(), LedgerError> {
        let EgressSummary { mut verdicts, destinations } = egress.clone();
        // A shepherd reports fewer; this does not rely on it.
        let row_count = destinations.len().min(MAX_ROWS);
        verdicts.omitted = verdicts.omitted.saturating_add((destinations.len() - row_count) as u64);
        self.change("record the egress of a microVM", |change| {
            let known = "SELECT 1 FROM egress WHERE microvm = ?1
                UNION ALL SELECT 1 FROM egress_totals WHERE microvm = ?1 LIMIT 1";
            let is_known = change.first(known, [microvm], |_| Ok(()))?.is_some();
            if is_known || (row_count == 0 && verdicts == VerdictTotals::default()) {
                return Ok(());
            }
            insert_totals(change, microvm, &verdicts)?;
            for (row, one) in destinations[..row_count].iter().enumerate() {
                change.execute(
                    "INSERT INTO egress
                         (microvm, row, host, port, verdict, cause, connections, up, down)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                    params![
                        microvm,
                        row,
                        one.host,
                        one.port,
                        one.verdict,
                        one.cause,
                        bounded(one.connections),
                        bounded(one.up),
                        bounded(one.down)
                    ],
                )?;
            }
            change.audit("microvm.egress", microvm, &json!(verdicts))
        })
    }
}

fn insert_totals(
    change: &Change<'_>,
    microvm: &str,
    verdicts: &VerdictTotals,
) -> Result<(), LedgerError> {
    let VerdictTotals { allowed, refused, would_refuse, up, down, omitted, unrecorded } = *verdicts;
    change.execute(
        "INSERT INTO egress_totals
             (microvm, allowed, refused, would_refuse, up, down, omitted, unrecorded)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![
            microvm,
            bounded(allowed),
            bounded(refused),
            bounded(would_refuse),
            bounded(up),
            bounded(down),
            bounded(omitted),
            bounded(unrecorded)
        ],
    )?;
    Ok(())
}

/// Limits a number to what `SQLite` can store.
fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl LedgerReader {
    /// Returns the egress of a microVM; `None` if there was none, and before its end.
    pub fn egress(&self, microvm: &str) -> Result<Option<EgressSummary>, LedgerError> {
        let Some(verdicts) = self.verdicts(microvm)? else { return Ok(None) };
        let sql = "SELECT host, port, verdict, cause, connections, up, down FROM egress
            WHERE microvm = ?1 ORDER BY row";
        let destinations = self.all("list the egress of a microVM", sql, [microvm], |row| {
            Ok(DestinationRecord {
                host: row.get(0)?,
                port: row.get(1)?,
                verdict: row.get(2)?,
                cause: row.get(3)?,
                connections: row.get(4)?,
                up: row.get(5)?,
                down: row.get(6)?,
            })
        })?;
        Ok(Some(EgressSummary { verdicts, destinations }))
    }

    /// Returns the destinations that the policy refused, with port and cause.
    pub fn refused_destinations(
        &self,
        microvm: &str,
    ) -> Result<Vec<(String, u16, String)>, LedgerError> {
        let sql = "SELECT host, port, cause FROM egress
            WHERE microvm = ?1 AND verdict = 'refused' AND cause IN ('no-rule', 'port', 'denied')
            ORDER BY row";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.all("list the refused destinations of a microVM", sql, [microvm], read)
    }

    /// Returns the totals of a microVM's egress.
    pub fn verdicts(&self, microvm: &str) -> Result<Option<VerdictTotals>, LedgerError> {
        let sql = "SELECT allowed, refused, would_refuse, up, down, omitted, unrecorded
            FROM egress_totals WHERE microvm = ?1";
        let totals = self.all("read the egress totals of a microVM", sql, [microvm], |row| {
            Ok(VerdictTotals {
                allowed: row.get(0)?,
                refused: row.get(1)?,
                would_refuse: row.get(2)?,
                up: row.get(3)?,
                down: row.get(4)?,
                omitted: row.get(5)?,
                unrecorded: row.get(6)?,
            })
        })?;
        if let Some(verdicts) = totals.first() {
            return Ok(Some(*verdicts));
        }
        // Records from before the totals table have rows only. The columns are added here, because
        // `SQLite` fails on a sum that overflows.
        let sql = "SELECT verdict, connections, up, down FROM egress WHERE microvm = ?1";
        let rows = self.all("read the egress totals of a microVM", sql, [microvm], |row| {
            Ok((row.get::<_, String>(0)?, [row.get(1)?, row.get(2)?, row.get(3)?]))
        })?;
        let mut verdicts = VerdictTotals::default();
        for (verdict, numbers) in &rows {
            verdicts.add(verdict, *numbers);
        }
        Ok((!rows.is_empty()).then_some(verdicts))
    }
}
