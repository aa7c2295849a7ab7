//! The running sums of a microVM's egress: a bounded number of rows, one per destination.
//!
//! A guest chooses its destinations, so it must not be able to choose which ones are forgotten.
//! Rows of allowed traffic have their own reserve, which verdicts without traffic never use; when it
//! is full, the rows with the fewest bytes are evicted. Those verdicts have a reserve per cause, and
//! the first ones of each cause are kept. Evicted rows are summed by verdict and cause, and the totals count
//! everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};

use super::line::Subject;
use super::report::{EgressReport, EgressRow, EgressTotals, OTHERS};
use crate::verdict::{RefusalCause, Verdict};

/// Rows of allowed traffic. More than the maximum number of open connections: the row of an open
/// connection is kept.
pub(super) const PASSED_ROWS: usize = 2048;

/// Rows of verdicts without traffic with the same cause.
pub(super) const REFUSED_ROWS: usize = 128;

/// The key of a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct RowKey {
    host: String,
    port: u16,
    kind: VerdictKind,
}

/// A verdict with its cause: a small set that a guest can't extend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct VerdictKind {
    verdict: &'static str,
    cause: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, Default)]
struct RowSum {
    connections: u64,
    up: u64,
    down: u64,
    /// The row's number, in order of creation.
    order: u64,
    /// Open connections, whose bytes are not counted yet.
    open: u32,
}

impl RowSum {
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
pub(super) struct EgressSums {
    passed: HashMap<RowKey, RowSum>,
    refused: HashMap<RowKey, RowSum>,
    /// Number of rows of refusals of each cause.
    causes: HashMap<VerdictKind, usize>,
    /// The sums of everything without a row.
    others: BTreeMap<VerdictKind, RowSum>,
    totals: EgressTotals,
    /// Rows that were started, and those merged into `others`.
    rows_started: u64,
    omitted_rows: u64,
}

impl EgressSums {
    /// Counts a verdict without traffic: a refusal, or a lookup that `enforce` would refuse.
    pub(super) fn count(&mut self, subject: &Subject, verdict: &Verdict) {
        let key = self.count_total(subject, verdict);
        self.refused_row(&key).connections += 1;
    }

    /// Counts allowed traffic, whose bytes are added at its end by [`Self::close`].
    pub(super) fn open(&mut self, subject: &Subject, verdict: &Verdict) -> RowKey {
        let key = self.count_total(subject, verdict);
        let sum = self.passed_row(&key);
        sum.connections += 1;
        sum.open += 1;
        key
    }

    fn count_total(&mut self, subject: &Subject, verdict: &Verdict) -> RowKey {
        let kind =
            VerdictKind { verdict: verdict.code(), cause: verdict.cause().map(RefusalCause::code) };
        self.totals.of_mut(kind.verdict).connections += 1;
        RowKey { host: subject.host.clone(), port: subject.port, kind }
    }

    /// Adds the bytes of traffic that was opened under the key.
    pub(super) fn close(&mut self, key: &RowKey, up: u64, down: u64) {
        let bytes = RowSum { up, down, ..RowSum::default() };
        let total = self.totals.of_mut(key.kind.verdict);
        total.up = total.up.saturating_add(up);
        total.down = total.down.saturating_add(down);
        // The row of an open connection is kept.
        if let Some(sum) = self.passed.get_mut(key) {
            sum.open = sum.open.saturating_sub(1);
            sum.merge(&bytes);
        } else {
            self.others.entry(key.kind).or_default().merge(&bytes);
        }
    }

    fn passed_row(&mut self, key: &RowKey) -> &mut RowSum {
        if self.passed.len() >= PASSED_ROWS && !self.passed.contains_key(key) {
            self.evict_smallest();
        }
        let rows_started = &mut self.rows_started;
        self.passed.entry(key.clone()).or_insert_with(|| start_row(rows_started))
    }

    fn refused_row(&mut self, key: &RowKey) -> &mut RowSum {
        if !self.refused.contains_key(key) {
            let rows = self.causes.entry(key.kind).or_default();
            if *rows >= REFUSED_ROWS {
                self.omitted_rows += 1;
                return self.others.entry(key.kind).or_default();
            }
            *rows += 1;
        }
        let rows_started = &mut self.rows_started;
        self.refused.entry(key.clone()).or_insert_with(|| start_row(rows_started))
    }

    /// Evicts a quarter of the rows of allowed traffic at once, so that a flood of names has a low
    /// cost per name.
    fn evict_smallest(&mut self) {
        let closed = self.passed.iter().filter(|(_, sum)| sum.open == 0);
        let mut closed: Vec<_> =
            closed.map(|(key, sum)| (sum.bytes(), Reverse(sum.order), key.clone())).collect();
        closed.sort_unstable_by_key(|(bytes, order, _)| (*bytes, *order));
        for (_, _, key) in closed.into_iter().take(PASSED_ROWS / 4) {
            if let Some(sum) = self.passed.remove(&key) {
                self.others.entry(key.kind).or_default().merge(&sum);
                self.omitted_rows += 1;
            }
        }
    }

    /// Returns the number of rows started.
    pub(super) fn rows_started(&self) -> u64 {
        self.rows_started
    }

    /// Returns a report of at most `most` rows, not counting those for the rest. Allowed traffic
    /// comes first, most bytes first; then refusals, with equal shares for all causes.
    pub(super) fn report(&self, most: usize, unrecorded: u64) -> EgressReport {
        let mut passed: Vec<_> = self.passed.iter().collect();
        passed.sort_unstable_by_key(|(key, sum)| {
            (Reverse(sum.bytes()), key.kind.verdict != "allowed", sum.order)
        });
        let mut refused: Vec<_> = self.refused.iter().collect();
        refused.sort_unstable_by_key(|(_, sum)| sum.order);
        let mut ranks = HashMap::<VerdictKind, usize>::new();
        let mut ranked: Vec<_> = refused
            .into_iter()
            .map(|row| {
                let rank = ranks.entry(row.0.kind).or_default();
                *rank += 1;
                (*rank, row)
            })
            .collect();
        // Sorted by time before; a stable sort keeps that order.
        ranked.sort_by_key(|(rank, _)| *rank);
        let refused: Vec<_> = ranked.into_iter().map(|(_, row)| row).collect();

        // Each kind gets half of the rows, and the unused half of the other.
        let for_passed = passed.len().min((most / 2).max(most.saturating_sub(refused.len())));
        let for_refused = refused.len().min(most - for_passed);
        let mut others = self.others.clone();
        for (key, sum) in passed[for_passed..].iter().chain(&refused[for_refused..]) {
            others.entry(key.kind).or_default().merge(sum);
        }
        let omitted_rows = passed.len() - for_passed + refused.len() - for_refused;
        let rows = passed[..for_passed].iter().chain(&refused[..for_refused]);
        let rows = rows.map(|(key, sum)| row(&key.host, key.port, key.kind, sum));
        let rest = others.iter().map(|(kind, sum)| row(OTHERS, 0, *kind, sum));
        EgressReport {
            rows: rows.chain(rest).collect(),
            totals: self.totals,
            omitted: self.omitted_rows + omitted_rows as u64,
            unrecorded,
        }
    }
}

fn start_row(rows_started: &mut u64) -> RowSum {
    *rows_started += 1;
    RowSum { order: *rows_started, ..RowSum::default() }
}

fn row(host: &str, port: u16, kind: VerdictKind, sum: &RowSum) -> EgressRow {
    EgressRow {
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
