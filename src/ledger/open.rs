//! Opening: one daemon writes, whoever may read looks on.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use super::audit::{self, Entry};
use super::error::LedgerError;
use super::{Time, schema};

/// How long to wait for a reader that checkpoints or recovers the file.
const BUSY: Duration = Duration::from_secs(5);

/// The ledger as its daemon has it.
#[derive(Debug)]
pub struct Ledger {
    reader: Reader,
    // Held for its lock, after the connection: fields are dropped in their order.
    _lock: Flock<File>,
}

/// The ledger, only to be looked at.
#[derive(Debug)]
pub struct Reader {
    pub(super) connection: Connection,
}

impl Ledger {
    /// Opens the ledger, makes it where it is not there, and brings its schema up to date.
    ///
    /// A second daemon is refused: the lock is a `flock(2)` of a file beside the ledger, which the
    /// kernel drops with the process. It is not of the ledger itself, whose own locks (`fcntl(2)`)
    /// a process loses when it closes any descriptor of the file.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let lock = lock(path)?;
        // Made here for its mode; SQLite gives the files beside it the same.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| LedgerError::NotLocked(path.to_owned(), error))?;
        let refused = |error| LedgerError::NotOpened(path.to_owned(), error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(refused)?;
        furnish(&connection).map_err(refused)?;
        schema::migrations()
            .to_latest(&mut connection)
            .map_err(|error| LedgerError::NotMigrated(path.to_owned(), Box::new(error)))?;
        Ok(Self { reader: Reader { connection }, _lock: lock })
    }

    /// What can be read of it.
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    /// One transaction: the changes and their audit entries, or nothing.
    pub(super) fn change<T>(
        &mut self,
        doing: &'static str,
        change: impl FnOnce(&Change<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let transaction = self
            .reader
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(LedgerError::refused(doing))?;
        let change_so_far = Change { transaction, doing, now: Time::now() };
        let result = change(&change_so_far)?;
        change_so_far.transaction.commit().map_err(LedgerError::refused(doing))?;
        Ok(result)
    }
}

impl Reader {
    /// Opens a ledger that is there, also while a daemon has it.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let refused = |error| LedgerError::NotOpened(path.to_owned(), error);
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(refused)?;
        connection.busy_timeout(BUSY).map_err(refused)?;
        let version: i64 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .map_err(refused)?;
        if version != schema::VERSION {
            return Err(LedgerError::OtherSchema(path.to_owned()));
        }
        Ok(Self { connection })
    }
}

/// A transaction.
pub(super) struct Change<'c> {
    pub(super) transaction: Transaction<'c>,
    doing: &'static str,
    pub(super) now: Time,
}

impl Change<'_> {
    /// Executes one statement; how many rows it changed.
    pub(super) fn execute(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<usize, LedgerError> {
        let run = || self.transaction.prepare_cached(sql)?.execute(values);
        run().map_err(LedgerError::refused(self.doing))
    }

    /// The first row, where there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, LedgerError> {
        use rusqlite::OptionalExtension as _;
        let run = || self.transaction.prepare_cached(sql)?.query_row(values, read).optional();
        run().map_err(LedgerError::refused(self.doing))
    }

    /// Adds an entry to the audit log.
    pub(super) fn audit(
        &self,
        action: &str,
        subject: &str,
        detail: &serde_json::Value,
    ) -> Result<(), LedgerError> {
        let detail = detail.to_string();
        let entry = Entry { time: self.now, actor: audit::ACTOR, action, subject, detail: &detail };
        audit::append(&self.transaction, &entry).map_err(LedgerError::refused(self.doing))
    }
}

fn furnish(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // With WAL this survives the end of the process at any moment; the end of the host's power
    // may take the last transactions, never part of one.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is overwritten: environments of commands.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn lock(path: &Path) -> Result<Flock<File>, LedgerError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(name)
        .map_err(|error| LedgerError::NotLocked(path.to_owned(), error))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::Error::EWOULDBLOCK)) => Err(LedgerError::InUse(path.to_owned())),
        Err((_, error)) => Err(LedgerError::NotLocked(path.to_owned(), error.into())),
    }
}
