//! The sums of a microVM's egress while it runs: a row per destination, in bounds.
//!
//! A guest decides what it tries, so it must not decide what is forgotten. Rows of what passed have
//! a reserve of their own, which refusals never take from; where it is full, the rows with the fewest
//! bytes go. Refusals have a reserve for each cause, and the first of each cause stay. What goes is
//! summed up by verdict and cause, and the totals count everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::line::Subject;
use super::report::{OTHERS, Report, Row, Totals};
use crate::egress::verdict::{Cause, Verdict};

/// Rows of what passed. More than connections that can be open at a time: the row of an open one
/// stays.
pub(super) const PASSED_ROWS: usize = 2048;

/// Rows of refusals with the same cause.
pub(super) const REFUSED_ROWS: usize = 128;

/// Which row it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    host: String,
    port: u16,
    kind: Kind,
}

/// A verdict with its cause: few, and none of a guest's making.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Kind {
    verdict: &'static str,
    cause: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    connections: u64,
    up: u64,
    down: u64,
    /// When the row was begun, as a number of rows.
    order: u64,
    /// Connections whose bytes are still to come.
    open: u32,
}

impl Sum {
    fn bytes(&self) -> u64 {
        self.up.saturating_add(self.down)
    }

    fn merge(&mut self, other: &Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.up = self.up.saturating_add(other.up);
        self.down = self.down.saturating_add(other.down);
    }
}

/// The sums so far.
#[derive(Debug, Default)]
pub(super) struct Sums {
    passed: HashMap<Key, Sum>,
    refused: HashMap<Key, Sum>,
    /// How many rows of refusals each cause has.
    causes: HashMap<Kind, usize>,
    /// What found no row, or lost it.
    others: BTreeMap<Kind, Sum>,
    totals: Totals,
    /// Rows that were begun, and those that are in `others`.
    begun: u64,
    left_out: u64,
}

impl Sums {
    /// Counts a verdict.
    pub(super) fn count(&mut self, subject: &Subject, verdict: &Verdict) -> Key {
        let kind = Kind { verdict: verdict.code(), cause: verdict.cause().map(Cause::code) };
        let key = Key { host: subject.host.clone(), port: subject.port, kind };
        self.totals.of_mut(kind.verdict).connections += 1;
        let sum = if verdict.passes() { self.passed_row(&key) } else { self.refused_row(&key) };
        sum.connections += 1;
        key
    }

    /// Counts something that passes, whose bytes are told at its end by [`Self::close`].
    pub(super) fn open(&mut self, subject: &Subject, verdict: &Verdict) -> Key {
        let key = self.count(subject, verdict);
        if let Some(sum) = self.passed.get_mut(&key) {
            sum.open += 1;
        }
        key
    }

    /// Adds the bytes of what was opened under the key.
    pub(super) fn close(&mut self, key: &Key, up: u64, down: u64) {
        let bytes = Sum { up, down, ..Sum::default() };
        let total = self.totals.of_mut(key.kind.verdict);
        total.up = total.up.saturating_add(up);
        total.down = total.down.saturating_add(down);
        // The row of what is open stays; it has none only where it was refused after all.
        if let Some(sum) = self.passed.get_mut(key) {
            sum.open = sum.open.saturating_sub(1);
            sum.merge(&bytes);
        } else {
            self.others.entry(key.kind).or_default().merge(&bytes);
        }
    }

    fn passed_row(&mut self, key: &Key) -> &mut Sum {
        if self.passed.len() >= PASSED_ROWS && !self.passed.contains_key(key) {
            self.forget_the_smallest();
        }
        let begun = &mut self.begun;
        self.passed.entry(key.clone()).or_insert_with(|| begin(begun))
    }

    fn refused_row(&mut self, key: &Key) -> &mut Sum {
        if !self.refused.contains_key(key) {
            let rows = self.causes.entry(key.kind).or_default();
            if *rows >= REFUSED_ROWS {
                self.left_out += 1;
                return self.others.entry(key.kind).or_default();
            }
            *rows += 1;
        }
        let begun = &mut self.begun;
        self.refused.entry(key.clone()).or_insert_with(|| begin(begun))
    }

    /// Makes room among the rows of what passed: a quarter at once, so that a flood of names costs
    /// little for each.
    fn forget_the_smallest(&mut self) {
        let closed = self.passed.iter().filter(|(_, sum)| sum.open == 0);
        let mut closed: Vec<_> =
            closed.map(|(key, sum)| (sum.bytes(), Reverse(sum.order), key.clone())).collect();
        closed.sort_unstable_by_key(|(bytes, order, _)| (*bytes, *order));
        for (_, _, key) in closed.into_iter().take(PASSED_ROWS / 4) {
            if let Some(sum) = self.passed.remove(&key) {
                self.others.entry(key.kind).or_default().merge(&sum);
                self.left_out += 1;
            }
        }
    }

    /// A number that grows with each row that is begun.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// The report in at most so many rows, those of what found no row not counted. What passed comes
    /// first, most bytes first; then refusals, with as many of each cause as of any other.
    pub(super) fn report(&self, most: usize, unrecorded: u64) -> Report {
        let mut passed: Vec<_> = self.passed.iter().collect();
        passed.sort_unstable_by_key(|(key, sum)| {
            (Reverse(sum.bytes()), key.kind.verdict != "allowed", sum.order)
        });
        let mut refused: Vec<_> = self.refused.iter().collect();
        refused.sort_unstable_by_key(|(_, sum)| sum.order);
        let mut ranks = HashMap::<Kind, usize>::new();
        let mut ranked: Vec<_> = refused
            .into_iter()
            .map(|row| {
                let rank = ranks.entry(row.0.kind).or_default();
                *rank += 1;
                (*rank, row)
            })
            .collect();
        // Sorted by time before, and this keeps that.
        ranked.sort_by_key(|(rank, _)| *rank);
        let refused: Vec<_> = ranked.into_iter().map(|(_, row)| row).collect();

        // Each half of the rows is the one's or the other's, as far as it needs it.
        let for_passed = passed.len().min((most / 2).max(most.saturating_sub(refused.len())));
        let for_refused = refused.len().min(most - for_passed);
        let mut others = self.others.clone();
        for (key, sum) in passed[for_passed..].iter().chain(&refused[for_refused..]) {
            others.entry(key.kind).or_default().merge(sum);
        }
        let left_out = passed.len() - for_passed + refused.len() - for_refused;
        let rows = passed[..for_passed].iter().chain(&refused[..for_refused]);
        let rows = rows.map(|(key, sum)| row(&key.host, key.port, key.kind, sum));
        let rest = others.iter().map(|(kind, sum)| row(OTHERS, 0, *kind, sum));
        Report {
            rows: rows.chain(rest).collect(),
            totals: self.totals,
            omitted: self.left_out + left_out as u64,
            unrecorded,
        }
    }
}

fn begin(begun: &mut u64) -> Sum {
    *begun += 1;
    Sum { order: *begun, ..Sum::default() }
}

fn row(host: &str, port: u16, kind: Kind, sum: &Sum) -> Row {
    Row {
        host: host.to_owned(),
        port,
        verdict: kind.verdict.to_owned(),
        cause: kind.cause.map(str::to_owned),
        connections: sum.connections,
        up: sum.up,
        down: sum.down,
    }
}

#[cfg(test)]
#[path = "sums_tests.rs"]
mod tests;
