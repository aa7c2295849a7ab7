//! Retention: how long the ledger's rows, the audit log, the logs of jobs and black boxes are
//! retained.
//!
//! A host that runs jobs for years must not fill up. A task with its own ledger connection finds
//! old records and removes old files. The loop only runs a few short transactions.

mod logs;

use std::time::{Duration, SystemTime};

use super::error::DaemonError;
use super::event::DaemonEvent;
use super::tasks::Tasks;
use super::time::Millis;
use logs::Bounds;
use mayfly_config::Settings;
use mayfly_failure::chain;
use mayfly_host::state::StateDirectory;
use mayfly_ledger::segment_lifecycle::{self, WrittenSegment};
use mayfly_ledger::{JobId, Ledger, LedgerReader, OldRows, RowRetention, segments};
use mayfly_shepherd::record;

/// Time between two runs.
const INTERVAL: Duration = Duration::from_secs(3600);
/// Time until the next run if one run could not remove everything.
const RESUME_INTERVAL: Duration = Duration::from_secs(1);
/// How long the log of a job is retained.
const MAX_LOG_AGE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How many logs are retained.
const MAX_LOGS: usize = 10_000;

/// When old records are pruned next, and the size of the job logs.
pub(super) struct Pruner {
    state: StateDirectory,
    next_at: Millis,
    /// Whether a prune task is running.
    is_running: bool,
    /// The size of the logs after the last run. `added_bytes` came since.
    remaining_bytes: u64,
    added_bytes: u64,
}

/// The result of a prune task.
#[derive(Debug, Default)]
pub(super) struct PruneResult {
    /// The remaining size of the job logs.
    remaining_bytes: u64,
    /// Old rows to delete.
    rows: OldRows,
    /// A written segment of the audit log to close.
    written: Option<WrittenSegment>,
    /// Old segments to delete.
    segments: Option<segment_lifecycle::OldSegments>,
}

impl Pruner {
    pub(super) fn new(state: StateDirectory) -> Self {
        Self { state, next_at: Millis(0), is_running: false, remaining_bytes: 0, added_bytes: 0 }
    }

    /// Starts a prune task if one is due.
    pub(super) fn start_if_due(&mut self, settings: &Settings, now: Millis, tasks: &mut Tasks) {
        if self.next_at > now || self.is_running {
            return;
        }
        (self.next_at, self.is_running, self.added_bytes) = (now + INTERVAL, true, 0);
        let host = &settings.host;
        let bounds = Bounds {
            oldest: SystemTime::now().checked_sub(MAX_LOG_AGE).unwrap_or(SystemTime::UNIX_EPOCH),
            jobs: MAX_LOGS,
            // Leave room for logs until the next run.
            bytes: host.log_bytes.0 / 10 * 9,
        };
        let kept =
            segment_lifecycle::SegmentRetention { bytes: host.audit_bytes.0, age: host.audit_age };
        let (state, remaining_bytes) = (self.state.clone(), self.remaining_bytes);
        tasks.spawn_reporting(async move {
            let prune =
                tokio::task::spawn_blocking(move || prune(&state, bounds, kept, remaining_bytes));
            // After a panic, nothing is pruned this time.
            let empty = |_| PruneResult { remaining_bytes, ..PruneResult::default() };
            DaemonEvent::Pruned(Box::new(prune.await.unwrap_or_else(empty)))
        });
    }

    /// Deletes the old records that a task found. Records that were missed are found again in an
    /// hour; until then the ledger is larger than it should be.
    pub(super) fn apply(
        &mut self,
        result: &PruneResult,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        (self.remaining_bytes, self.is_running) = (result.remaining_bytes, false);
        ledger.prune(&result.rows)?;
        let mut more = result.rows.is_full();
        if let Some(written) = result.written {
            more |= ledger.close_segment(written)?.is_some();
        }
        if let Some(old) = result.segments {
            // The next run removes their files.
            more |= ledger.prune_segments(old)?.is_some();
        }
        if more {
            self.next_at = self.next_at.min(now + RESUME_INTERVAL);
        }
        Ok(())
    }

    /// Returns when the next run is due.
    pub(super) fn next_wake(&self) -> Option<Millis> {
        (!self.is_running).then_some(self.next_at)
    }

    /// Adds the size of a saved log. Makes the next run due if the logs are too large.
    pub(super) fn add_output(&mut self, bytes: u64, settings: &Settings) {
        self.added_bytes = self.added_bytes.saturating_add(bytes);
        if self.remaining_bytes.saturating_add(self.added_bytes) > settings.host.log_bytes.0 {
            self.next_at = Millis(0);
        }
    }
}

/// Removes old and excess files, and finds old rows in the ledger.
fn prune(
    state: &StateDirectory,
    bounds: Bounds,
    kept: segment_lifecycle::SegmentRetention,
    before: u64,
) -> PruneResult {
    let mut result = PruneResult { remaining_bytes: before, ..PruneResult::default() };
    if let Err(error) = record::prune(&state.microvms()) {
        tracing::warn!("can't remove old black boxes: {error}");
    }
    let reader = match LedgerReader::open(&state.ledger()) {
        Ok(reader) => reader,
        Err(error) => {
            tracing::warn!("can't find old records in the ledger: {}", chain(&error));
            return result;
        }
    };
    // A job that can't be read may be unfinished.
    let unfinished = |number| match reader.job(JobId(number)) {
        Ok(job) => job.is_some_and(|job| !job.state.is_over()),
        Err(_) => true,
    };
    match logs::prune(&state.logs(), bounds, unfinished) {
        Ok(remaining_bytes) => result.remaining_bytes = remaining_bytes,
        Err(error) => tracing::warn!("can't remove old logs: {error}"),
    }
    match reader.old_rows(&RowRetention::default()) {
        Ok(rows) => result.rows = rows,
        Err(error) => tracing::warn!("can't find old records in the ledger: {}", chain(&error)),
    }
    let audit = state.audit();
    if let Err(error) = segment_lifecycle::remove_pruned_files(&reader, &audit) {
        tracing::error!("can't remove old segments of the audit log: {}", chain(&error));
    }
    match reader.write_segment(&audit, segments::SEGMENT) {
        Ok(written) => result.written = written,
        Err(error) => tracing::error!("can't close a segment of the audit log: {}", chain(&error)),
    }
    match reader.old_segments(&audit, kept) {
        Ok(old) => result.segments = old,
        Err(error) => {
            tracing::error!("can't find old segments of the audit log: {}", chain(&error));
        }
    }
    result
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
