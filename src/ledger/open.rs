//! Opening the ledger: one daemon writes, others may read.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::Flock;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::audit::{self, NewEntry};
use super::error::LedgerError;
use super::{Time, schema};
use mayfly_host::lock::try_exclusive;

/// How long to wait for a reader that checkpoints or recovers the file before logging it.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for another process that has the file locked, e.g. while copying it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// The ledger, opened for writing by its daemon.
#[derive(Debug)]
pub struct Ledger {
    reader: LedgerReader,
    path: PathBuf,
    /// Whether a previous ledger is gone or empty.
    is_lost: bool,
    // Holds the lock. After the connection: fields are dropped in order.
    _lock: Flock<File>,
}

/// The ledger, opened for reading.
#[derive(Debug)]
pub struct LedgerReader {
    pub(super) connection: Connection,
}

impl Ledger {
    /// Opens the ledger, creates it if it does not exist, and migrates its schema.
    ///
    /// Fails if another daemon has it open: the lock is a `flock(2)` of a file beside the ledger,
    /// which the kernel drops with the process. The ledger itself is not locked, because a process
    /// loses its `fcntl(2)` locks when it closes any descriptor of the file.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let not_locked = |error| LedgerError::NotLocked(path.to_owned(), error);
        let is_empty = length(path).map_err(not_locked)?.is_none_or(|length| length == 0);
        // The lock file exists from the first start on.
        let is_lost = is_empty && length(&sibling(path, ".lock")).map_err(not_locked)?.is_some();
        let lock = lock(path)?;
        if !is_empty {
            check_header(path)?;
        }
        // Created here for its mode; SQLite gives its other files the same.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| LedgerError::NotLocked(path.to_owned(), error))?;
        let not_opened = |error| LedgerError::NotOpened(path.to_owned(), error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags).map_err(not_opened)?;
        retry_while_locked(path, || configure(&connection))
            .map_err(|error| damaged(path, error, not_opened))?;
        let reader = LedgerReader { connection };
        if let Some(what) =
            reader.quick_damage().map_err(|error| damaged(path, error, not_opened))?
        {
            return Err(LedgerError::Damaged { path: path.to_owned(), what });
        }
        connection = reader.connection;
        schema::migrations()
            .to_latest(&mut connection)
            .map_err(|error| LedgerError::NotMigrated(path.to_owned(), Box::new(error)))?;
        Ok(Self {
            reader: LedgerReader { connection },
            path: path.to_owned(),
            is_lost,
            _lock: lock,
        })
    }

    /// Returns whether a previous ledger is gone or empty: its jobs, microVMs and registrations are
    /// lost, and this ledger is new.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Returns the reader of the same connection.
    pub fn reader(&self) -> &LedgerReader {
        &self.reader
    }

    /// Runs one transaction: all changes and their audit entries, or nothing.
    pub(super) fn change<T>(
        &mut self,
        action: &'static str,
        change: impl FnOnce(&Change<'_>) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        let connection = &self.reader.connection;
        // After the start, no other process can interfere.
        let begin = || Transaction::new_unchecked(connection, TransactionBehavior::Immediate);
        let transaction =
            retry_while_locked(&self.path, begin).map_err(LedgerError::failed(action))?;
        let pending = Change { transaction, action, now: Time::now() };
        let result = change(&pending)?;
        pending.transaction.commit().map_err(LedgerError::failed(action))?;
        Ok(result)
    }
}

impl LedgerReader {
    /// Opens an existing ledger, also while a daemon has it open.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let not_opened = |error| LedgerError::NotOpened(path.to_owned(), error);
        check_header(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(not_opened)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(not_opened)?;
        let version = |connection: &Connection| -> rusqlite::Result<i64> {
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        let (connection, version) = match version(&connection) {
            Ok(version) => (connection, version),
            // In a read-only directory, SQLite can't create its files beside the ledger.
            Err(error) if is_code(&error, ErrorCode::CannotOpen) && is_checkpointed(path) => {
                let connection = immutable(path).map_err(not_opened)?;
                let version = version(&connection).map_err(not_opened)?;
                (connection, version)
            }
            Err(error) => return Err(damaged(path, error, not_opened)),
        };
        if version != schema::VERSION {
            return Err(LedgerError::OtherSchema(path.to_owned()));
        }
        Ok(Self { connection })
    }
}

/// Returns the size of a file; `None` if it does not exist. If that can't be determined, it is an
/// error: the file may well exist.
fn length(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the path of a file beside the ledger.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Fails if the file is not a ledger or is truncated within the header.
fn check_header(path: &Path) -> Result<(), LedgerError> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let damaged = |what: String| Err(LedgerError::Damaged { path: path.to_owned(), what });
    let mut head = Vec::new();
    // Read before SQLite opens the file: closing it drops no lock of this process.
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    read.map_err(|error| LedgerError::NotRead(path.to_owned(), error))?;
    if head.is_empty() {
        return damaged("the file is empty".to_owned());
    }
    if !head.starts_with(MAGIC) {
        return damaged("not an SQLite database".to_owned());
    }
    if head.len() < 100 {
        return damaged(format!("truncated after {} bytes", head.len()));
    }
    Ok(())
}

fn is_code(error: &rusqlite::Error, code: ErrorCode) -> bool {
    error.sqlite_error_code() == Some(code)
}

/// Converts `SQLite`'s errors about a damaged file.
fn damaged(
    path: &Path,
    error: rusqlite::Error,
    other: impl FnOnce(rusqlite::Error) -> LedgerError,
) -> LedgerError {
    let corrupt = [ErrorCode::DatabaseCorrupt, ErrorCode::NotADatabase];
    if corrupt.iter().any(|code| is_code(&error, *code)) {
        return LedgerError::Damaged { path: path.to_owned(), what: error.to_string() };
    }
    other(error)
}

/// Returns whether the write-ahead log is empty, so that one file has all of the ledger.
fn is_checkpointed(path: &Path) -> bool {
    match std::fs::metadata(sibling(path, "-wal")) {
        Ok(log) => log.len() == 0,
        // An inaccessible log may have content.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Opens a file that does not change meanwhile.
pub(super) fn immutable(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let escaped: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

/// Runs `work` again while another process has the ledger locked. Logs the process; the daemon goes
/// on waiting.
fn retry_while_locked<T>(
    path: &Path,
    mut work: impl FnMut() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let since = std::time::Instant::now();
    loop {
        match work() {
            Err(error)
                if since.elapsed() < LOCK_TIMEOUT
                    && (is_code(&error, ErrorCode::DatabaseBusy)
                        || is_code(&error, ErrorCode::DatabaseLocked)) =>
            {
                let holders = holders(path);
                let waited = since.elapsed().as_secs();
                tracing::warn!(ledger = %path.display(), holders, waited,
                    "waiting: another process has the ledger locked");
                // SQLite does not always wait by itself.
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// Returns the processes that hold a lock of the ledger, as far as the kernel reports them.
fn holders(path: &Path) -> String {
    let files = [path.to_owned(), sibling(path, "-shm")];
    let inodes: Vec<u64> = files
        .iter()
        .filter_map(|file| std::fs::metadata(file).ok())
        .map(|found| std::os::unix::fs::MetadataExt::ino(&found))
        .collect();
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let own = std::process::id().to_string();
    let mut found: Vec<String> = Vec::new();
    for line in locks.lines() {
        // 1: POSIX ADVISORY WRITE 4711 08:01:131 120 120
        let mut words = line.split_whitespace().filter(|word| *word != "->").skip(4);
        let (Some(process), Some(file)) = (words.next(), words.next()) else { continue };
        let inode = file.rsplit(':').next().and_then(|inode| inode.parse().ok());
        if inode.is_some_and(|inode| inodes.contains(&inode)) && process != own {
            let name = std::fs::read_to_string(format!("/proc/{process}/comm"));
            let name = name.unwrap_or_default();
            let holder = format!("{process} ({})", name.trim());
            if !found.contains(&holder) {
                found.push(holder);
            }
        }
    }
    if found.is_empty() { "unknown".to_owned() } else { found.join(", ") }
}

/// A transaction that changes the ledger.
pub(super) struct Change<'c> {
    pub(super) transaction: Transaction<'c>,
    action: &'static str,
    pub(super) now: Time,
}

impl Change<'_> {
    /// Runs `work` in it.
    pub(super) fn run<T>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        work(&self.transaction).map_err(LedgerError::failed(self.action))
    }

    /// Executes one statement. Returns the number of changed rows.
    pub(super) fn execute(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<usize, LedgerError> {
        self.run(|connection| connection.prepare_cached(sql)?.execute(values))
    }

    /// Returns the first row, if any.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, LedgerError> {
        use rusqlite::OptionalExtension as _;
        self.run(|connection| connection.prepare_cached(sql)?.query_row(values, read).optional())
    }

    /// Sets a mark of the audit log.
    pub(super) fn mark(&self, key: &str, head: audit::AuditHead) -> Result<(), LedgerError> {
        self.set_meta(key, &head.to_string())
    }

    /// Adds an entry to the audit log.
    pub(super) fn audit(
        &self,
        action: &str,
        subject: &str,
        detail: &serde_json::Value,
    ) -> Result<(), LedgerError> {
        let detail = detail.to_string();
        let entry =
            NewEntry { time: self.now, actor: audit::ACTOR, action, subject, detail: &detail };
        self.run(|connection| audit::append(connection, &entry))
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // With WAL, transactions survive the end of the process at any moment. A power failure may lose
    // the last ones, never part of one.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // Overwrites deleted content: environments of commands.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn lock(path: &Path) -> Result<Flock<File>, LedgerError> {
    let name = sibling(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(name)
        .map_err(|error| LedgerError::NotLocked(path.to_owned(), error))?;
    try_exclusive(file)
        .map_err(|error| LedgerError::NotLocked(path.to_owned(), error))?
        .ok_or_else(|| LedgerError::InUse(path.to_owned()))
}
