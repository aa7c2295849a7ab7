//! What a microVM did in sum, for people and for the ledger.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What stands for the host in the rows of all that found no row of its own.
pub(super) const OTHERS: &str = "(others)";

/// The summary of a microVM's egress. Its `Display` is a table, its `Serialize` a contract.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Report {
    /// A row per destination, port, verdict and cause, and one for each verdict and cause whose
    /// destinations found no row.
    pub rows: Vec<Row>,
    /// Everything that was counted, whether it has a row or not.
    #[serde(default)]
    pub totals: Totals,
    /// How many destinations have no row of their own, as there were too many. One that was left out
    /// and tried again may be counted again.
    #[serde(default)]
    pub omitted: u64,
    /// How many lines the record lacks because there were too many.
    pub unrecorded: u64,
}

/// Sums by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Totals {
    /// What passed.
    pub allowed: Total,
    /// What passed as the policy only watches.
    pub would_refuse: Total,
    /// What did not pass.
    pub refused: Total,
}

/// A sum of connections, requests, lookups or packets, and of their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Total {
    /// How many.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

impl Totals {
    /// The sum for a verdict's word.
    pub(super) fn of_mut(&mut self, verdict: &str) -> &mut Total {
        match verdict {
            "allowed" => &mut self.allowed,
            "would-refuse" => &mut self.would_refuse,
            _ => &mut self.refused,
        }
    }

    /// The sums of these rows.
    fn of(rows: &[Row]) -> Self {
        let mut totals = Self::default();
        for row in rows {
            let total = totals.of_mut(&row.verdict);
            total.connections = total.connections.saturating_add(row.connections);
            total.up = total.up.saturating_add(row.up);
            total.down = total.down.saturating_add(row.down);
        }
        totals
    }
}

impl Report {
    /// The totals; those of the rows where an older shepherd told none.
    pub fn totals(&self) -> Totals {
        if self.totals == Totals::default() { Totals::of(&self.rows) } else { self.totals }
    }
}

/// One row of a [`Report`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Row {
    /// The name or address.
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

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["destination", "verdict", "connections", "up", "down"].map(String::from);
        let mut table = vec![heading];
        for row in &self.rows {
            let cause = row.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
            let port = if row.port == 0 { String::new() } else { format!(":{}", row.port) };
            table.push([
                // What a guest said goes to a terminal.
                format!("{}{port}", row.host.escape_debug()),
                format!("{}{cause}", row.verdict),
                row.connections.to_string(),
                row.up.to_string(),
                row.down.to_string(),
            ]);
        }
        let mut widths = [0; 5];
        for (column, width) in widths.iter_mut().enumerate() {
            *width = table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        }
        for row in &table {
            for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
                let gap = if column == 0 { "" } else { "  " };
                match column {
                    0 | 1 => write!(formatter, "{gap}{cell:width$}")?,
                    _ => write!(formatter, "{gap}{cell:>width$}")?,
                }
            }
            writeln!(formatter)?;
        }
        if self.omitted > 0 {
            writeln!(
                formatter,
                "{} destinations have no row of their own: too many",
                self.omitted
            )?;
        }
        if self.unrecorded > 0 {
            writeln!(formatter, "{} lines were not recorded: too many", self.unrecorded)?;
        }
        Ok(())
    }
}
