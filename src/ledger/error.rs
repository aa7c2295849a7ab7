//! Errors of the ledger.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use mayfly_failure::{Code, Failure};

/// A failed ledger operation.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file can't be opened or created.
    #[error("can't open the ledger {0}")]
    NotOpened(PathBuf, #[source] rusqlite::Error),
    /// The file can't be read.
    #[error("can't read the ledger {0}")]
    NotRead(PathBuf, #[source] io::Error),
    /// The file is damaged or truncated.
    #[error("the ledger {path} is damaged and was not changed: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
    /// Its lock file can't be opened or created.
    #[error("can't lock the ledger {0}")]
    NotLocked(PathBuf, #[source] io::Error),
    /// Another daemon has it.
    #[error("another daemon has the ledger {0} open")]
    InUse(PathBuf),
    /// Its schema can't be migrated, or is of a later version.
    #[error("can't migrate the ledger {0} to this version's schema")]
    NotMigrated(PathBuf, #[source] Box<rusqlite_migration::Error>),
    /// It was not migrated by a daemon of this version.
    #[error("the ledger {0} has the schema of a different version")]
    OtherSchema(PathBuf),
    /// `SQLite` failed.
    #[error("ledger: can't {action}")]
    Failed {
        /// The attempted action.
        action: &'static str,
        /// The error of `SQLite`.
        source: rusqlite::Error,
    },
    /// A segment of the audit log can't be read.
    #[error("can't read {0}")]
    SegmentNotRead(PathBuf, #[source] io::Error),
    /// A segment of the audit log can't be written or removed.
    #[error("can't write {0}")]
    SegmentNotWritten(PathBuf, #[source] io::Error),
    /// An unknown job, microVM or registration.
    #[error("unknown {what} {name:?}")]
    Unknown {
        /// The kind of object.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A change that the current state does not allow.
    #[error("{what} {name} can't be {requested}: it is {state}")]
    WrongState {
        /// The kind of object.
        what: &'static str,
        /// Its name.
        name: String,
        /// The current state.
        state: String,
        /// The requested change.
        requested: &'static str,
    },
    /// A value can't be stored.
    #[error("can't encode or decode {0} as JSON")]
    Json(&'static str, #[source] serde_json::Error),
    /// Random numbers are unavailable.
    #[error("can't generate a new name")]
    Random(#[source] io::Error),
}

impl LedgerError {
    /// Returns a function for `map_err`: `SQLite` failed at `action`.
    pub(super) fn failed(action: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Failed { action, source }
    }
}

/// The hint for a damaged ledger.
const DAMAGED: &str = "stop the daemon; restore a backup, or move the ledger, -wal, and -shm away to start \
    a new one; `sqlite3 FILE .recover` may save rows";

fn is_corrupt(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Failure for LedgerError {
    fn code(&self) -> Code {
        match self {
            Self::InUse(_) => Code::Unavailable,
            Self::NotOpened(_, source) | Self::Failed { source, .. } if is_corrupt(source) => {
                Code::BadData
            }
            Self::NotOpened(_, source) | Self::Failed { source, .. } if is_busy(source) => {
                Code::Unavailable
            }
            Self::NotOpened(..)
            | Self::NotLocked(..)
            | Self::SegmentNotWritten(..)
            | Self::Failed { .. } => Code::CannotWrite,
            Self::Damaged { .. } | Self::NotMigrated(..) | Self::OtherSchema(_) => Code::BadData,
            Self::NotRead(..) | Self::SegmentNotRead(..) | Self::Unknown { .. } => Code::NotFound,
            Self::WrongState { .. } => Code::Usage,
            Self::Json(..) | Self::Random(_) => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Damaged { .. } => DAMAGED,
            Self::NotOpened(_, source) | Self::Failed { source, .. } if is_corrupt(source) => {
                DAMAGED
            }
            Self::NotOpened(_, source) | Self::Failed { source, .. } if is_busy(source) => {
                "another process has the ledger locked: end it (find it with fuser), then try again"
            }
            Self::NotOpened(_, source) | Self::Failed { source, .. }
                if source.sqlite_error_code() == Some(ErrorCode::DiskFull) =>
            {
                "free space on the state directory's disk; nothing that was recorded is lost"
            }
            Self::NotOpened(..) | Self::NotRead(..) => {
                "make the ledger and its -wal readable, or copy both into a directory of your own \
                 and use that as the state directory"
            }
            Self::InUse(_) => "stop the other daemon, or use a different state directory",
            Self::NotMigrated(..) => "use the version of Mayfly that wrote it, or a later one",
            Self::OtherSchema(_) => "start the daemon of this version once: it migrates the ledger",
            _ => return None,
        };
        Some(text.to_owned())
    }
}
