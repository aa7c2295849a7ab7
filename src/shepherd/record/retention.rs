//! The directories of all microVMs: which are running, which are uncollected, and which black boxes
//! are retained.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::super::detached;
use super::super::event::{Event, EventKind, Phase};
use super::super::identity;
use super::super::plan::{MicrovmId, monotonic};
use super::liveness::{Liveness, is_locked, kill, liveness, lock};
use super::{MicrovmSummary, read_events, read_summary};

/// The file with the name of a black box's pool. Missing without a pool.
const POOL: &str = "pool";
/// Maximum number of black boxes.
const MAX_BLACK_BOXES: usize = 50;
/// Maximum age of a black box.
const MAX_BLACK_BOX_AGE: Duration = Duration::from_secs(14 * 24 * 3600);

/// A running microVM, as `mayfly ps` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MicrovmEntry {
    /// Its summary.
    #[serde(flatten)]
    pub summary: MicrovmSummary,
    /// Its current phase.
    pub phase: Phase,
}

/// A detached microVM, as a restarted daemon finds it.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedMicrovm {
    /// Its name.
    pub id: MicrovmId,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether it is alive; [`crate::ShepherdHandle::attach`] attaches to it.
    pub is_alive: bool,
    /// Its events so far. Complete if it is not alive.
    pub events: Vec<Event>,
}

/// Lists the uncollected detached microVMs, alive or not, sorted by name.
pub fn uncollected(microvms: &Path) -> io::Result<Vec<RecordedMicrovm>> {
    let mut found = Vec::new();
    for directory in directories(microvms)? {
        let name = directory.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(MicrovmId::parse) else { continue };
        // Checked before the events are read, so that those of an ended microVM are complete.
        let is_alive = match liveness(&directory) {
            Ok(liveness) => liveness != Liveness::Gone,
            // Collected in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if detached::socket_name(&directory)?.is_some() {
            let events = read_events(&directory)?;
            found.push(RecordedMicrovm { id, directory, is_alive, events });
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// Returns the time since a microVM entered a phase, by a clock that does not jump when the host's
/// time is set and that stops while the host is suspended. `None` if it never entered the phase or
/// was started before the host's last boot.
pub fn time_since_phase(found: &RecordedMicrovm, phase: Phase) -> Option<Duration> {
    let summary = read_summary(&found.directory).ok()??;
    if summary.process?.boot != identity::boot_id().ok()? {
        return None;
    }
    let mut events = found.events.iter();
    let entered = events.find(|event| event.kind == EventKind::Phase(phase))?;
    let after = Duration::try_from_secs_f64(entered.elapsed_ms / 1e3).ok()?;
    let entered = Duration::from_nanos(summary.requested_at?).checked_add(after)?;
    Some(Duration::from_nanos(monotonic()).saturating_sub(entered))
}

/// Locks the directory of an ended microVM. A process that still runs without the lock is a
/// compromised shepherd, and is killed.
fn lock_ended(directory: &Path) -> io::Result<File> {
    let lock = lock(directory)?.ok_or(io::ErrorKind::ResourceBusy)?;
    kill(directory)?;
    Ok(lock)
}

/// Removes the directory of an ended detached microVM.
pub fn collect(directory: &Path) -> io::Result<()> {
    let _lock = lock_ended(directory)?;
    // The socket is removed last: after an interruption, the daemon finds the directory again.
    let socket = detached::socket_name(directory)?;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_str() != socket.as_deref() {
            if entry.file_type()?.is_dir() {
                fs::remove_dir_all(entry.path())?;
            } else {
                fs::remove_file(entry.path())?;
            }
        }
    }
    fs::remove_dir_all(directory)
}

/// Turns the directory of an ended detached microVM of a pool into a black box, which [`prune`]
/// removes later.
pub fn keep_black_box(directory: &Path, pool: &str) -> io::Result<()> {
    let _lock = lock_ended(directory)?;
    fs::write(directory.join(POOL), pool)?;
    detached::socket_name(directory)?.map_or(Ok(()), |name| fs::remove_file(directory.join(name)))
}

/// Lists the running microVMs, sorted by name.
pub fn list_running(microvms: &Path) -> io::Result<Vec<MicrovmEntry>> {
    let mut entries = Vec::new();
    for directory in directories(microvms)? {
        let read_running = |directory: &Path| {
            if is_locked(directory)? { read(directory) } else { Ok(None) }
        };
        match read_running(&directory) {
            Ok(entry) => entries.extend(entry),
            // It ended in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    entries.sort_by(|one, other| one.summary.id.cmp(&other.summary.id));
    Ok(entries)
}

/// Removes black boxes that are too old or too many. Directories that a daemon has not collected
/// yet are left alone.
pub fn prune(microvms: &Path) -> io::Result<()> {
    let mut ended = Vec::new();
    for directory in directories(microvms)? {
        if !matches!(detached::socket_name(&directory), Ok(None)) {
            continue;
        }
        if let (Ok(Some(lock)), Ok(metadata)) = (lock(&directory), fs::metadata(&directory)) {
            let pool = fs::read(directory.join(POOL)).unwrap_or_default();
            ended.push((pool, metadata.modified()?, directory, lock));
        }
    }
    let oldest = SystemTime::now().checked_sub(MAX_BLACK_BOX_AGE).unwrap_or(SystemTime::UNIX_EPOCH);
    let boxes: Vec<_> = ended.iter().map(|(pool, modified, ..)| (&pool[..], *modified)).collect();
    // A failed removal does not prevent the others.
    let removed =
        select_excess(&boxes, oldest).into_iter().map(|index| fs::remove_dir_all(&ended[index].2));
    removed.fold(Ok(()), Result::and)
}

/// Selects black boxes to remove, given their pools and times: those that are too old, and while
/// there are too many, the oldest of the largest pool.
fn select_excess(boxes: &[(&[u8], SystemTime)], oldest: SystemTime) -> Vec<usize> {
    let mut pools = BTreeMap::<&[u8], Vec<usize>>::new();
    let mut gone = Vec::new();
    for (index, (pool, modified)) in boxes.iter().enumerate() {
        if *modified < oldest {
            gone.push(index);
        } else {
            pools.entry(*pool).or_default().push(index);
        }
    }
    for own in pools.values_mut() {
        own.sort_by_key(|index| Reverse(boxes[*index].1));
    }
    let mut remaining = boxes.len() - gone.len();
    while remaining > MAX_BLACK_BOXES {
        // Among pools of equal size, the one with the oldest black box.
        let time = |own: &Vec<usize>| own.last().map(|index| Reverse(boxes[*index].1));
        let largest = pools.values_mut().max_by_key(|own| (own.len(), time(own)));
        let Some(index) = largest.and_then(Vec::pop) else { break };
        gone.push(index);
        remaining -= 1;
    }
    gone
}

fn directories(microvms: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(microvms)? {
        let entry = entry?;
        // An unreadable entry is an error, not another kind of file.
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    Ok(directories)
}

/// Reads a microVM's summary and phase. `None` if its record is not written yet.
fn read(directory: &Path) -> io::Result<Option<MicrovmEntry>> {
    let Some(summary) = read_summary(directory)? else { return Ok(None) };
    let mut phases =
        read_events(directory)?.into_iter().rev().filter_map(|event| match event.kind {
            EventKind::Phase(phase) => Some(phase),
            _ => None,
        });
    let phase = phases.next().unwrap_or(Phase::Planned);
    Ok(Some(MicrovmEntry { summary, phase }))
}

#[cfg(test)]
#[path = "retention_tests.rs"]
mod tests;
