//! The audit log: a chain of entries, each with the hash of the one before.
//!
//! The hash is SHA-256 over the previous hash and the entry's fields, each preceded by its length,
//! so that no two different entries have the same encoding. Changing, removing, inserting or
//! reordering entries breaks the chain at that place. Removing the last ones is detected by the
//! head that the ledger stores beside the chain.
//!
//! The ledger has the newest entries. Older ones are in files beside it ([`super::segments`]), and
//! the oldest may be pruned. Two marks record where each part starts.
//!
//! Limits: someone with write access to the file can cut the end *and* the head, or write a new
//! chain. To detect that, keep the [`AuditHead`] elsewhere now and then: a chain that does not
//! contain it has been rewritten.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::error::LedgerError;
use super::{LedgerReader, Time, meta};

/// The actor of every change: the daemon.
pub(super) const ACTOR: &str = "daemon";
/// Separates these hashes from all others, and has the version of the encoding.
const DOMAIN: &[u8] = b"mayfly audit 1\0";
const HEAD: &str = "audit_head";
/// The key of the last head that was moved from the ledger to a segment.
pub(super) const BASE: &str = "audit_base";
/// The key of the last head that was pruned.
pub(super) const PRUNED: &str = "audit_pruned";

/// The hash of an entry: SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct AuditHash([u8; 32]);

impl AuditHash {
    /// The previous hash of the first entry.
    const NONE: Self = Self([0; 32]);
}

impl fmt::Display for AuditHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for AuditHash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AuditHash({self})")
    }
}

impl Serialize for AuditHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AuditHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let hash = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        hash.ok_or_else(|| {
            serde::de::Error::custom("not a SHA-256 in lower-case hexadecimal digits")
        })
    }
}

/// An entry to append.
pub(super) struct NewEntry<'a> {
    pub(super) time: Time,
    pub(super) actor: &'a str,
    pub(super) action: &'a str,
    pub(super) subject: &'a str,
    /// JSON.
    pub(super) detail: &'a str,
}

impl NewEntry<'_> {
    fn hash(&self, sequence: i64, previous: AuditHash) -> AuditHash {
        let mut hasher = Sha256::new();
        hasher.update(DOMAIN);
        hasher.update(previous.0);
        hasher.update(sequence.to_be_bytes());
        hasher.update(self.time.0.to_be_bytes());
        for field in [self.actor, self.action, self.subject, self.detail] {
            hasher.update((field.len() as u64).to_be_bytes());
            hasher.update(field);
        }
        AuditHash(hasher.finalize().into())
    }
}

/// The end of the chain: `SEQUENCE:HASH` as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuditHead {
    /// The sequence number of the last entry; 0 if the log is empty.
    pub sequence: u64,
    /// Its hash.
    pub hash: AuditHash,
}

impl AuditHead {
    /// The head of an empty log.
    pub(super) const NONE: Self = Self { sequence: 0, hash: AuditHash::NONE };
}

impl fmt::Display for AuditHead {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.sequence, self.hash)
    }
}

/// The text is not a head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a head of an audit log: expected SEQUENCE:HASH")]
pub struct InvalidHead(String);

impl std::str::FromStr for AuditHead {
    type Err = InvalidHead;

    fn from_str(text: &str) -> Result<Self, InvalidHead> {
        let parse = || {
            let (sequence, hash) = text.split_once(':')?;
            let hash = data_encoding::HEXLOWER.decode(hash.as_bytes()).ok()?;
            Some(Self { sequence: sequence.parse().ok()?, hash: AuditHash(hash.try_into().ok()?) })
        };
        parse().ok_or_else(|| InvalidHead(text.to_owned()))
    }
}

/// The chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// This entry is missing, but later ones exist.
    #[error("entry {0} of the audit log is missing")]
    Missing(u64),
    /// This entry has a different previous hash.
    #[error("entry {0} of the audit log does not match the hash of the previous entry")]
    Unlinked(u64),
    /// This entry does not match its own hash.
    #[error("entry {0} of the audit log was changed")]
    Changed(u64),
    /// The chain was shortened, or not written by the ledger.
    #[error("the audit log ends at entry {found}, but the ledger's head is entry {head}")]
    Truncated {
        /// Where the chain ends.
        found: u64,
        /// Where it should end.
        head: u64,
    },
    /// The chain does not contain this head.
    #[error("the audit log does not contain {0}: it was rewritten or truncated")]
    Rewritten(AuditHead),
    /// The file of a closed segment is missing.
    #[error("missing segment of the audit log: {}", .0.display())]
    MissingSegment(PathBuf),
    /// The file of a closed segment does not parse.
    #[error("damaged segment of the audit log: {}", .0.display())]
    DamagedSegment(PathBuf),
}

/// The audit log is broken or can't be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The chain is broken.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The head's entries have been pruned.
    #[error("can't search for {0}: entries up to {1} have been pruned")]
    Pruned(AuditHead, AuditHead),
    /// Reading the ledger failed.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl mayfly_failure::Failure for VerifyError {
    fn code(&self) -> mayfly_failure::Code {
        match self {
            Self::Chain(_) => mayfly_failure::Code::BadData,
            Self::Pruned(..) => mayfly_failure::Code::NotFound,
            Self::Ledger(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Chain(_) => None,
            Self::Pruned(..) => Some(
                "verify an export instead: `mayfly audit verify --exported DIRECTORY`".to_owned(),
            ),
            Self::Ledger(error) => error.hint(),
        }
    }
}

/// An entry of the audit log, as exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// The sequence number.
    pub sequence: u64,
    /// When the change was made.
    pub time: Time,
    /// Who made it.
    pub actor: String,
    /// The change.
    pub action: String,
    /// The changed object.
    pub subject: String,
    /// Details, as JSON.
    pub detail: String,
    /// The hash of the previous entry.
    pub previous: AuditHash,
    /// The hash of this entry.
    pub hash: AuditHash,
}

impl AuditEntry {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sequence: row.get(0)?,
            time: row.get(1)?,
            actor: row.get(2)?,
            action: row.get(3)?,
            subject: row.get(4)?,
            detail: row.get(5)?,
            previous: AuditHash(row.get(6)?),
            hash: AuditHash(row.get(7)?),
        })
    }

    /// Checks that it follows `before` and matches its hash. Returns its head.
    pub(super) fn check(&self, before: AuditHead) -> Result<AuditHead, ChainError> {
        if self.sequence != before.sequence + 1 {
            return Err(ChainError::Missing(before.sequence + 1));
        }
        if self.previous != before.hash {
            return Err(ChainError::Unlinked(self.sequence));
        }
        let Self { time, actor, action, subject, detail, .. } = self;
        let entry = NewEntry { time: *time, actor, action, subject, detail };
        let sequence = i64::try_from(self.sequence).unwrap_or(i64::MAX);
        if entry.hash(sequence, self.previous) != self.hash {
            return Err(ChainError::Changed(self.sequence));
        }
        Ok(AuditHead { sequence: self.sequence, hash: self.hash })
    }
}

pub(super) fn append(connection: &Connection, entry: &NewEntry<'_>) -> rusqlite::Result<()> {
    let last = connection
        .prepare_cached("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?, AuditHash(row.get(1)?))))
        .optional()?;
    // All entries may be in closed segments.
    let (sequence, previous) = if let Some(last) = last {
        last
    } else {
        let base = mark(connection, BASE)?;
        (i64::try_from(base.sequence).unwrap_or(i64::MAX), base.hash)
    };
    let sequence = sequence + 1;
    let hash = entry.hash(sequence, previous);
    connection
        .prepare_cached(
            "INSERT INTO audit (sequence, time, actor, action, subject, detail, previous, hash)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            sequence,
            entry.time,
            entry.actor,
            entry.action,
            entry.subject,
            entry.detail,
            previous.0,
            hash.0
        ])?;
    meta::write(connection, HEAD, &format!("{sequence}:{hash}"))
}

/// Reads a mark. A missing one means that nothing was closed or pruned. An unreadable one counts as
/// missing: verifying the chain then fails.
fn mark(connection: &Connection, key: &str) -> rusqlite::Result<AuditHead> {
    let text = meta::read(connection, key)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(AuditHead::NONE))
}

const SELECT: &str = "SELECT sequence, time, actor, action, subject, detail, previous, hash
     FROM audit WHERE sequence > ?1 ORDER BY sequence";

impl LedgerReader {
    /// Verifies the chain from the first retained entry to the last, in one snapshot: through the
    /// closed segments in `directory`, then through the ledger. `known` is a head that was kept
    /// elsewhere: the chain must contain it.
    ///
    /// # Errors
    /// The chain is broken, or can't be read.
    pub fn verify_audit(
        &self,
        directory: &Path,
        known: Option<AuditHead>,
    ) -> Result<AuditHead, VerifyError> {
        loop {
            let before = self.audit_mark(PRUNED)?;
            match self.verify_once(directory, known) {
                // The daemon has pruned segments meanwhile: start over.
                Err(VerifyError::Chain(ChainError::MissingSegment(_)))
                    if self.audit_mark(PRUNED)? != before => {}
                verified => return verified,
            }
        }
    }

    fn verify_once(
        &self,
        directory: &Path,
        known: Option<AuditHead>,
    ) -> Result<AuditHead, VerifyError> {
        let _snapshot = self.snapshot()?;
        let pruned = self.audit_mark(PRUNED)?;
        let mut is_found = false;
        let mut end = self.walk_segments(directory, |head| is_found |= known == Some(head))?;
        self.audit_entries::<VerifyError>(end.sequence, |entry| {
            end = entry.check(end)?;
            is_found |= known == Some(end);
            Ok(())
        })?;
        let head = self.audit_mark(HEAD)?;
        if head != end {
            return Err(ChainError::Truncated { found: end.sequence, head: head.sequence }.into());
        }
        match known {
            Some(known) if known.sequence < pruned.sequence => {
                Err(VerifyError::Pruned(known, pruned))
            }
            Some(known) if !is_found => Err(ChainError::Rewritten(known).into()),
            _ => Ok(end),
        }
    }

    /// Starts a read transaction: everything read while it is held is of one moment, although the
    /// daemon may append entries or close a segment meanwhile.
    pub(super) fn snapshot(&self) -> Result<Transaction<'_>, LedgerError> {
        self.connection.unchecked_transaction().map_err(LedgerError::failed("read the audit log"))
    }

    /// Reads a mark of the audit log.
    pub(super) fn audit_mark(&self, key: &str) -> Result<AuditHead, LedgerError> {
        mark(&self.connection, key).map_err(LedgerError::failed("read the audit log"))
    }

    /// Returns the sequence number of the last entry; 0 if the log is empty.
    pub fn audit_end(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT max(sequence) FROM audit", [], |row| row.get(0))
            .map_err(LedgerError::failed("read the audit log"))
            .and_then(|last: Option<u64>| Ok(last.unwrap_or(self.audit_mark(BASE)?.sequence)))
    }

    /// Passes each entry after sequence number `after` to `take`, in order, until it fails.
    pub fn audit_entries<E: From<LedgerError>>(
        &self,
        after: u64,
        mut take: impl FnMut(&AuditEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        const ACTION: &str = "read the audit log";
        let mut statement =
            self.connection.prepare_cached(SELECT).map_err(LedgerError::failed(ACTION))?;
        let mut rows = statement.query([after]).map_err(LedgerError::failed(ACTION))?;
        while let Some(row) = rows.next().map_err(LedgerError::failed(ACTION))? {
            take(&AuditEntry::read(row).map_err(LedgerError::failed(ACTION))?)?;
        }
        Ok(())
    }
}
