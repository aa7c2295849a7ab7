//! What is kept, and for how long: the ledger's rows, the audit log, logs of jobs, black boxes.
//!
//! A host that runs jobs for years must not fill up with what they leave. What is old is looked for in a
//! task, with a connection of its own; files go there, too. What is left for the loop is a few short
//! transactions.

mod logs;

use std::time::{Duration, SystemTime};

use super::error::DaemonError;
use super::happening::Happening;
use super::millis::Millis;
use super::tasks::Tasks;
use crate::config::Settings;
use crate::failure::chain;
use crate::host::state::StateDirectory;
use crate::ledger::closing::{self, Written};
use crate::ledger::{JobId, Ledger, Old, Reader, Retention, segments};
use crate::shepherd::record;
use logs::Bounds;

/// Between two times of forgetting.
const INTERVAL: Duration = Duration::from_secs(3600);
/// The same where there was more than is forgotten at a time.
const MORE: Duration = Duration::from_secs(1);
/// How long the log of a job is kept.
const LOG_AGE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How many logs are kept.
const LOGS: usize = 10_000;

/// When old records are forgotten next, and how much there is of what jobs wrote.
pub(super) struct Keeping {
    state: StateDirectory,
    next: Millis,
    /// Whether it is being looked for what is old.
    at_work: bool,
    /// Bytes that there were after files were last removed, and that came since.
    left: u64,
    came: u64,
}

/// What a task found, and did.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Bytes that are left of what jobs wrote.
    left: u64,
    /// Rows that are old.
    rows: Old,
    /// A segment of the audit log that can be closed.
    written: Option<Written>,
    /// Segments that are old.
    segments: Option<closing::Old>,
}

impl Keeping {
    pub(super) fn new(state: StateDirectory) -> Self {
        Self { state, next: Millis(0), at_work: false, left: 0, came: 0 }
    }

    /// Looks for what is old, where it is time.
    pub(super) fn act(&mut self, settings: &Settings, now: Millis, tasks: &mut Tasks) {
        if self.next > now || self.at_work {
            return;
        }
        (self.next, self.at_work, self.came) = (now + INTERVAL, true, 0);
        let host = &settings.host;
        let bounds = Bounds {
            oldest: SystemTime::now().checked_sub(LOG_AGE).unwrap_or(SystemTime::UNIX_EPOCH),
            jobs: LOGS,
            // With room for what comes until the next time.
            bytes: host.log_bytes.0 / 10 * 9,
        };
        let kept = closing::Kept { bytes: host.audit_bytes.0, age: host.audit_age };
        let (state, left) = (self.state.clone(), self.left);
        tasks.report(async move {
            let sweep = tokio::task::spawn_blocking(move || sweep(&state, bounds, kept, left));
            // Where that panicked nothing is forgotten this time.
            let nothing = |_| Swept { left, ..Swept::default() };
            Happening::Swept(Box::new(sweep.await.unwrap_or_else(nothing)))
        });
    }

    /// Forgets what was found. What can't be is tried again in an hour; until then the ledger is larger
    /// than it should be.
    pub(super) fn swept(
        &mut self,
        swept: &Swept,
        ledger: &mut Ledger,
        now: Millis,
    ) -> Result<(), DaemonError> {
        (self.left, self.at_work) = (swept.left, false);
        ledger.forget(&swept.rows)?;
        let mut more = swept.rows.is_full();
        if let Some(written) = swept.written {
            more |= ledger.close_segment(written)?.is_some();
        }
        if let Some(old) = swept.segments {
            // Their files go the next time.
            more |= ledger.forget_segments(old)?.is_some();
        }
        if more {
            self.next = self.next.min(now + MORE);
        }
        Ok(())
    }

    /// When it is time.
    pub(super) fn wake(&self) -> Option<Millis> {
        (!self.at_work).then_some(self.next)
    }

    /// So many bytes came to what is kept of jobs, which is looked through when it is too much.
    pub(super) fn kept(&mut self, bytes: u64, settings: &Settings) {
        self.came = self.came.saturating_add(bytes);
        if self.left.saturating_add(self.came) > settings.host.log_bytes.0 {
            self.next = Millis(0);
        }
    }
}

/// Removes files that are too old or too much, and looks for what is old in the ledger.
fn sweep(state: &StateDirectory, bounds: Bounds, kept: closing::Kept, before: u64) -> Swept {
    let mut swept = Swept { left: before, ..Swept::default() };
    if let Err(error) = record::prune(&state.microvms()) {
        tracing::warn!("can't remove old black boxes: {error}");
    }
    let reader = match Reader::open(&state.ledger()) {
        Ok(reader) => reader,
        Err(error) => {
            tracing::warn!("can't look for what is old: {}", chain(&error));
            return swept;
        }
    };
    // One that can't be looked up may not be over.
    let unfinished = |number| match reader.job(JobId(number)) {
        Ok(job) => job.is_some_and(|job| !job.state.is_over()),
        Err(_) => true,
    };
    match logs::prune(&state.logs(), bounds, unfinished) {
        Ok(left) => swept.left = left,
        Err(error) => tracing::warn!("can't remove old logs: {error}"),
    }
    match reader.old(&Retention::default()) {
        Ok(rows) => swept.rows = rows,
        Err(error) => tracing::warn!("can't look for what is old: {}", chain(&error)),
    }
    let audit = state.audit();
    if let Err(error) = closing::remove_forgotten(&reader, &audit) {
        tracing::error!("can't remove old segments of the audit log: {}", chain(&error));
    }
    match reader.write_segment(&audit, segments::SEGMENT) {
        Ok(written) => swept.written = written,
        Err(error) => tracing::error!("can't close a segment of the audit log: {}", chain(&error)),
    }
    match reader.old_segments(&audit, kept) {
        Ok(old) => swept.segments = old,
        Err(error) => {
            tracing::error!("can't forget old segments of the audit log: {}", chain(&error));
        }
    }
    swept
}

#[cfg(test)]
#[path = "keeping_tests.rs"]
mod tests;
