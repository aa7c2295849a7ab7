//! Tests of the ledger.

mod audit;
mod changes;
mod damaged;
mod deliveries;
mod killed;

use std::path::PathBuf;

use super::{Command, JobId, Ledger};

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
