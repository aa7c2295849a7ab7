//! The directories of many microVMs: which live, which are still to be collected, which black boxes
//! are kept.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::super::detached;
use super::super::event::{Event, Happened, Phase};
use super::super::identity;
use super::super::plan::{Id, monotonic};
use super::liveness::{Liveness, is_living, kill, liveness, lock};
use super::{Summary, events, summary};

/// The file with the name of a black box's pool; a microVM without a pool has none.
const POOL: &str = "pool";
/// Black boxes that are kept at the most.
const KEPT: usize = 50;
/// How long a black box is kept at the most.
const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// A microVM as `mayfly ps` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// What it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// The phase it is in.
    pub phase: Phase,
}

/// What a daemon finds of a microVM when it comes back.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its name.
    pub id: Id,
    /// Its directory.
    pub directory: PathBuf,
    /// Whether it lives; [`super::Handle::attach`] takes it up.
    pub living: bool,
    /// What it recorded so far. Complete where it lives no more.
    pub events: Vec<Event>,
}

/// The detached microVMs that nobody has collected yet, living or not, by name.
pub fn owned(microvms: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for directory in directories(microvms)? {
        let name = directory.file_name().and_then(|name| name.to_str());
        let Some(id) = name.and_then(Id::parse) else { continue };
        // The first question: what ends between it and the reading is complete when it is read.
        let living = match liveness(&directory) {
            Ok(liveness) => liveness != Liveness::Gone,
            // Collected in the meantime.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if detached::socket(&directory)?.is_some() {
            let events = events(&directory)?;
            found.push(Found { id, directory, living, events });
        }
    }
    found.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(found)
}

/// How long ago a microVM entered a phase, by a clock that does not jump when the host's is set and
/// stands still while the host is suspended. None where it has not entered it, or was booted before
/// the host was.
pub fn ago(found: &Found, phase: Phase) -> Option<Duration> {
    let summary = summary(&found.directory).ok()??;
    if summary.process?.boot != identity::boot().ok()? {
        return None;
    }
    let mut events = found.events.iter();
    let entered = events.find(|event| event.happened == Happened::Phase(phase))?;
    let after = Duration::try_from_secs_f64(entered.elapsed_ms / 1e3).ok()?;
    let entered = Duration::from_nanos(summary.asked?).checked_add(after)?;
    Some(Duration::from_nanos(monotonic()).saturating_sub(entered))
}

/// Locks the directory of a microVM that lives no more. A shepherd that has let go of it and lives
/// on was taken over, and is killed.
fn take(directory: &Path) -> io::Result<File> {
    let lock = lock(directory)?.ok_or(io::ErrorKind::ResourceBusy)?;
    kill(directory)?;
    Ok(lock)
}

/// Removes the directory of a detached microVM that lives no more.
pub fn collect(directory: &Path) -> io::Result<()> {
    let _lock = take(directory)?;
    // The socket comes last: as long as it is there, a daemon that is interrupted here comes back.
    let socket = detached::socket(directory)?;
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

/// Makes the directory of a detached microVM of a pool's that lives no more a black box like any
/// other, to be removed when there are too many.
pub fn keep(directory: &Path, pool: &str) -> io::Result<()> {
    let _lock = take(directory)?;
    fs::write(directory.join(POOL), pool)?;
    detached::socket(directory)?.map_or(Ok(()), |name| fs::remove_file(directory.join(name)))
}

/// The living microVMs, by name.
pub fn living(microvms: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for directory in directories(microvms)? {
        let look = |directory: &Path| {
            if is_living(directory)? { read(directory) } else { Ok(None) }
        };
        match look(&directory) {
            Ok(entry) => entries.extend(entry),
            // One that ends while it is looked at is not living.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    entries.sort_by(|one, other| one.summary.id.cmp(&other.summary.id));
    Ok(entries)
}

/// Removes the black boxes that are too old or too many. Those that a daemon has not collected yet
/// are left alone.
pub fn prune(microvms: &Path) -> io::Result<()> {
    let mut dead = Vec::new();
    for directory in directories(microvms)? {
        if !matches!(detached::socket(&directory), Ok(None)) {
            continue;
        }
        if let (Ok(Some(lock)), Ok(metadata)) = (lock(&directory), fs::metadata(&directory)) {
            let pool = fs::read(directory.join(POOL)).unwrap_or_default();
            dead.push((pool, metadata.modified()?, directory, lock));
        }
    }
    let oldest = SystemTime::now().checked_sub(KEPT_FOR).unwrap_or(SystemTime::UNIX_EPOCH);
    let boxes: Vec<_> = dead.iter().map(|(pool, modified, ..)| (&pool[..], *modified)).collect();
    // One that can't be removed keeps no other.
    let removed =
        too_many(&boxes, oldest).into_iter().map(|index| fs::remove_dir_all(&dead[index].2));
    removed.fold(Ok(()), Result::and)
}

/// Which black boxes go, given their pools and times: those that are too old; and while there are too
/// many, the oldest of the pool that has the most.
fn too_many(boxes: &[(&[u8], SystemTime)], oldest: SystemTime) -> Vec<usize> {
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
    let mut left = boxes.len() - gone.len();
    while left > KEPT {
        // Of pools that have as many, the one with the oldest.
        let time = |own: &Vec<usize>| own.last().map(|index| Reverse(boxes[*index].1));
        let largest = pools.values_mut().max_by_key(|own| (own.len(), time(own)));
        let Some(index) = largest.and_then(Vec::pop) else { break };
        gone.push(index);
        left -= 1;
    }
    gone
}

fn directories(microvms: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for entry in fs::read_dir(microvms)? {
        let entry = entry?;
        // One that can't be looked at is no other kind of file for that.
        if entry.file_type()?.is_dir() {
            directories.push(entry.path());
        }
    }
    Ok(directories)
}

/// None of one whose record is not written yet.
fn read(directory: &Path) -> io::Result<Option<Entry>> {
    let Some(summary) = summary(directory)? else { return Ok(None) };
    let mut phases =
        events(directory)?.into_iter().rev().filter_map(|event| match event.happened {
            Happened::Phase(phase) => Some(phase),
            _ => None,
        });
    let phase = phases.next().unwrap_or(Phase::Planned);
    Ok(Some(Entry { summary, phase }))
}

#[cfg(test)]
#[path = "keeping_tests.rs"]
mod tests;
