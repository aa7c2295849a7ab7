//! What can go wrong with the ledger.

use std::io;
use std::path::PathBuf;

use rusqlite::ErrorCode;

use crate::failure::{Code, Failure};

/// The ledger can't be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file can't be opened or made.
    #[error("can't open the ledger {0}")]
    NotOpened(PathBuf, #[source] rusqlite::Error),
    /// The file can't be read.
    #[error("can't read the ledger {0}")]
    NotRead(PathBuf, #[source] io::Error),
    /// The file is damaged or cut.
    #[error("the ledger {path} is damaged: {what}; it is left as it is")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Its lock file can't be opened or made.
    #[error("can't lock the ledger {0}")]
    NotLocked(PathBuf, #[source] io::Error),
    /// Another daemon has it.
    #[error("another daemon has the ledger {0} open")]
    InUse(PathBuf),
    /// Its schema can't be brought up to date, or is of a later version.
    #[error("can't bring the ledger {0} up to this version's schema")]
    NotMigrated(PathBuf, #[source] Box<rusqlite_migration::Error>),
    /// It is read before a daemon brought it up to date.
    #[error("the ledger {0} has the schema of another version")]
    OtherSchema(PathBuf),
    /// `SQLite` refused.
    #[error("can't {doing} in the ledger")]
    Refused {
        /// What was to be done.
        doing: &'static str,
        /// What `SQLite` said.
        source: rusqlite::Error,
    },
    /// A segment of the audit log can't be read.
    #[error("can't read {0}")]
    SegmentNotRead(PathBuf, #[source] io::Error),
    /// A segment of the audit log can't be written or removed.
    #[error("can't write {0}")]
    SegmentNotWritten(PathBuf, #[source] io::Error),
    /// A job, microVM or registration that is not there.
    #[error("there is no {what} {name:?} in the ledger")]
    Unknown {
        /// A job, a microVM, a registration.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A step that does not follow from where it is.
    #[error("{what} {name} can't be {wanted}: it is {state}")]
    WrongState {
        /// A job, a microVM, a registration.
        what: &'static str,
        /// Its name.
        name: String,
        /// Where it is.
        state: String,
        /// Where it was to go.
        wanted: &'static str,
    },
    /// A value that can't be kept.
    #[error("can't write {0} as JSON")]
    Json(&'static str, #[source] serde_json::Error),
    /// No random numbers.
    #[error("can't make a new name")]
    Random(#[source] io::Error),
}

impl LedgerError {
    /// For `map_err`: `SQLite` refused to do this.
    pub(super) fn refused(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> Self {
        move |source| Self::Refused { doing, source }
    }
}

/// What to do about a damaged ledger.
const DAMAGED: &str = "stop the daemon; move the ledger, its -wal and its -shm to another directory \
    and keep them (`sqlite3 FILE .recover` may save what is in them), or put a copy back; without a \
    ledger the daemon begins a new one, and images and logs stay";

fn corrupt(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn busy(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error_code();
    matches!(code, Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

impl Failure for LedgerError {
    fn code(&self) -> Code {
        match self {
            Self::InUse(_) => Code::Unavailable,
            Self::NotOpened(_, source) | Self::Refused { source, .. } if corrupt(source) => {
                Code::BadData
            }
            Self::NotOpened(_, source) | Self::Refused { source, .. } if busy(source) => {
                Code::Unavailable
            }
            Self::NotOpened(..)
            | Self::NotLocked(..)
            | Self::SegmentNotWritten(..)
            | Self::Refused { .. } => Code::CannotWrite,
            Self::Damaged { .. } | Self::NotMigrated(..) | Self::OtherSchema(_) => Code::BadData,
            Self::NotRead(..) | Self::SegmentNotRead(..) | Self::Unknown { .. } => Code::NotFound,
            Self::WrongState { .. } => Code::Usage,
            Self::Json(..) | Self::Random(_) => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Damaged { .. } => DAMAGED,
            Self::NotOpened(_, source) | Self::Refused { source, .. } if corrupt(source) => DAMAGED,
            Self::NotOpened(_, source) | Self::Refused { source, .. } if busy(source) => {
                "another process has the ledger locked: end it (fuser names it), then try again"
            }
            Self::NotOpened(_, source) | Self::Refused { source, .. }
                if source.sqlite_error_code() == Some(ErrorCode::DiskFull) =>
            {
                "free some space on the state directory's disk; nothing that was recorded is lost"
            }
            Self::NotOpened(..) | Self::NotRead(..) => {
                "the ledger and its -wal must be readable; where the state directory can't be \
                 written to, copy both elsewhere and name that directory as the state directory"
            }
            Self::InUse(_) => "end the other daemon, or give this one a state directory of its own",
            Self::NotMigrated(..) => "it may have been written by a later version of Mayfly",
            Self::OtherSchema(_) => {
                "start the daemon of this version once: it brings it up to date"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}
