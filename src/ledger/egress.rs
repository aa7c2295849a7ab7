//! What microVMs reached, and what they were refused: sums by destination.

use rusqlite::params;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Ledger, LedgerError, Reader};

/// The most rows of one microVM; more are left out.
const MAX_ROWS: usize = 512;

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

/// How many connections of a microVM got which verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// They passed.
    pub allowed: u64,
    /// They did not.
    pub refused: u64,
    /// They passed as the policy only watches.
    pub would_refuse: u64,
}

impl Verdicts {
    fn add(&mut self, verdict: &str, connections: u64) {
        let sum = match verdict {
            "allowed" => &mut self.allowed,
            "would-refuse" => &mut self.would_refuse,
            _ => &mut self.refused,
        };
        *sum = sum.saturating_add(connections);
    }

    /// Those of these destinations.
    pub fn of(destinations: &[Destination]) -> Self {
        let mut verdicts = Self::default();
        for one in destinations {
            verdicts.add(&one.verdict, one.connections);
        }
        verdicts
    }
}

impl Ledger {
    /// Takes down what a microVM reached. A shepherd that is heard again tells it again: the first
    /// time counts.
    pub fn note_egress(
        &mut self,
        microvm: &str,
        destinations: &[Destination],
    ) -> Result<(), LedgerError> {
        let destinations = &destinations[..destinations.len().min(MAX_ROWS)];
        self.change("note what a microVM reached", |change| {
            let known = "SELECT 1 FROM egress WHERE microvm = ?1 LIMIT 1";
            if destinations.is_empty() || change.first(known, [microvm], |_| Ok(()))?.is_some() {
                return Ok(());
            }
            for (row, one) in destinations.iter().enumerate() {
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
            change.audit("microvm.egress", microvm, &json!(Verdicts::of(destinations)))
        })
    }
}

/// What `SQLite` can hold of a number.
fn bounded(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Reader {
    /// What a microVM reached and was refused; nothing before its end.
    pub fn egress(&self, microvm: &str) -> Result<Vec<Destination>, LedgerError> {
        let sql = "SELECT host, port, verdict, cause, connections, up, down FROM egress
            WHERE microvm = ?1 ORDER BY row";
        self.all("list what a microVM reached", sql, [microvm], |row| {
            Ok(Destination {
                host: row.get(0)?,
                port: row.get(1)?,
                verdict: row.get(2)?,
                cause: row.get(3)?,
                connections: row.get(4)?,
                up: row.get(5)?,
                down: row.get(6)?,
            })
        })
    }

    /// The same in numbers; none where nothing was tried, and before its end.
    pub fn verdicts(&self, microvm: &str) -> Result<Option<Verdicts>, LedgerError> {
        let sql = "SELECT verdict, sum(connections) FROM egress WHERE microvm = ?1
            GROUP BY verdict";
        let sums = self.all("count what a microVM reached", sql, [microvm], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, u64>(1)?))
        })?;
        let mut verdicts = Verdicts::default();
        for (verdict, connections) in &sums {
            verdicts.add(verdict, *connections);
        }
        Ok((!sums.is_empty()).then_some(verdicts))
    }
}
