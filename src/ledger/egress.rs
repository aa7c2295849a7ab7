//! What microVMs reached, and what they were refused: sums by destination.

use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::open::Change;
use super::{Ledger, LedgerError, Reader};

/// The most rows of one microVM: what a shepherd tells, with a row for each verdict and cause whose
/// destinations have none.
const MAX_ROWS: usize = 640;

/// One destination of a microVM, with one verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Destination {
    /// The name or address, as the guest said it.
    pub host: String,
    /// The port; 0 where there is none.
    pub port: u16,
    /// The verdict's word.
    pub verdict: String,
    /// The cause's word.
    pub cause: Option<String>,
    /// How many connections, requests, lookups or packets.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

/// What a microVM reached in numbers: everything, whether it has a row or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Connections, requests, lookups and packets that passed.
    pub allowed: u64,
    /// Those that did not.
    pub refused: u64,
    /// Those that passed as the policy only watches.
    pub would_refuse: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
    /// Destinations that have no row of their own.
    pub omitted: u64,
    /// Lines that the egress record lacks.
    pub unrecorded: u64,
}

impl Verdicts {
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

/// What a microVM reached, and what it was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    /// Everything in numbers.
    pub verdicts: Verdicts,
    /// A row per destination, in the order in which they are to be shown.
    pub destinations: Vec<Destination>,
}

impl Ledger {
    /// Takes down what a microVM reached. A shepherd that is heard again tells it again: the first
    /// time counts.
    pub fn note_egress(&mut self, microvm: &str, egress: &Egress) -> Result<(), LedgerError> {
        let Egress { mut verdicts, destinations } = egress.clone();
        // A shepherd keeps to less; its word is not taken for it.
        let kept = destinations.len().min(MAX_ROWS);
        verdicts.omitted = verdicts.omitted.saturating_add((destinations.len() - kept) as u64);
        self.change("note what a microVM reached", |change| {
            let known = "SELECT 1 FROM egress WHERE microvm = ?1
                UNION ALL SELECT 1 FROM egress_totals WHERE microvm = ?1 LIMIT 1";
            let is_known = change.first(known, [microvm], |_| Ok(()))?.is_some();
            if is_known || (kept == 0 && verdicts == Verdicts::default()) {
                return Ok(());
            }
            note_totals(change, microvm, &verdicts)?;
            for (row, one) in destinations[..kept].iter().enumerate() {
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

fn note_totals(change: &Change<'_>, microvm: &str, verdicts: &Verdicts) -> Result<(), LedgerError> {
    let Verdicts { allowed, refused, would_refuse, up, down, omitted, unrecorded } = *verdicts;
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

/// What `SQLite` can hold of a number.
fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Reader {
    /// What a microVM reached and was refused; nothing where nothing was tried, and before its end.
    pub fn egress(&self, microvm: &str) -> Result<Option<Egress>, LedgerError> {
        let Some(verdicts) = self.verdicts(microvm)? else { return Ok(None) };
        let sql = "SELECT host, port, verdict, cause, connections, up, down FROM egress
            WHERE microvm = ?1 ORDER BY row";
        let destinations = self.all("list what a microVM reached", sql, [microvm], |row| {
            Ok(Destination {
                host: row.get(0)?,
                port: row.get(1)?,
                verdict: row.get(2)?,
                cause: row.get(3)?,
                connections: row.get(4)?,
                up: row.get(5)?,
                down: row.get(6)?,
            })
        })?;
        Ok(Some(Egress { verdicts, destinations }))
    }

    /// The names and addresses that its policy refused a microVM, with port and cause.
    pub fn refused(&self, microvm: &str) -> Result<Vec<(String, u16, String)>, LedgerError> {
        let sql = "SELECT host, port, cause FROM egress
            WHERE microvm = ?1 AND verdict = 'refused' AND cause IN ('no-rule', 'port', 'denied')
            ORDER BY row";
        let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        self.all("list what a microVM was refused", sql, [microvm], read)
    }

    /// The same in numbers only.
    pub fn verdicts(&self, microvm: &str) -> Result<Option<Verdicts>, LedgerError> {
        let sql = "SELECT allowed, refused, would_refuse, up, down, omitted, unrecorded
            FROM egress_totals WHERE microvm = ?1";
        let totals = self.all("count what a microVM reached", sql, [microvm], |row| {
            Ok(Verdicts {
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
        // What was noted before there were totals has its rows only. Columns are added up here, as
        // SQLite fails where a sum is too large for it.
        let sql = "SELECT verdict, connections, up, down FROM egress WHERE microvm = ?1";
        let rows = self.all("count what a microVM reached", sql, [microvm], |row| {
            Ok((row.get::<_, String>(0)?, [row.get(1)?, row.get(2)?, row.get(3)?]))
        })?;
        let mut verdicts = Verdicts::default();
        for (verdict, numbers) in &rows {
            verdicts.add(verdict, *numbers);
        }
        Ok((!rows.is_empty()).then_some(verdicts))
    }
}
