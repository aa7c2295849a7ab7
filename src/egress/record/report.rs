//! The summary of a microVM's egress, for people and for the ledger.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The host in the rows for everything without a row of its own.
pub(super) const OTHERS: &str = "(others)";

/// The summary of a microVM's egress. Its `Display` is a table, its `Serialize` a stable format.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct EgressReport {
    /// A row per destination, port, verdict and cause, and one for each verdict and cause whose
    /// destinations have no row.
    pub rows: Vec<EgressRow>,
    /// The totals of everything, with or without a row.
    #[serde(default)]
    pub totals: EgressTotals,
    /// Number of destinations without a row of their own, because there were too many. One that was
    /// omitted and tried again may be counted again.
    #[serde(default)]
    pub omitted: u64,
    /// Number of lines that were not recorded because there were too many.
    pub unrecorded: u64,
}

/// Sums by verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EgressTotals {
    /// Allowed traffic.
    pub allowed: EgressTotal,
    /// Traffic that was allowed only because the policy audits.
    pub would_refuse: EgressTotal,
    /// Refused traffic.
    pub refused: EgressTotal,
}

/// A sum of connections, requests, lookups or packets, and of their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EgressTotal {
    /// Number of connections.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

impl EgressTotals {
    /// Returns the sum for a verdict's code.
    pub(super) fn of_mut(&mut self, verdict: &str) -> &mut EgressTotal {
        match verdict {
            "allowed" => &mut self.allowed,
            "would-refuse" => &mut self.would_refuse,
            _ => &mut self.refused,
        }
    }

    /// Returns the sums of these rows.
    fn of(rows: &[EgressRow]) -> Self {
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

impl EgressReport {
    /// Returns the totals, or those of the rows if an older shepherd reported none.
    pub fn totals(&self) -> EgressTotals {
        if self.totals == EgressTotals::default() {
            EgressTotals::of(&self.rows)
        } else {
            self.totals
        }
    }
}

/// One row of an [`EgressReport`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct EgressRow {
    /// The name or address.
    pub host: String,
    /// The port; 0 if there is none.
    pub port: u16,
    /// The verdict's code.
    pub verdict: String,
    /// The cause's code.
    pub cause: Option<String>,
    /// Number of connections, requests, lookups or packets.
    pub connections: u64,
    /// Bytes from the guest.
    pub up: u64,
    /// Bytes to the guest.
    pub down: u64,
}

impl fmt::Display for EgressReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["destination", "verdict", "connections", "up", "down"].map(String::from);
        let mut table = vec![heading];
        for row in &self.rows {
            let cause = row.cause.as_ref().map(|cause| format!(" ({cause})")).unwrap_or_default();
            let port = if row.port == 0 { String::new() } else { format!(":{}", row.port) };
            table.push([
                // Guest text goes to a terminal.
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
