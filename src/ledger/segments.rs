//! The part of the audit log that the ledger no longer has: a file for each [`SEGMENT`] entries.
//!
//! Segments lie at fixed places: the first holds the entries 1 to 4096. An export has the same files,
//! and one more for the entries that fill no segment yet.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Reader;
use super::audit::{BASE, Broken, Head, Line, PRUNED, VerifyError};
use super::error::LedgerError;

/// How many entries a segment has: some 3 MB.
pub const SEGMENT: u64 = STEP as u64;
pub(super) const STEP: usize = 4096;
/// What an export calls the entries that fill no segment yet.
const OPEN: &str = "audit-open.jsonl";
/// The most bytes of a line: what an entry says is cut to far less when it comes in.
const MAX_LINE: u64 = 4 << 20;

/// The file of the segment that follows this entry.
pub(super) fn name(before: u64) -> String {
    format!("audit-{:012}.jsonl", before + 1)
}

/// The number of a segment's first entry, by the name of its file.
pub(super) fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix("audit-")?.strip_suffix(".jsonl")?.parse().ok()
}

impl Reader {
    /// Gives each entry after that place to `take`, in order, those of closed segments first.
    ///
    /// # Errors
    /// What `take` says; or an entry can't be read.
    pub fn audit_history<E: From<VerifyError> + From<LedgerError>>(
        &self,
        directory: &Path,
        after: u64,
        mut take: impl FnMut(&Line) -> Result<(), E>,
    ) -> Result<(), E> {
        let _moment = self.moment()?;
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        while end.sequence < base.sequence {
            let path = directory.join(name(end.sequence));
            // What was asked for does not begin before the next segment.
            if end.sequence + SEGMENT <= after {
                end = last(&path)?;
                continue;
            }
            end =
                read_segment(
                    &path,
                    end,
                    |line| {
                        if line.sequence > after { take(line) } else { Ok(()) }
                    },
                )?;
        }
        self.audit_lines(after.max(base.sequence), take)
    }

    /// Copies all of the log that is kept into a directory; segments that are there already are not
    /// written again, but must follow from each other. Returns the head.
    ///
    /// # Errors
    /// The chain does not hold; a file can't be read or written.
    pub fn export_audit(&self, from: &Path, to: &Path) -> Result<Head, VerifyError> {
        let _moment = self.moment()?;
        fs::create_dir_all(to).map_err(not_written(to))?;
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        while end.sequence < base.sequence {
            let (source, path) = (from.join(name(end.sequence)), to.join(name(end.sequence)));
            let before = end;
            end = read_segment(&source, before, |_| Ok::<_, VerifyError>(()))?;
            if !path.try_exists().map_err(not_read(&path))? {
                let mut reader = File::open(&source).map_err(not_read(&source))?;
                write(&path, |file| io::copy(&mut reader, file).map(drop))?;
            }
            if read_segment(&path, before, |_| Ok::<_, VerifyError>(()))? != end {
                return Err(Broken::Garbled(path).into());
            }
        }
        let last = self.audit_end()?;
        while end.sequence + SEGMENT <= last {
            end = self.write_entries(end, &to.join(name(end.sequence)))?;
        }
        self.write_entries(end, &to.join(OPEN))
    }

    /// Follows the chain through closed segments, from what was pruned to where the ledger begins.
    /// `meet` is given each head.
    pub(super) fn walk_segments(
        &self,
        directory: &Path,
        mut meet: impl FnMut(Head),
    ) -> Result<Head, VerifyError> {
        let (pruned, base) = (self.audit_mark(PRUNED)?, self.audit_mark(BASE)?);
        let mut end = pruned;
        meet(end);
        while end.sequence < base.sequence {
            end = read_segment(&directory.join(name(end.sequence)), end, |line| {
                meet(Head { sequence: line.sequence, hash: line.hash });
                Ok::<_, VerifyError>(())
            })?;
        }
        if end != base {
            return Err(Broken::Unlinked(base.sequence + 1).into());
        }
        Ok(end)
    }

    /// Writes the entries after one, up to the end of its segment, into a file that takes the place of
    /// what is there. Returns the head of the last.
    pub(super) fn write_entries(&self, before: Head, path: &Path) -> Result<Head, VerifyError> {
        let mut end = before;
        let mut broken = None;
        let mut refused = None;
        write(path, |file| {
            let taken = self.audit_lines::<LedgerError>(before.sequence, |line| {
                if broken.is_some() || end.sequence >= before.sequence + SEGMENT {
                    return Ok(());
                }
                match line.check(end) {
                    Ok(next) => end = next,
                    Err(error) => broken = Some(error),
                }
                let mut text = serde_json::to_vec(line)
                    .map_err(|error| LedgerError::Json("an entry", error))?;
                text.push(b'\n');
                file.write_all(&text).map_err(not_written(path))
            });
            refused = taken.err();
            Ok(())
        })?;
        match (broken, refused) {
            (Some(broken), _) => Err(broken.into()),
            (None, Some(refused)) => Err(refused.into()),
            (None, None) => Ok(end),
        }
    }
}

/// Verifies the files of an export by themselves. `kept` is a head that they must contain.
///
/// # Errors
/// The chain does not hold; there is no file, or it can't be read.
pub fn verify_exported(directory: &Path, kept: Option<Head>) -> Result<Head, VerifyError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(directory).map_err(not_read(directory))? {
        numbers.extend(number(&entry.map_err(not_read(directory))?.file_name()));
    }
    let first = numbers.iter().min().copied().unwrap_or(1);
    let open = directory.join(OPEN);
    let begin = if numbers.is_empty() {
        first_of(&open)?
    } else {
        first_of(&directory.join(name(first.saturating_sub(1))))?
    };
    let mut end = begin;
    let mut met = kept.is_none_or(|kept| kept == end);
    let mut meet = |line: &Line| {
        met |= kept == Some(Head { sequence: line.sequence, hash: line.hash });
        Ok::<_, VerifyError>(())
    };
    let last = numbers.iter().max().copied().unwrap_or(0);
    while end.sequence < last {
        end = read_segment(&directory.join(name(end.sequence)), end, &mut meet)?;
    }
    if open.try_exists().map_err(not_read(&open))? {
        end = read_lines(&open, end, &mut meet)?;
    }
    match kept {
        Some(kept) if kept.sequence < begin.sequence => Err(VerifyError::Forgotten(kept, begin)),
        Some(kept) if !met => Err(Broken::Rewritten(kept).into()),
        _ => Ok(end),
    }
}

/// Reads a whole segment, each entry of which must follow from the one before.
pub(super) fn read_segment<E: From<VerifyError>>(
    path: &Path,
    before: Head,
    take: impl FnMut(&Line) -> Result<(), E>,
) -> Result<Head, E> {
    let end = read_lines(path, before, take)?;
    if end.sequence != before.sequence + SEGMENT {
        return Err(VerifyError::from(Broken::Missing(end.sequence + 1)).into());
    }
    Ok(end)
}

fn read_lines<E: From<VerifyError>>(
    path: &Path,
    before: Head,
    mut take: impl FnMut(&Line) -> Result<(), E>,
) -> Result<Head, E> {
    let mut end = before;
    for line in lines(path)? {
        let line = line?;
        end = line.check(end).map_err(VerifyError::from)?;
        take(&line)?;
    }
    Ok(end)
}

/// The head before a file's first entry, by what that says.
fn first_of(path: &Path) -> Result<Head, VerifyError> {
    match lines(path)?.next() {
        Some(line) => {
            let Line { sequence, previous, .. } = line?;
            Ok(Head { sequence: sequence.saturating_sub(1), hash: previous })
        }
        None => Ok(Head::NONE),
    }
}

/// The head of a file's last entry, which is not checked.
fn last(path: &Path) -> Result<Head, VerifyError> {
    let mut end = None;
    for line in lines(path)? {
        let line = line?;
        end = Some(Head { sequence: line.sequence, hash: line.hash });
    }
    end.ok_or_else(|| Broken::Garbled(path.to_owned()).into())
}

fn lines(path: &Path) -> Result<impl Iterator<Item = Result<Line, VerifyError>>, VerifyError> {
    let file = File::open(path).map_err(|error| missing(path, error))?;
    let mut file = BufReader::new(file);
    let path = path.to_owned();
    Ok(std::iter::from_fn(move || {
        let mut text = Vec::new();
        let mut bounded = io::Read::take(&mut file, MAX_LINE);
        match bounded.read_until(b'\n', &mut text) {
            Ok(0) => None,
            Ok(_) if text.ends_with(b"\n") => {
                let line = serde_json::from_slice(&text);
                Some(line.map_err(|_| Broken::Garbled(path.clone()).into()))
            }
            Ok(_) => Some(Err(Broken::Garbled(path.clone()).into())),
            Err(error) => Some(Err(not_read(&path)(error).into())),
        }
    }))
}

/// Writes a file that is there whole or not at all.
fn write(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), LedgerError> {
    let beside = path.with_extension("new");
    let made = || {
        let mut options = File::options();
        let file = options.create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
        let mut file = BufWriter::new(file);
        fill(&mut file)?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&beside, path)?;
        // The name, too, survives the end of the host's power.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    made().map_err(not_written(path))
}

pub(super) fn missing(path: &Path, error: io::Error) -> VerifyError {
    match error.kind() {
        io::ErrorKind::NotFound => Broken::NoSegment(path.to_owned()).into(),
        _ => not_read(path)(error).into(),
    }
}

pub(super) fn not_read(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    |error| LedgerError::SegmentNotRead(path.to_owned(), error)
}

pub(super) fn not_written(path: &Path) -> impl FnOnce(io::Error) -> LedgerError {
    |error| LedgerError::SegmentNotWritten(path.to_owned(), error)
}
