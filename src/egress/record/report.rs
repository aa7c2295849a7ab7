//! What a microVM did in sum: a row per destination, port and verdict.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::line::Subject;
use crate::egress::verdict::{Cause, Verdict};

/// The most rows; what comes after them is summed up in one.
const MAX_ROWS: usize = 4096;

/// What stands for the host in the row of all that found no row of its own.
const OTHERS: &str = "(others)";

/// Which row it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    host: String,
    port: u16,
    verdict: &'static str,
    cause: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    count: u64,
    up: u64,
    down: u64,
}

/// The sums so far.
#[derive(Debug, Default)]
pub(super) struct Sums(BTreeMap<Key, Sum>);

impl Sums {
    /// Counts a verdict; the key is where its bytes go later.
    pub(super) fn count(&mut self, subject: &Subject, verdict: &Verdict) -> Key {
        let mut key = Key {
            host: subject.host.clone(),
            port: subject.port,
            verdict: verdict.code(),
            cause: verdict.cause().map(Cause::code),
        };
        if self.0.len() >= MAX_ROWS && !self.0.contains_key(&key) {
            key = Key { host: OTHERS.into(), port: 0, ..key };
        }
        self.0.entry(key.clone()).or_default().count += 1;
        key
    }

    /// Adds the bytes of what was counted under the key.
    pub(super) fn add(&mut self, key: &Key, up: u64, down: u64) {
        if let Some(sum) = self.0.get_mut(key) {
            sum.up += up;
            sum.down += down;
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.0.len()
    }

    pub(super) fn report(&self, unrecorded: u64) -> Report {
        let row = |(key, sum): (&Key, &Sum)| Row {
            host: key.host.clone(),
            port: key.port,
            verdict: key.verdict.to_owned(),
            cause: key.cause.map(str::to_owned),
            connections: sum.count,
            up: sum.up,
            down: sum.down,
        };
        Report { rows: self.0.iter().map(row).collect(), unrecorded }
    }
}

/// The summary of a microVM's egress. Its `Display` is a table, its `Serialize` a contract.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Report {
    /// A row per destination, port, verdict and cause.
    pub rows: Vec<Row>,
    /// How many lines the record lacks because there were too many.
    pub unrecorded: u64,
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
        if self.unrecorded > 0 {
            writeln!(formatter, "{} lines were not recorded: too many", self.unrecorded)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::record::Via;

    fn subject(host: &str, port: u16) -> Subject {
        Subject {
            via: Via::Transparent,
            host: host.into(),
            port,
            original: None,
            method: "CONNECT".into(),
            url: None,
        }
    }

    #[test]
    fn rows_are_summed_and_shown_as_a_table() {
        let mut sums = Sums::default();
        for _ in 0..2 {
            let key = sums.count(&subject("github.com", 443), &Verdict::Allowed);
            sums.add(&key, 10, 2000);
        }
        sums.count(&subject("evil\u{1b}[2J.example", 0), &Verdict::Refused(Cause::NoRule));
        assert_eq!(
            sums.report(7).to_string(),
            "destination            verdict            connections  up  down\n\
             evil\\u{1b}[2J.example  refused (no-rule)            1   0     0\n\
             github.com:443         allowed                      2  20  4000\n\
             7 lines were not recorded: too many\n"
        );
    }

    #[test]
    fn the_rows_are_bounded_and_the_sum_is_not() {
        let mut sums = Sums::default();
        for port in 0..=u16::MAX {
            sums.count(&subject("a", port), &Verdict::Allowed);
        }
        let report = sums.report(0);
        assert_eq!(report.rows.len(), MAX_ROWS + 1);
        assert_eq!(report.rows.iter().map(|row| row.connections).sum::<u64>(), 65_536);
    }
}
