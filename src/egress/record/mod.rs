//! The record: a line per verdict in `egress.jsonl` and in `access.log` (squid's native format),
//! and their sums.
//!
//! What is allowed has two lines in `egress.jsonl`: the verdict at once, so that it is there
//! whatever happens next, and the end with its bytes. Lines are bounded in length, rate and sum, those
//! of what passes apart from refusals, so that a flood of the one hides nothing of the other; what was
//! not recorded is counted. This module decides nothing.

mod flow;
mod learn;
mod limit;
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

pub use flow::{Bytes, Flow, SharedFlow};
pub use learn::{LearnError, Learned};
pub use limit::Rate;
pub use line::{Peer, Subject, Via};
pub use report::{Report, Row, Total, Totals};

use super::verdict::Verdict;
use flow::Passed;
use limit::Bucket;
use line::{Context, End};
use sums::Sums;

/// How many of the last lines are kept at hand, of what passes and of what is refused.
const RECENT: usize = 32;

/// Bytes in `egress.jsonl` that say how many lines are missing.
const CONFESSIONS: u64 = 256 << 10;

/// The file with a JSON object for each verdict and each end.
pub const JSON: &str = "egress.jsonl";

/// The file in squid's format.
pub const SQUID: &str = "access.log";

/// The record can't be begun.
#[derive(Debug, thiserror::Error)]
#[error("can't write the egress record {}", file.display())]
pub struct RecordError {
    file: PathBuf,
    source: std::io::Error,
}

impl crate::failure::Failure for RecordError {
    fn code(&self) -> crate::failure::Code {
        crate::failure::Code::CannotWrite
    }
}

/// Whose record it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The microVM's id.
    pub microvm: String,
    /// The policy's name.
    pub policy: String,
    /// The guest's address.
    pub guest: Ipv4Addr,
}

/// Writes the record of one microVM. Clones write the same one.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Mutex<Record>>);

#[derive(Debug)]
struct Record {
    identity: Identity,
    client: String,
    files: Option<Files>,
    /// What is left to say of lines that are missing.
    confessions: u64,
    passed: Budget,
    refused: Budget,
    sums: Sums,
    next_id: u64,
    /// Lines not recorded in all, and since the last line that said so.
    unrecorded: u64,
    unsaid: u64,
}

/// What may still be recorded of one kind.
#[derive(Debug)]
struct Budget {
    bucket: Bucket,
    json: u64,
    squid: u64,
    recent: VecDeque<String>,
}

impl Budget {
    fn new(rate: Rate) -> Self {
        let bucket = Bucket::new(rate, Instant::now());
        Self { bucket, json: rate.bytes, squid: rate.bytes, recent: VecDeque::new() }
    }

    /// Writes lines as far as they may be. Whether both were written.
    fn write(&mut self, files: Option<&mut Files>, json: &str, squid: Option<&str>) -> bool {
        if !self.bucket.take(Instant::now()) {
            return false;
        }
        let Some(files) = files else { return true };
        let mut written = append(&mut files.json, &mut self.json, json);
        if let Some(line) = squid {
            written &= append(&mut files.squid, &mut self.squid, line);
        }
        written
    }

    fn remember(&mut self, line: String) {
        if self.recent.len() >= RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }
}

/// The two files.
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

/// Appends a line where there is something left for it. Whether it was written: a full disk must not
/// stop the traffic.
fn append(file: &mut File, left: &mut u64, line: &str) -> bool {
    let Some(after) = left.checked_sub(line.len() as u64) else { return false };
    *left = after;
    file.write_all(line.as_bytes()).is_ok()
}

impl Recorder {
    /// Begins the record in a directory that is there.
    pub fn create(directory: &Path, identity: Identity, rate: Rate) -> Result<Self, RecordError> {
        Ok(Self::with(identity, rate, Some(Files::create(directory)?)))
    }

    /// Keeps the sums and the last lines only.
    pub fn without_files(identity: Identity) -> Self {
        Self::with(identity, Rate::default(), None)
    }

    fn with(identity: Identity, rate: Rate, files: Option<Files>) -> Self {
        let client = identity.guest.to_string();
        Self(Arc::new(Mutex::new(Record {
            identity,
            client,
            files,
            confessions: CONFESSIONS.min(rate.bytes),
            passed: Budget::new(rate),
            refused: Budget::new(rate),
            sums: Sums::default(),
            next_id: 1,
            unrecorded: 0,
            unsaid: 0,
        })))
    }

    /// Records a verdict alone: on what goes no further, or on what is on its way already.
    pub fn verdict(&self, subject: Subject, verdict: &Verdict, rule: Option<&str>) {
        let subject = subject.bounded();
        let mut record = self.lock();
        record.sums.count(&subject, verdict);
        record.write(&subject, None, verdict, rule, None);
    }

    /// Records that something passes; its end is recorded when what this returns is dropped.
    pub fn pass(&self, subject: Subject, verdict: Verdict, rule: Option<String>) -> Flow {
        let subject = subject.bounded();
        let mut record = self.lock();
        let id = record.next_id;
        record.next_id += 1;
        let key = record.sums.open(&subject, &verdict);
        record.write(&subject, Some(id), &verdict, rule.as_deref(), None);
        drop(record);
        Flow::new(self.clone(), Passed { subject, verdict, rule, key, id })
    }

    /// The sums so far, in all rows.
    pub fn report(&self) -> Report {
        self.report_in(usize::MAX)
    }

    /// The sums so far in at most so many rows, and one for each verdict and cause that needed more.
    pub fn report_in(&self, rows: usize) -> Report {
        let record = self.lock();
        record.sums.report(rows, record.unrecorded)
    }

    /// How many rows were begun so far.
    pub fn begun(&self) -> u64 {
        self.lock().sums.begun()
    }

    /// The guest's address.
    pub(super) fn guest(&self) -> Ipv4Addr {
        self.lock().identity.guest
    }

    /// The last lines in JSON, recorded or not: those of what passed, then the refusals, each oldest
    /// first.
    pub fn recent(&self) -> Vec<String> {
        let record = self.lock();
        record.passed.recent.iter().chain(&record.refused.recent).cloned().collect()
    }

    /// Counts what was lost before it could be recorded.
    pub fn missed(&self, lines: u64) {
        self.lock().miss(lines);
    }

    /// Says what was not recorded so far. To be called at the end, and now and then.
    pub fn flush(&self) {
        self.lock().confess(true);
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A panic elsewhere leaves at worst one line short.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Record {
    fn write(
        &mut self,
        subject: &Subject,
        id: Option<u64>,
        verdict: &Verdict,
        rule: Option<&str>,
        end: Option<&End>,
    ) {
        let context = Context {
            now: SystemTime::now(),
            microvm: &self.identity.microvm,
            policy: &self.identity.policy,
            client: &self.client,
            id,
            verdict,
            rule,
            end,
        };
        let json = line::json(&context, subject);
        // An access log has one line for each request, at its end.
        let squid = (end.is_some() || !verdict.passes()).then(|| line::squid(&context, subject));
        let budget = if verdict.passes() { &mut self.passed } else { &mut self.refused };
        let written = budget.write(self.files.as_mut(), &json, squid.as_deref());
        budget.remember(json);
        self.miss(u64::from(!written));
        self.confess(false);
    }

    fn miss(&mut self, lines: u64) {
        self.unrecorded += lines;
        self.unsaid += lines;
    }

    /// Writes how many lines are missing, where some are. While lines come faster than they may,
    /// only every thousandth is worth it.
    fn confess(&mut self, now: bool) {
        if self.unsaid == 0 || !(now || self.unsaid >= 1000) {
            return;
        }
        let line = serde_json::json!({
            "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "event": "unrecorded",
            "microvm": self.identity.microvm,
            "lines": self.unsaid,
        });
        let left = &mut self.confessions;
        let say = |files: &mut Files| append(&mut files.json, left, &format!("{line}\n"));
        if self.files.as_mut().is_none_or(say) {
            self.unsaid = 0;
        }
    }
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;
