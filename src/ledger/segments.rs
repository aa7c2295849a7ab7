//! The closed part of the audit log: one file per [`SEGMENT`] entries.
//!
//! Segments have fixed boundaries: the first holds entries 1 to 4096. An export has the same files,
//! and one more for the entries of the incomplete last segment.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::LedgerReader;
use super::audit::{AuditEntry, AuditHead, BASE, ChainError, PRUNED, VerifyError};
use super::error::LedgerError;

/// The number of entries of a segment: about 3 MB.
pub const SEGMENT: u64 = SEGMENT_LEN as u64;
pub(super) const SEGMENT_LEN: usize = 4096;
/// The export's file of the entries that do not fill a segment yet.
const OPEN_SEGMENT: &str = "audit-open.jsonl";
/// The maximum size of a line. Entries are far smaller, because the ledger truncates texts.
const MAX_LINE_LEN: u64 = 4 << 20;

/// Returns the file name of the segment that starts after entry `before`.
pub(super) fn file_name(before: u64) -> String {
    format!("audit-{:012}.jsonl", before + 1)
}

/// Returns the number of a segment's first entry, given its file name.
pub(super) fn first_entry(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok()
}

impl LedgerReader {
    /// Passes each entry after sequence number `after` to `take`, in order, from closed segments
    /// first.
    ///
    /// # Errors
    /// `take` fails, or an entry can't be read.
    pub fn audit_history<E: From<VerifyError> + From<LedgerError>>(
        &self,
        directory: &Path,
        after: u64,
        mut take: impl FnMut(&AuditEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let _snapshot = self.snapshot()?;
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        while end.sequence < base.sequence {
            let path = directory.join(file_name(end.sequence));
            // The requested entries start in a later segment.
            if end.sequence + SEGMENT <= after {
                end = last_head(&path)?;
                continue;
            }
            end = read_segment(&path, end, |entry| {
                if entry.sequence > after { take(entry) } else { Ok(()) }
            })?;
        }
        self.audit_entries(after.max(base.sequence), take)
    }

    /// Copies the retained log into a directory. Existing segments are not written again, but must
    /// follow from each other. Returns the head.
    ///
    /// # Errors
    /// The chain is broken, or a file can't be read or written.
    pub fn export_audit(&self, from: &Path, to: &Path) -> Result<AuditHead, VerifyError> {
        let _snapshot = self.snapshot()?;
        fs::create_dir_all(to).map_err(not_written(to))?;
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        while end.sequence < base.sequence {
            let (source, path) =
                (from.join(file_name(end.sequence)), to.join(file_name(end.sequence)));
            let before = end;
            end = read_segment(&source, before, |_| Ok::<_, VerifyError>(()))?;
            if !path.try_exists().map_err(not_read(&path))? {
                let mut reader = File::open(&source).map_err(not_read(&source))?;
                write(&path, |file| io::copy(&mut reader, file).map(drop))?;
            }
            if read_segment(&path, before, |_| Ok::<_, VerifyError>(()))? != end {
                return Err(ChainError::DamagedSegment(path).into());
            }
        }
        let last = self.audit_end()?;
        while end.sequence + SEGMENT <= last {
            end = self.write_entries(end, &to.join(file_name(end.sequence)))?;
        }
        self.write_entries(end, &to.join(OPEN_SEGMENT))
    }

    /// Verifies the chain through the closed segments, from the pruned mark to where the ledger
    /// starts. Passes each head to `visit`.
    pub(super) fn walk_segments(
        &self,
        directory: &Path,
        mut visit: impl FnMut(AuditHead),
    ) -> Result<AuditHead, VerifyError> {
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        visit(end);
        while end.sequence < base.sequence {
            end = read_segment(&directory.join(file_name(end.sequence)), end, |entry| {
                visit(AuditHead { sequence: entry.sequence, hash: entry.hash });
                Ok::<_, VerifyError>(())
            })?;
        }
        if end != base {
            return Err(ChainError::Unlinked(base.sequence + 1).into());
        }
        Ok(end)
    }

    /// Writes the entries after `before`, up to the end of its segment, into a file that replaces
    /// the existing one. Returns the head of the last entry.
    pub(super) fn write_entries(
        &self,
        before: AuditHead,
        path: &Path,
    ) -> Result<AuditHead, VerifyError> {
        let mut end = before;
        let mut chain_error = None;
        let mut read_error = None;
        write(path, |file| {
            let taken = self.audit_entries::<LedgerError>(before.sequence, |entry| {
                if chain_error.is_some() || end.sequence >= before.sequence + SEGMENT {
                    return Ok(());
                }
                match entry.check(end) {
                    Ok(next) => end = next,
                    Err(error) => chain_error = Some(error),
                }
                let mut text = serde_json::to_vec(entry)
                    .map_err(|error| LedgerError::Json("an entry", error))?;
                text.push(b'\n');
                file.write_all(&text).map_err(not_written(path))
            });
            read_error = taken.err();
            Ok(())
        })?;
        match (chain_error, read_error) {
            (Some(chain_error), _) => Err(chain_error.into()),
            (None, Some(read_error)) => Err(read_error.into()),
            (None, None) => Ok(end),
        }
    }
}

/// Verifies the files of an export without the ledger. `known` is a head that they must contain.
///
/// # Errors
/// The chain is broken, or a file is missing or can't be read.
pub fn verify_exported(
    directory: &Path,
    known: Option<AuditHead>,
) -> Result<AuditHead, VerifyError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(not_read(directory))? {
        numbers.extend(first_entry(&entry.map_err(not_read(directory))?.file_name()));
    }
    let first = numbers.iter().min().copied().unwrap_or(1);
    let open = directory.join(OPEN_SEGMENT);
    let begin = if numbers.is_empty() {
        head_before(&open)?
    } else {
        head_before(&directory.join(file_name(first.saturating_sub(1))))?
    };
    let mut end = begin;
    let mut is_found = known.is_none_or(|known| known == end);
    let mut visit = |entry: &AuditEntry| {
        is_found |= known == Some(AuditHead { sequence: entry.sequence, hash: entry.hash });
        Ok::<_, VerifyError>(())
    };
    let last = numbers.iter().max().copied().unwrap_or(0);
    while end.sequence < last {
        end = read_segment(&directory.join(file_name(end.sequence)), end, &mut visit)?;
    }
    if open.try_exists().map_err(not_read(&open))? {
        end = read_lines(&open, end, &mut visit)?;
    }
    match known {
        Some(known) if known.sequence < begin.sequence => Err(VerifyError::Pruned(known, begin)),
        Some(known) if !is_found => Err(ChainError::Rewritten(known).into()),
        _ => Ok(end),
    }
}

/// Reads a full segment and verifies its entries.
pub(super) fn read_segment<E: From<VerifyError>>(
    path: &Path,
    before: AuditHead,
    take: impl FnMut(&AuditEntry) -> Result<(), E>,
) -> Result<AuditHead, E> {
    let end = read_lines(path, before, take)?;
    if end.sequence != before.sequence + SEGMENT {
        return Err(VerifyError::from(ChainError::Missing(end.sequence + 1)).into());
    }
    Ok(end)
}

fn read_lines<E: From<VerifyError>>(
    path: &Path,
    before: AuditHead,
    mut take: impl FnMut(&AuditEntry) -> Result<(), E>,
) -> Result<AuditHead, E> {
    let mut end = before;
    for entry in lines(path)? {
        let entry = entry?;
        end = entry.check(end).map_err(VerifyError::from)?;
        take(&entry)?;
    }
    Ok(end)
}

/// Returns the head before a file's first entry, according to that entry.
fn head_before(path: &Path) -> Result<AuditHead, VerifyError> {
    match lines(path)?.next() {
        Some(entry) => {
            let AuditEntry { sequence, previous, .. } = entry?;
            Ok(AuditHead { sequence: sequence.saturating_sub(1), hash: previous })
        }
        None => Ok(AuditHead::NONE),
    }
}

/// Returns the head of a file's last entry, without verifying it.
fn last_head(path: &Path) -> Result<AuditHead, VerifyError> {
    let mut end = None;
    for entry in lines(path)? {
        let entry = entry?;
        end = Some(AuditHead { sequence: entry.sequence, hash: entry.hash });
    }
    end.ok_or_else(|| ChainError::DamagedSegment(path.to_owned()).into())
}

fn lines(
    path: &Path,
) -> Result<impl Iterator<Item = Result<AuditEntry, VerifyError>>, VerifyError> {
    let file = File::open(path).map_err(|error| missing(path, error))?;
    let mut file = BufReader::new(file);
    let path = path.to_owned();
    Ok(std::iter::from_fn(move || {
        let mut text = Vec::new();
        let mut bounded = io::Read::take(&mut file, MAX_LINE_LEN);
        match bounded.read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) if text.ends_with(b"\n") => {
                let entry = serde_json::from_slice(&text);
                Some(entry.map_err(|_| ChainError::DamagedSegment(path.clone()).into()))
            }
            Ok(_) => Some(Err(ChainError::DamagedSegment(path.clone()).into())),
            Err(error) => Some(Err(not_read(&path)(error).into())),
        }
    }))
}

/// Writes a file atomically.
fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), LedgerError> {
    let temporary = path.with_extension("new");
    let write = || {
        let mut options = File::options();
        let file = options.create(true).write(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut file = BufWriter::new(file);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        // Makes the new name survive a power failure too.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(not_written(path))
}

pub(super) fn missing(path: &Path, error: io::Error) -> VerifyError {
    match error.kind() {
        io::ErrorKind::NotFound => ChainError::MissingSegment(path.to_owned()).into(),
        _ => not_read(path)(error).into(),
    }
}

pub(super) fn not_read(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    |error| LedgerError::SegmentNotRead(path.to_owned(), error)
}

pub(super) fn not_written(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    |error| LedgerError::SegmentNotWritten(path.to_owned(), error)
}
