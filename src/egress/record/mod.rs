//! The egress record: a line per verdict in `egress.jsonl` and in `access.log` (squid's native
//! format), and their sums.
//!
//! An allowed connection has two lines in `egress.jsonl`: the verdict at once, so that it is
//! recorded whatever happens next, and the end with its bytes. Lines are limited in length, rate
//! and total size, separately for the beginnings of allowed traffic, for its ends, and for verdicts
//! without traffic (refusals and lookups), so that a flood of one does not hide the others;
//! unrecorded lines are counted. This module makes no decisions.

mod flow;
mod learner;
mod limits;
mod line;
mod report;
mod sums;

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

pub use flow::{ByteCounters, Flow, SharedFlow};
pub use learner::{LearnError, PolicyLearner};
pub use limits::RecordLimits;
pub use line::{Peer, Subject, Via};
pub use report::{EgressReport, EgressRow, EgressTotal, EgressTotals};

use super::verdict::Verdict;
use flow::FlowEntry;
use line::{FlowEnd, LineContext};
use mayfly_common::token_bucket::TokenBucket;
use sums::EgressSums;

/// Number of recent lines kept in memory, of each kind.
const RECENT: usize = 32;

/// Bytes reserved in `egress.jsonl` for reports of unrecorded lines.
const UNRECORDED_BYTES: u64 = 256 << 10;

/// The file with a JSON object for each verdict and each end.
pub const JSON: &str = "egress.jsonl";

/// The file in squid's format.
pub const SQUID: &str = "access.log";

/// The record can't be created.
#[derive(Debug, thiserror::Error)]
#[error("can't open the egress record {}", file.display())]
pub struct RecordError {
    file: PathBuf,
    source: std::io::Error,
}

impl mayfly_failure::Failure for RecordError {
    fn code(&self) -> mayfly_failure::Code {
        mayfly_failure::Code::CannotWrite
    }
}

/// The owner of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordIdentity {
    /// The microVM's id.
    pub microvm: String,
    /// The policy's name.
    pub policy: String,
    /// The guest's address.
    pub guest: Ipv4Addr,
}

/// Writes the record of one microVM. Clones share it.
#[derive(Debug, Clone)]
pub struct EgressRecorder(Arc<Mutex<RecordState>>);

#[derive(Debug)]
struct RecordState {
    identity: RecordIdentity,
    client: String,
    files: Option<Files>,
    /// Remaining bytes for reports of unrecorded lines.
    unrecorded_budget: u64,
    begun: LineBudget,
    ended: LineBudget,
    /// For verdicts without traffic.
    verdicts: LineBudget,
    sums: EgressSums,
    next_id: u64,
    /// Unrecorded lines in total, and since the last report of them.
    unrecorded: u64,
    unreported: u64,
}

/// The remaining capacity for one kind of lines.
#[derive(Debug)]
struct LineBudget {
    /// Each token pays for one line.
    bucket: TokenBucket,
    begin: Instant,
    json: u64,
    squid: u64,
    recent: VecDeque<String>,
}

/// A kind of lines with its own budget.
#[derive(Debug, Clone, Copy)]
enum LineKind<'a> {
    /// The beginning of allowed traffic.
    Begin(FlowId),
    /// Its end.
    End(FlowId, &'a FlowEnd),
    /// A verdict without traffic.
    Verdict,
}

/// The id of allowed traffic in the record.
type FlowId = u64;

impl<'a> LineKind<'a> {
    fn id(self) -> Option<FlowId> {
        match self {
            Self::Begin(id) | Self::End(id, _) => Some(id),
            Self::Verdict => None,
        }
    }

    fn end(self) -> Option<&'a FlowEnd> {
        match self {
            Self::End(_, end) => Some(end),
            Self::Begin(_) | Self::Verdict => None,
        }
    }
}

impl LineBudget {
    fn new(limits: RecordLimits) -> Self {
        Self {
            bucket: TokenBucket::new(limits.per_second, limits.burst),
            begin: Instant::now(),
            json: limits.bytes,
            squid: limits.bytes,
            recent: VecDeque::new(),
        }
    }

    /// Creates a budget for half of the lines of allowed traffic: its beginnings or its ends. Only
    /// the ends are in the access log.
    fn half(limits: RecordLimits) -> Self {
        Self { json: limits.bytes / 2, ..Self::new(limits) }
    }

    /// Writes lines within the limits. Returns whether both were written.
    fn write(&mut self, files: Option<&mut Files>, json: &str, squid: Option<&str>) -> bool {
        if !self.bucket.try_take(self.begin.elapsed(), 1) {
            return false;
        }
        let Some(files) = files else { return true };
        let mut written = append(&mut files.json, &mut self.json, json);
        if let Some(line) = squid {
            written &= append(&mut files.squid, &mut self.squid, line);
        }
        written
    }

    fn keep_recent(&mut self, line: String) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }
}

/// The two files of a record.
#[derive(Debug)]
struct Files {
    json: File,
    squid: File,
}

impl Files {
    fn create(directory: &Path) -> Result<Self, RecordError> {
        let open = |name| {
            let path = directory.join(name);
            let file = OpenOptions::new().create(true).append(true).open(&path);
            file.map_err(|source| RecordError { file: path, source })
        };
        Ok(Self { json: open(JSON)?, squid: open(SQUID)? })
    }
}

/// Appends a line if `remaining` allows it. Returns whether it was written: a full disk must not
/// stop the traffic.
fn append(file: &mut File, remaining: &mut u64, line: &str) -> bool {
    let Some(after) = remaining.checked_sub(line.len() as u64) else { return false };
    *remaining = after;
    file.write_all(line.as_bytes()).is_ok()
}

impl EgressRecorder {
    /// Creates the record in an existing directory.
    pub fn create(
        directory: &Path,
        identity: RecordIdentity,
        limits: RecordLimits,
    ) -> Result<Self, RecordError> {
        Ok(Self::with(identity, limits, Some(Files::create(directory)?)))
    }

    /// Creates a record of the sums and recent lines only.
    pub fn without_files(identity: RecordIdentity) -> Self {
        Self::with(identity, RecordLimits::default(), None)
    }

    fn with(identity: RecordIdentity, limits: RecordLimits, files: Option<Files>) -> Self {
        let client = identity.guest.to_string();
        Self(Arc::new(Mutex::new(RecordState {
            identity,
            client,
            files,
            unrecorded_budget: UNRECORDED_BYTES.min(limits.bytes),
            begun: LineBudget::half(limits),
            ended: LineBudget::half(limits),
            verdicts: LineBudget::new(limits),
            sums: EgressSums::default(),
            next_id: 1,
            unrecorded: 0,
            unreported: 0,
        })))
    }

    /// Records a verdict only: on refused traffic, or on traffic that is already recorded as a
    /// flow.
    pub fn record_verdict(&self, subject: Subject, verdict: &Verdict, rule: Option<&str>) {
        let subject = subject.truncated();
        let mut record = self.lock();
        record.sums.count(&subject, verdict);
        record.write(&subject, LineKind::Verdict, verdict, rule);
    }

    /// Records allowed traffic. Dropping the returned flow records its end.
    pub fn start_flow(&self, subject: Subject, verdict: Verdict, rule: Option<String>) -> Flow {
        let subject = subject.truncated();
        let mut record = self.lock();
        let id = record.next_id;
        record.next_id += 1;
        let key = record.sums.open(&subject, &verdict);
        record.write(&subject, LineKind::Begin(id), &verdict, rule.as_deref());
        drop(record);
        Flow::new(self.clone(), FlowEntry { subject, verdict, rule, key, id })
    }

    /// Returns the sums so far, in all rows.
    pub fn report(&self) -> EgressReport {
        self.report_with_limit(usize::MAX)
    }

    /// Returns the sums so far in at most `rows` rows, plus one for each verdict and cause that
    /// needed more.
    pub fn report_with_limit(&self, rows: usize) -> EgressReport {
        let record = self.lock();
        record.sums.report(rows, record.unrecorded)
    }

    /// Returns the number of rows started so far.
    pub fn rows_started(&self) -> u64 {
        self.lock().sums.rows_started()
    }

    /// Returns the guest's address.
    pub(super) fn guest(&self) -> Ipv4Addr {
        self.lock().identity.guest
    }

    /// Returns the recent lines in JSON, recorded or not: the beginnings of allowed traffic, its
    /// ends, then verdicts without traffic, each oldest first.
    pub fn recent(&self) -> Vec<String> {
        let record = self.lock();
        let budgets = [&record.begun, &record.ended, &record.verdicts];
        budgets.into_iter().flat_map(|budget| &budget.recent).cloned().collect()
    }

    /// Counts lines that were lost before they could be recorded.
    pub fn count_unrecorded(&self, lines: u64) {
        self.lock().count_unrecorded(lines);
    }

    /// Writes the number of unrecorded lines. Call it at the end, and from time to time.
    pub fn flush(&self) {
        self.lock().write_unrecorded(true);
    }

    fn lock(&self) -> MutexGuard<'_, RecordState> {
        // A panic elsewhere loses one line at worst.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordState {
    fn write(
        &mut self,
        subject: &Subject,
        kind: LineKind<'_>,
        verdict: &Verdict,
        rule: Option<&str>,
    ) {
        let end = kind.end();
        let context = LineContext {
            now: SystemTime::now(),
            microvm: &self.identity.microvm,
            policy: &self.identity.policy,
            client: &self.client,
            id: kind.id(),
            verdict,
            rule,
            end,
        };
        let json = line::json(&context, subject);
        // An access log has one line per request, at its end.
        let squid = (end.is_some() || !verdict.passes()).then(|| line::squid(&context, subject));
        let budget = match kind {
            LineKind::Begin(_) => &mut self.begun,
            LineKind::End(..) => &mut self.ended,
            LineKind::Verdict => &mut self.verdicts,
        };
        let written = budget.write(self.files.as_mut(), &json, squid.as_deref());
        budget.keep_recent(json);
        self.count_unrecorded(u64::from(!written));
        self.write_unrecorded(false);
    }

    fn count_unrecorded(&mut self, lines: u64) {
        self.unrecorded += lines;
        self.unreported += lines;
    }

    /// Writes the number of unrecorded lines, if any. During a flood, it is written only once per
    /// 1,000 lines.
    fn write_unrecorded(&mut self, now: bool) {
        if self.unreported == 0 || !(now || self.unreported >= 1000) {
            return;
        }
        let line = serde_json::json!({
            "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "event": "unrecorded",
            "microvm": self.identity.microvm,
            "lines": self.unreported,
        });
        let remaining = &mut self.unrecorded_budget;
        let write = |files: &mut Files| append(&mut files.json, remaining, &format!("{line}\n"));
        if self.files.as_mut().is_none_or(write) {
            self.unreported = 0;
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
