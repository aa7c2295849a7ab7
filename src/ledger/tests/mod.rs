//! Tests of the ledger.

mod audit;
mod changes;
mod damaged;
mod deliveries;
mod killed;

use std::path::{Path, PathBuf};

use super::audit::{AuditHead, VerifyError};
use super::segment_lifecycle::{self, SegmentRetention};
use super::{JobCommand, JobId, Ledger, LedgerError, PruneCounts, RowRetention};

/// A ledger in a temporary directory.
struct TestLedger {
    directory: tempfile::TempDir,
    ledger: Ledger,
}

impl TestLedger {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&directory.path().join("ledger")).unwrap();
        Self { directory, ledger }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("ledger")
    }

    fn submit(&mut self) -> JobId {
        self.ledger.submit_local("small", &command()).unwrap()
    }

    /// Prunes in two steps, as the daemon does.
    fn prune(&mut self, keep: &RowRetention) -> Result<PruneCounts, LedgerError> {
        let old = self.ledger.reader().old_rows(keep)?;
        self.ledger.prune(&old)
    }

    fn close_segment(
        &mut self,
        directory: &Path,
        remaining: u64,
    ) -> Result<Option<AuditHead>, VerifyError> {
        match self.ledger.reader().write_segment(directory, remaining)? {
            Some(written) => Ok(self.ledger.close_segment(written)?),
            None => Ok(None),
        }
    }

    fn prune_segments(
        &mut self,
        directory: &Path,
        limits: SegmentRetention,
    ) -> Result<Option<AuditHead>, VerifyError> {
        let head = match self.ledger.reader().old_segments(directory, limits)? {
            Some(old) => self.ledger.prune_segments(old)?,
            None => None,
        };
        segment_lifecycle::remove_pruned_files(self.ledger.reader(), directory)?;
        Ok(head)
    }
}

/// Returns a directory without segments of the audit log.
fn no_segments() -> PathBuf {
    "/nonexistent".into()
}

fn command() -> JobCommand {
    JobCommand {
        arguments: vec!["printf".into(), b"\xff\0"[..].into()],
        environment: vec![("TOKEN".into(), "a-secret-value".into())],
        directory: None,
        user: Some("runner".to_owned()),
        timeout: Some(std::time::Duration::from_secs(60)),
    }
}
