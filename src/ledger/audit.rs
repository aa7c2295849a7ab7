//! The audit log: a chain in which each entry carries the hash of the one before.
//!
//! The hash is SHA-256 over the hash before and the entry's fields, each preceded by its length,
//! so that no two different entries are the same bytes. Changing, removing, inserting or
//! reordering entries breaks the chain at that place; removing the last ones is seen by the head
//! that the ledger keeps beside the chain.
//!
//! The ledger has the newest entries; older ones are in files beside it ([`super::segments`]), and the
//! oldest may be gone. Two marks tell where each part begins.
//!
//! What it can't show: someone who may write the file can cut the end *and* the head, or write a
//! whole new chain. Against that the [`Head`] is to be kept elsewhere now and then: a chain that
//! does not contain it has been rewritten.

use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

use super::error::LedgerError;
use super::{Reader, Time, meta};

/// Who made the changes: all are the daemon's.
pub(super) const ACTOR: &str = "daemon";
/// Distinguishes these hashes from all others; with the version of the encoding.
const DOMAIN: &[u8] = b"mayfly audit 1\0";
const HEAD: &str = "audit_head";
/// Where the head is of what the ledger no longer has.
pub(super) const BASE: &str = "audit_base";
/// Where the head is of what nobody has any more.
pub(super) const PRUNED: &str = "audit_pruned";

/// A link of the chain: SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// What comes before the first entry.
    const NONE: Self = Self([0; 32]);
}

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Hash({self})")
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        let hash = bytes.and_then(|bytes| bytes.try_into().ok()).map(Self);
        hash.ok_or_else(|| serde::de::Error::custom("no SHA-256 in lower-case hexadecimal digits"))
    }
}

/// An entry to be appended.
pub(super) struct Entry<'a> {
    pub(super) time: Time,
    pub(super) actor: &'a str,
    pub(super) action: &'a str,
    pub(super) subject: &'a str,
    /// JSON.
    pub(super) detail: &'a str,
}

impl Entry<'_> {
    fn hash(&self, sequence: i64, previous: Hash) -> Hash {
        let mut hasher = Sha256::new();
        hasher.update(DOMAIN);
        hasher.update(previous.0);
        hasher.update(sequence.to_be_bytes());
        hasher.update(self.time.0.to_be_bytes());
        for field in [self.actor, self.action, self.subject, self.detail] {
            hasher.update((field.len() as u64).to_be_bytes());
            hasher.update(field);
        }
        Hash(hasher.finalize().into())
    }
}

/// The end of the chain: `SEQUENCE:HASH` as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Head {
    /// The last entry's place; 0 where there is none.
    pub sequence: u64,
    /// Its hash.
    pub hash: Hash,
}

impl Head {
    /// Before the first entry.
    pub(super) const NONE: Self = Self { sequence: 0, hash: Hash::NONE };
}

impl fmt::Display for Head {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.sequence, self.hash)
    }
}

/// A text that is no head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no head of an audit log; it is written SEQUENCE:HASH")]
pub struct NotAHead(String);

impl std::str::FromStr for Head {
    type Err = NotAHead;

    fn from_str(text: &str) -> Result<Self, NotAHead> {
        let parse = || {
            let (sequence, hash) = text.split_once(':')?;
            let hash = data_encoding::HEXLOWER.decode(hash.as_bytes()).ok()?;
            Some(Self { sequence: sequence.parse().ok()?, hash: Hash(hash.try_into().ok()?) })
        };
        parse().ok_or_else(|| NotAHead(text.to_owned()))
    }
}

/// The chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// This entry is missing: what follows is there.
    #[error("entry {0} of the audit log is missing")]
    Missing(u64),
    /// This entry does not carry the hash of the one before.
    #[error("entry {0} of the audit log does not follow from the one before")]
    Unlinked(u64),
    /// This entry is not what its hash says.
    #[error("entry {0} of the audit log was changed")]
    Changed(u64),
    /// The chain is not as long as it was, or was not written by the ledger.
    #[error("the audit log ends at entry {found}; the ledger's head is {head}")]
    Cut {
        /// Where the chain ends.
        found: u64,
        /// Where it should.
        head: u64,
    },
    /// The chain never had this head.
    #[error("the audit log does not contain {0}: it was rewritten or cut")]
    Rewritten(Head),
    /// A closed segment is not where it was put.
    #[error("a segment of the audit log is missing: {}", .0.display())]
    NoSegment(PathBuf),
    /// A closed segment has something else in it than whole entries.
    #[error("a segment of the audit log is damaged: {}", .0.display())]
    Garbled(PathBuf),
}

/// An audit log is broken, or can't be read.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is broken.
    #[error(transparent)]
    Broken(#[from] Broken),
    /// A head of entries that are not kept any more.
    #[error("{0} can't be looked for: only what follows {1} is kept")]
    Forgotten(Head, Head),
    /// It can't be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl crate::failure::Failure for VerifyError {
    fn code(&self) -> crate::failure::Code {
        match self {
            Self::Broken(_) => crate::failure::Code::BadData,
            Self::Forgotten(..) => crate::failure::Code::NotFound,
            Self::Ledger(error) => error.code(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Broken(_) => None,
            Self::Forgotten(..) => {
                Some("look in an export: `mayfly audit verify --exported DIRECTORY`".to_owned())
            }
            Self::Ledger(error) => error.hint(),
        }
    }
}

/// An entry, for export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its place.
    pub sequence: u64,
    /// When.
    pub time: Time,
    /// Who.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub subject: String,
    /// The rest, as JSON.
    pub detail: String,
    /// The hash of the entry before.
    pub previous: Hash,
    /// Its own hash.
    pub hash: Hash,
}

impl Line {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            sequence: row.get(0)?,
            time: row.get(1)?,
            actor: row.get(2)?,
            action: row.get(3)?,
            subject: row.get(4)?,
            detail: row.get(5)?,
            previous: Hash(row.get(6)?),
            hash: Hash(row.get(7)?),
        })
    }

    /// Whether it follows from the entry before and is what its hash says.
    pub(super) fn check(&self, before: Head) -> Result<Head, Broken> {
        if self.sequence != before.sequence + 1 {
            return Err(Broken::Missing(before.sequence + 1));
        }
        if self.previous != before.hash {
            return Err(Broken::Unlinked(self.sequence));
        }
        let Self { time, actor, action, subject, detail, .. } = self;
        let entry = Entry { time: *time, actor, action, subject, detail };
        let sequence = i64::try_from(self.sequence).unwrap_or(i64::MAX);
        if entry.hash(sequence, self.previous) != self.hash {
            return Err(Broken::Changed(self.sequence));
        }
        Ok(Head { sequence: self.sequence, hash: self.hash })
    }
}

pub(super) fn append(connection: &Connection, entry: &Entry<'_>) -> rusqlite::Result<()> {
    let last = connection
        .prepare_cached("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?, Hash(row.get(1)?))))
        .optional()?;
    // The ledger may have closed all of it.
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

/// One of the marks; where there is none, nothing was closed or pruned. One that can't be read is taken
/// for none: then the chain does not hold.
fn mark(connection: &Connection, key: &str) -> rusqlite::Result<Head> {
    let text = meta::read(connection, key)?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(Head::NONE))
}

const SELECT: &str = "SELECT sequence, time, actor, action, subject, detail, previous, hash
     FROM audit WHERE sequence > ?1 ORDER BY sequence";

impl Reader {
    /// Follows the chain from the first entry that is kept to its last, all of one moment: through
    /// the closed segments in `directory`, then through the ledger. `kept` is a head that was kept
    /// elsewhere: the chain must contain it.
    ///
    /// # Errors
    /// The chain does not hold, or can't be read.
    pub fn verify_audit(&self, directory: &Path, kept: Option<Head>) -> Result<Head, VerifyError> {
        loop {
            let before = self.audit_mark(PRUNED)?;
            match self.verify_once(directory, kept) {
                // The daemon removed old segments meanwhile.
                Err(VerifyError::Broken(Broken::NoSegment(_)))
                    if self.audit_mark(PRUNED)? != before => {}
                verified => return verified,
            }
        }
    }

    fn verify_once(&self, directory: &Path, kept: Option<Head>) -> Result<Head, VerifyError> {
        let _moment = self.moment()?;
        let pruned = self.audit_mark(PRUNED)?;
        let mut met = false;
        let mut end = self.walk_segments(directory, |head| met |= kept == Some(head))?;
        self.audit_lines::<VerifyError>(end.sequence, |line| {
            end = line.check(end)?;
            met |= kept == Some(end);
            Ok(())
        })?;
        let head = self.audit_mark(HEAD)?;
        if head != end {
            return Err(Broken::Cut { found: end.sequence, head: head.sequence }.into());
        }
        match kept {
            Some(kept) if kept.sequence < pruned.sequence => {
                Err(VerifyError::Forgotten(kept, pruned))
            }
            Some(kept) if !met => Err(Broken::Rewritten(kept).into()),
            _ => Ok(end),
        }
    }

    /// As long as it is held, all that is read is of one moment: the daemon may append meanwhile, or
    /// close a segment.
    pub(super) fn moment(&self) -> Result<Transaction<'_>, LedgerError> {
        self.connection.unchecked_transaction().map_err(LedgerError::refused("read the audit log"))
    }

    /// A mark of the audit log's.
    pub(super) fn audit_mark(&self, key: &str) -> Result<Head, LedgerError> {
        mark(&self.connection, key).map_err(LedgerError::refused("read the audit log"))
    }

    /// The place of the last entry; 0 where there is none.
    pub fn audit_end(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT max(sequence) FROM audit", [], |row| row.get(0))
            .map_err(LedgerError::refused("read the audit log"))
            .and_then(|last: Option<u64>| Ok(last.unwrap_or(self.audit_mark(BASE)?.sequence)))
    }

    /// Gives each entry after that place to `take`, in order, until it fails.
    pub fn audit_lines<E: From<LedgerError>>(
        &self,
        after: u64,
        mut take: impl FnMut(&Line) -> Result<(), E>,
    ) -> Result<(), E> {
        const DOING: &str = "read the audit log";
        let mut statement =
            self.connection.prepare_cached(SELECT).map_err(LedgerError::refused(DOING))?;
        let mut rows = statement.query([after]).map_err(LedgerError::refused(DOING))?;
        while let Some(row) = rows.next().map_err(LedgerError::refused(DOING))? {
            take(&Line::read(row).map_err(LedgerError::refused(DOING))?)?;
        }
        Ok(())
    }
}
