//! Closing segments of the audit log, and forgetting old ones.
//!
//! A segment is closed in this order: its file is written, synced and read back; then one transaction
//! removes its entries from the ledger, notes where the ledger's part begins, and adds an entry that
//! says so. After a crash in between, the same file is written again. Old segments are removed in the
//! other order: the ledger notes it first, then the files go. The first entry that is left anywhere
//! carries the hash of the last one that went, so the chain is never broken.
//!
//! What reads and writes files takes a [`Reader`], so that it can be done beside the daemon's loop; what
//! is left for its [`Ledger`] is one transaction each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::audit::{BASE, Broken, Head, PRUNED, VerifyError};
use super::error::LedgerError;
use super::segments::{SEGMENT, STEP, missing, name, not_read, not_written, number, read_segment};
use super::{Ledger, Reader};

/// How much of the closed segments is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// So many bytes.
    pub bytes: u64,
    /// So long after the segment was closed.
    pub age: Duration,
}

/// A segment whose file is written and holds, and whose entries the ledger still has.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    base: Head,
    head: Head,
}

/// Closed segments that are too much.
#[derive(Debug, Clone, Copy)]
pub struct Old {
    pruned: Head,
    end: Head,
    segments: usize,
}

impl Ledger {
    /// Closes the segment that was written. Returns its head; none where it is closed already.
    ///
    /// # Errors
    /// The ledger can't be written; nothing is removed then.
    pub fn close_segment(
        &mut self,
        Written { base, head }: Written,
    ) -> Result<Option<Head>, LedgerError> {
        if self.reader().audit_mark(BASE)? != base {
            return Ok(None);
        }
        self.change("close a segment of the audit log", |change| {
            change.mark(BASE, head)?;
            change.execute("DELETE FROM audit WHERE sequence <= ?1", [head.sequence])?;
            change.audit("audit.closed", &head.to_string(), &json!({ "first": base.sequence + 1 }))
        })?;
        Ok(Some(head))
    }

    /// Notes that closed segments are forgotten; their files are [`remove_forgotten`]'s. Returns the head
    /// of what went; none where they are forgotten already.
    ///
    /// # Errors
    /// The ledger can't be written.
    pub fn forget_segments(&mut self, old: Old) -> Result<Option<Head>, LedgerError> {
        if self.reader().audit_mark(PRUNED)? != old.pruned {
            return Ok(None);
        }
        self.change("forget segments of the audit log", |change| {
            change.mark(PRUNED, old.end)?;
            let going = json!({ "segments": old.segments });
            change.audit("audit.pruned", &old.end.to_string(), &going)
        })?;
        Ok(Some(old.end))
    }
}

/// Removes the files of segments that the ledger has forgotten, with those that a crash left behind.
///
/// # Errors
/// The directory can't be read, or a file can't be removed; the others go.
pub fn remove_forgotten(reader: &Reader, directory: &Path) -> Result<(), LedgerError> {
    let pruned = reader.audit_mark(PRUNED)?.sequence;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(not_read(directory))?,
    };
    let mut removed = Ok(());
    for entry in entries {
        let entry = entry.map_err(not_read(directory))?;
        if number(&entry.file_name()).is_some_and(|first| first <= pruned) {
            let path = entry.path();
            removed = removed.and(fs::remove_file(&path).map_err(not_written(&path)));
        }
    }
    removed
}

impl Reader {
    /// Writes the file of the oldest segment, where the ledger would have `left` entries and more
    /// without it.
    ///
    /// # Errors
    /// The chain does not hold, or the file can't be written.
    pub fn write_segment(
        &self,
        directory: &Path,
        left: u64,
    ) -> Result<Option<Written>, VerifyError> {
        let base = self.audit_mark(BASE)?;
        if self.audit_end()? < base.sequence + SEGMENT + left {
            return Ok(None);
        }
        fs::create_dir_all(directory).map_err(not_written(directory))?;
        let path = directory.join(name(base.sequence));
        let head = self.write_entries(base, &path)?;
        if read_segment(&path, base, |_| Ok::<_, VerifyError>(()))? != head {
            return Err(Broken::Garbled(path).into());
        }
        Ok(Some(Written { base, head }))
    }

    /// The oldest closed segments beyond what is kept.
    ///
    /// # Errors
    /// One of them can't be read, or does not hold: none goes then.
    pub fn old_segments(&self, directory: &Path, kept: Kept) -> Result<Option<Old>, VerifyError> {
        let pruned = self.audit_mark(PRUNED)?;
        let base = self.audit_mark(BASE)?;
        let closed = list(directory, pruned, base)?;
        let segments = too_much(&closed, kept, SystemTime::now());
        let mut end = pruned;
        for segment in &closed[..segments] {
            end = read_segment(&segment.path, end, |_| Ok::<_, VerifyError>(()))?;
        }
        Ok((segments > 0).then_some(Old { pruned, end, segments }))
    }
}

/// A closed segment's file.
struct Closed {
    path: PathBuf,
    bytes: u64,
    /// When it was closed.
    modified: SystemTime,
}

/// The closed segments that are kept, the oldest first.
fn list(directory: &Path, pruned: Head, base: Head) -> Result<Vec<Closed>, VerifyError> {
    let mut segments = Vec::new();
    for before in (pruned.sequence..base.sequence).step_by(STEP) {
        let path = directory.join(name(before));
        let metadata = fs::metadata(&path).map_err(|error| missing(&path, error))?;
        let modified = metadata.modified().map_err(not_read(&path))?;
        segments.push(Closed { path, bytes: metadata.len(), modified });
    }
    Ok(segments)
}

/// How many of the oldest are too much.
fn too_much(segments: &[Closed], kept: Kept, now: SystemTime) -> usize {
    let mut bytes = 0_u64;
    let stay = segments.iter().rev().take_while(|segment| {
        bytes = bytes.saturating_add(segment.bytes);
        // A clock that went back makes nothing old.
        let age = now.duration_since(segment.modified).unwrap_or_default();
        bytes <= kept.bytes && age <= kept.age
    });
    segments.len() - stay.count()
}
