//! Closes segments of the audit log, and prunes old ones.
//!
//! To close a segment, its file is written, synced and read back; then one transaction removes its
//! entries from the ledger, moves the mark where the ledger's part starts, and adds an audit entry.
//! After a crash in between, the same file is written again. Pruning goes the other way round: the
//! ledger moves its mark first, then the files are removed. The first retained entry has the hash
//! of the last pruned one, so the chain is never broken.
//!
//! Methods that read and write files take a [`LedgerReader`], so that they can run outside the
//! daemon's event loop. The [`Ledger`] methods are one short transaction each.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;

use super::audit::{AuditHead, BASE, ChainError, PRUNED, VerifyError};
use super::error::LedgerError;
use super::segments::{
    SEGMENT, SEGMENT_LEN, file_name, first_entry, missing, not_read, not_written, read_segment,
};
use super::{Ledger, LedgerReader};

/// The limits of the retained closed segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRetention {
    /// Their maximum total size.
    pub bytes: u64,
    /// Their maximum age since they were closed.
    pub age: Duration,
}

/// A segment whose file is written and verified, but whose entries are still in the ledger.
#[derive(Debug, Clone, Copy)]
pub struct WrittenSegment {
    base: AuditHead,
    head: AuditHead,
}

/// Closed segments beyond the limits.
#[derive(Debug, Clone, Copy)]
pub struct OldSegments {
    pruned: AuditHead,
    end: AuditHead,
    segments: usize,
}

impl Ledger {
    /// Closes a written segment. Returns its head, or `None` if it is closed already.
    ///
    /// # Errors
    /// The ledger can't be written. Nothing is removed then.
    pub fn close_segment(
        &mut self,
        WrittenSegment { base, head }: WrittenSegment,
    ) -> Result<Option<AuditHead>, LedgerError> {
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

    /// Records that closed segments are pruned; [`remove_pruned_files`] removes their files.
    /// Returns the head of the last pruned entry, or `None` if they are pruned already.
    ///
    /// # Errors
    /// The ledger can't be written.
    pub fn prune_segments(&mut self, old: OldSegments) -> Result<Option<AuditHead>, LedgerError> {
        if self.reader().audit_mark(PRUNED)? != old.pruned {
            return Ok(None);
        }
        self.change("prune segments of the audit log", |change| {
            change.mark(PRUNED, old.end)?;
            let detail = json!({ "segments": old.segments });
            change.audit("audit.pruned", &old.end.to_string(), &detail)
        })?;
        Ok(Some(old.end))
    }
}

/// Removes the files of pruned segments, including those that a crash left behind.
///
/// # Errors
/// The directory can't be read, or a file can't be removed. The other files are removed anyway.
pub fn remove_pruned_files(reader: &LedgerReader, directory: &Path) -> Result<(), LedgerError> {
    let pruned = reader.audit_mark(PRUNED)?.sequence;
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(not_read(directory))?,
    };
    let mut removed = Ok(());
    for entry in entries {
        let entry = entry.map_err(not_read(directory))?;
        if first_entry(&entry.file_name()).is_some_and(|first| first <= pruned) {
            let path = entry.path();
            removed = removed.and(fs::remove_file(&path).map_err(not_written(&path)));
        }
    }
    removed
}

impl LedgerReader {
    /// Writes the file of the oldest segment in the ledger, if at least `remaining` entries stay in
    /// the ledger without it.
    ///
    /// # Errors
    /// The chain is broken, or the file can't be written.
    pub fn write_segment(
        &self,
        directory: &Path,
        remaining: u64,
    ) -> Result<Option<WrittenSegment>, VerifyError> {
        let base = self.audit_mark(BASE)?;
        if self.audit_end()? < base.sequence + SEGMENT + remaining {
            return Ok(None);
        }
        fs::create_dir_all(directory).map_err(not_written(directory))?;
        let path = directory.join(file_name(base.sequence));
        let head = self.write_entries(base, &path)?;
        if read_segment(&path, base, |_| Ok::<_, VerifyError>(()))? != head {
            return Err(ChainError::DamagedSegment(path).into());
        }
        Ok(Some(WrittenSegment { base, head }))
    }

    /// Returns the oldest closed segments beyond the limits.
    ///
    /// # Errors
    /// One of them can't be read or is broken. None is pruned then.
    pub fn old_segments(
        &self,
        directory: &Path,
        limits: SegmentRetention,
    ) -> Result<Option<OldSegments>, VerifyError> {
        let pruned = self.audit_mark(PRUNED)?;
        let base = self.audit_mark(BASE)?;
        let closed = list(directory, pruned, base)?;
        let segments = count_excess(&closed, limits, SystemTime::now());
        let mut end = pruned;
        for segment in &closed[..segments] {
            end = read_segment(&segment.path, end, |_| Ok::<_, VerifyError>(()))?;
        }
        Ok((segments > 0).then_some(OldSegments { pruned, end, segments }))
    }
}

/// The file of a closed segment.
struct ClosedSegment {
    path: PathBuf,
    bytes: u64,
    /// When it was closed.
    modified: SystemTime,
}

/// Lists the retained closed segments, oldest first.
fn list(
    directory: &Path,
    pruned: AuditHead,
    base: AuditHead,
) -> Result<Vec<ClosedSegment>, VerifyError> {
    let mut segments = Vec::new();
    for before in (pruned.sequence..base.sequence).step_by(SEGMENT_LEN) {
        let path = directory.join(file_name(before));
        let metadata = fs::metadata(&path).map_err(|error| missing(&path, error))?;
        let modified = metadata.modified().map_err(not_read(&path))?;
        segments.push(ClosedSegment { path, bytes: metadata.len(), modified });
    }
    Ok(segments)
}

/// Returns how many of the oldest segments are beyond the limits.
fn count_excess(segments: &[ClosedSegment], limits: SegmentRetention, now: SystemTime) -> usize {
    let mut bytes = 0_u64;
    let retained = segments.iter().rev().take_while(|segment| {
        bytes = bytes.saturating_add(segment.bytes);
        // A clock set back makes no segment old.
        let age = now.duration_since(segment.modified).unwrap_or_default();
        bytes <= limits.bytes && age <= limits.age
    });
    segments.len() - retained.count()
}
