//! Tests of the ledger.

mod audit;
mod changes;
mod damaged;
mod deliveries;
mod killed;

use std::path::{Path, PathBuf};

use super::audit::{Head, VerifyError};
use super::closing::{self, Kept};
use super::{Command, JobId, Ledger, LedgerError, Pruned, Retention};

/// A ledger in a directory of its own.
struct Bench {
    directory: tempfile::TempDir,
    ledger: Ledger,
}

impl Bench {
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

    /// Forgets, as the daemon does in two steps.
    fn prune(&mut self, keep: &Retention) -> Result<Pruned, LedgerError> {
        let old = self.ledger.reader().old(keep)?;
        self.ledger.forget(&old)
    }

    fn close_segment(&mut self, directory: &Path, left: u64) -> Result<Option<Head>, VerifyError> {
        match self.ledger.reader().write_segment(directory, left)? {
            Some(written) => Ok(self.ledger.close_segment(written)?),
            None => Ok(None),
        }
    }

    fn prune_segments(
        &mut self,
        directory: &Path,
        kept: Kept,
    ) -> Result<Option<Head>, VerifyError> {
        let head = match self.ledger.reader().old_segments(directory, kept)? {
            Some(old) => self.ledger.forget_segments(old)?,
            None => None,
        };
        closing::remove_forgotten(self.ledger.reader(), directory)?;
        Ok(head)
    }
}

/// Where no segment of the audit log was closed.
fn nowhere() -> PathBuf {
    "/nonexistent".into()
}

fn command() -> Command {
    Command {
        arguments: vec!["printf".into(), b"\xff\0"[..].into()],
        environment: vec![("TOKEN".into(), "a-secret-value".into())],
        directory: None,
        user: Some("runner".to_owned()),
        timeout: Some(std::time::Duration::from_secs(60)),
    }
}
