//! Opening: one daemon writes, whoever may read looks on.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::audit::{self, Entry};
use super::error::LedgerError;
use super::{Time, schema};

/// How long to wait for a reader that checkpoints or recovers the file, before it is named.
const BUSY: Duration = Duration::from_secs(5);
/// How long to wait for another process that has the file locked, e.g. a copy that is being made.
const LOCKED: Duration = Duration::from_secs(10 * 60);

/// The ledger as its daemon has it.
#[derive(Debug)]
pub struct Ledger {
    reader: Reader,
    path: PathBuf,
    /// Whether there was a ledger here before, which is gone or has no bytes.
    lost: bool,
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
        let unseen = |error| LedgerError::NotLocked(path.to_owned(), error);
        let empty = length(path).map_err(unseen)?.is_none_or(|length| length == 0);
        // The lock's file stays beside the ledger from its first day on.
        let lost = empty && length(&beside(path, ".lock")).map_err(unseen)?.is_some();
        let lock = lock(path)?;
        if !empty {
            whole_head(path)?;
        }
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
        patiently(path, || furnish(&connection)).map_err(|error| damaged(path, error, refused))?;
        let reader = Reader { connection };
        if let Some(what) = reader.quick_damage().map_err(|error| damaged(path, error, refused))? {
            return Err(LedgerError::Damaged { path: path.to_owned(), what });
        }
        connection = reader.connection;
        schema::migrations()
            .to_latest(&mut connection)
            .map_err(|error| LedgerError::NotMigrated(path.to_owned(), Box::new(error)))?;
        Ok(Self { reader: Reader { connection }, path: path.to_owned(), lost, _lock: lock })
    }

    /// Whether there was a ledger here before, which is gone or was of zero bytes: what it knew of
    /// jobs, microVMs and registrations is lost, and this one begins anew.
    pub fn is_lost(&self) -> bool {
        self.lost
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
        let connection = &self.reader.connection;
        // Once it is begun nobody else can be in the way.
        let begin = || Transaction::new_unchecked(connection, TransactionBehavior::Immediate);
        let transaction = patiently(&self.path, begin).map_err(LedgerError::refused(doing))?;
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
        whole_head(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(refused)?;
        connection.busy_timeout(BUSY).map_err(refused)?;
        let version = |connection: &Connection| -> rusqlite::Result<i64> {
            connection.pragma_query_value(None, "user_version", |row| row.get(0))
        };
        let (connection, version) = match version(&connection) {
            Ok(version) => (connection, version),
            // What stands beside the file can't be made in a directory that can't be written to.
            Err(error) if is_code(&error, ErrorCode::CannotOpen) && is_settled(path) => {
                let connection = immutable(path).map_err(refused)?;
                let version = version(&connection).map_err(refused)?;
                (connection, version)
            }
            Err(error) => return Err(damaged(path, error, refused)),
        };
        if version != schema::VERSION {
            return Err(LedgerError::OtherSchema(path.to_owned()));
        }
        Ok(Self { connection })
    }
}

/// How many bytes a file has; none where there is no such file. A file that can't be looked at is an
/// error: it may well be there.
fn length(path: &Path) -> io::Result<Option<u64>> {
    match std::fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A file beside the ledger.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Refuses a file that is no ledger, or only the beginning of one.
fn whole_head(path: &Path) -> Result<(), LedgerError> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    let damaged = |what: String| Err(LedgerError::Damaged { path: path.to_owned(), what });
    let mut head = Vec::new();
    // Opened before SQLite opens it: closing it drops no lock of this process.
    let read = File::open(path).and_then(|file| file.take(100).read_to_end(&mut head));
    read.map_err(|error| LedgerError::NotRead(path.to_owned(), error))?;
    if head.is_empty() {
        return damaged("it has zero bytes".to_owned());
    }
    if !head.starts_with(MAGIC) {
        return damaged("it is no SQLite database".to_owned());
    }
    if head.len() < 100 {
        return damaged(format!("only its first {} bytes are there", head.len()));
    }
    Ok(())
}

fn is_code(error: &rusqlite::Error, code: ErrorCode) -> bool {
    error.sqlite_error_code() == Some(code)
}

/// What `SQLite` says of a damaged file, as that.
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

/// Whether all of the ledger is in its one file.
fn is_settled(path: &Path) -> bool {
    match std::fs::metadata(beside(path, "-wal")) {
        Ok(log) => log.len() == 0,
        // What can't be looked at may have something in it.
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

/// Opens a file that nothing changes meanwhile.
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

/// Does something that waits a while for a lock, again while another process has the ledger: that
/// is said, and is not the daemon's end.
fn patiently<T>(path: &Path, mut work: impl FnMut() -> rusqlite::Result<T>) -> rusqlite::Result<T> {
    let since = std::time::Instant::now();
    loop {
        match work() {
            Err(error)
                if since.elapsed() < LOCKED
                    && (is_code(&error, ErrorCode::DatabaseBusy)
                        || is_code(&error, ErrorCode::DatabaseLocked)) =>
            {
                let holders = holders(path);
                let waited = since.elapsed().as_secs();
                tracing::warn!(ledger = %path.display(), holders, waited,
                    "another process has the ledger locked; it is waited for");
                // Where SQLite does not wait by itself.
                std::thread::sleep(Duration::from_millis(100));
            }
            done => return done,
        }
    }
}

/// The processes that have a lock of the ledger, as far as the kernel says.
fn holders(path: &Path) -> String {
    let files = [path.to_owned(), beside(path, "-shm")];
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
    if found.is_empty() { "not known".to_owned() } else { found.join(", ") }
}

/// A transaction.
pub(super) struct Change<'c> {
    pub(super) transaction: Transaction<'c>,
    doing: &'static str,
    pub(super) now: Time,
}

impl Change<'_> {
    /// Does something in it.
    pub(super) fn run<T>(
        &self,
        what: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        what(&self.transaction).map_err(LedgerError::refused(self.doing))
    }

    /// Executes one statement; how many rows it changed.
    pub(super) fn execute(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
    ) -> Result<usize, LedgerError> {
        self.run(|connection| connection.prepare_cached(sql)?.execute(values))
    }

    /// The first row, where there is one.
    pub(super) fn first<T>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        read: impl FnOnce(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, LedgerError> {
        use rusqlite::OptionalExtension as _;
        self.run(|connection| connection.prepare_cached(sql)?.query_row(values, read).optional())
    }

    /// Sets a mark of the audit log's.
    pub(super) fn mark(&self, key: &str, head: audit::Head) -> Result<(), LedgerError> {
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
        let entry = Entry { time: self.now, actor: audit::ACTOR, action, subject, detail: &detail };
        self.run(|connection| audit::append(connection, &entry))
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
    let name = beside(path, ".lock");
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
