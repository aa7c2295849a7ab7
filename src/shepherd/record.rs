//! A microVM's directory: its record while it lives, its black box when it ended abnormally.
//!
//! Evidence is written as it comes, so that it is there however the microVM ends; a good end
//! removes it. The directory is locked by its shepherd: the kernel drops the lock with the
//! process, and a directory that nobody has locked is of a microVM that is no more.
//!
//! ```text
//! microvm.json           what it is
//! events.jsonl           what happened, a line each
//! console.log            the end of the serial console (and console.previous)
//! qemu.log, vsock.log    what the programs complained of
//! ```

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::event::{Event, Happened, Phase};
use super::plan::{Id, Plan};
use crate::host::size::Size;

/// Black boxes that are kept at the most.
const KEPT: usize = 50;
/// How long a black box is kept at the most.
const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// What a microVM is, for those who look from outside. Nothing of the job is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Its name.
    pub id: Id,
    /// Its image, with the digest.
    pub image: String,
    /// Virtual processors.
    pub processors: u32,
    /// Memory, in bytes.
    pub memory: Size,
    /// Its shepherd's process id on the host.
    pub pid: u32,
    /// When it was asked for (RFC 3339, UTC).
    pub since: String,
}

/// A microVM as `mayfly ps` shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// What it is.
    #[serde(flatten)]
    pub summary: Summary,
    /// The phase it is in.
    pub phase: Phase,
}

/// The record of one living microVM.
#[derive(Debug)]
pub struct Record {
    directory: PathBuf,
    events: File,
    // Held open for its lock.
    _lock: Flock<File>,
}

impl Record {
    /// Begins the record of a microVM whose directory does not exist yet.
    pub fn begin(plan: &Plan) -> Result<Self, Cause> {
        let refused = |error| Cause::Record(plan.directory.clone(), error);
        DirBuilder::new().mode(0o700).create(&plan.directory).map_err(refused)?;
        let lock = lock(&plan.directory).map_err(refused)?.ok_or_else(|| {
            Cause::Record(plan.directory.clone(), io::Error::other("another process has it"))
        })?;
        let summary = Summary {
            id: plan.id.clone(),
            image: plan.image.clone(),
            processors: plan.processors,
            memory: plan.memory,
            pid: host_process_id().map_err(refused)?,
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        };
        let text = serde_json::to_vec(&summary).map_err(|error| refused(error.into()))?;
        fs::write(plan.directory.join("microvm.json"), text).map_err(refused)?;
        let events = File::create(plan.directory.join("events.jsonl")).map_err(refused)?;
        Ok(Self { directory: plan.directory.clone(), events, _lock: lock })
    }

    /// Adds an event.
    pub fn write(&mut self, event: &Event) -> Result<(), Cause> {
        let line = serde_json::to_string(event).map_err(io::Error::from);
        let written = line.and_then(|line| self.events.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|error| Cause::Record(self.directory.clone(), error))
    }

    /// Ends the record of a microVM that ended well: nothing is left of it.
    pub fn remove(self) -> Result<(), Cause> {
        fs::remove_dir_all(&self.directory).map_err(|error| Cause::Record(self.directory, error))
    }
}

/// The process id of this process as the host sees it: the namespace of `/proc`'s mount is the
/// host's.
fn host_process_id() -> io::Result<u32> {
    let link = fs::read_link("/proc/self")?;
    link.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// Locks a microVM's directory; `None` where its shepherd has it.
fn lock(directory: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(directory)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// The living microVMs, by name.
pub fn living(microvms: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for directory in directories(microvms)? {
        // One that ends while it is looked at is not living.
        if let (Ok(None), Some(entry)) = (lock(&directory), read(&directory)) {
            entries.push(entry);
        }
    }
    entries.sort_by(|one, other| one.summary.id.cmp(&other.summary.id));
    Ok(entries)
}

/// Removes the oldest black boxes beyond what is kept.
pub fn prune(microvms: &Path) -> io::Result<()> {
    let mut dead = Vec::new();
    for directory in directories(microvms)? {
        if let (Ok(Some(lock)), Ok(metadata)) = (lock(&directory), fs::metadata(&directory)) {
            dead.push((metadata.modified()?, directory, lock));
        }
    }
    dead.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
    for (rank, (modified, directory, _lock)) in dead.into_iter().enumerate() {
        let old = modified.elapsed().is_ok_and(|age| age > KEPT_FOR);
        if rank >= KEPT || old {
            fs::remove_dir_all(&directory)?;
        }
    }
    Ok(())
}

fn directories(microvms: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(microvms)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.filter(|path| path.as_ref().map_or(true, |path| path.is_dir())).collect()
}

fn read(directory: &Path) -> Option<Entry> {
    let summary = serde_json::from_slice(&fs::read(directory.join("microvm.json")).ok()?).ok()?;
    let events = fs::read_to_string(directory.join("events.jsonl")).ok()?;
    let phases = events.lines().rev().filter_map(|line| {
        match serde_json::from_str::<Event>(line).ok()?.happened {
            Happened::Phase(phase) => Some(phase),
            _ => None,
        }
    });
    let phase = phases.into_iter().next().unwrap_or(Phase::Planned);
    Some(Entry { summary, phase })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_black_boxes_are_kept_and_the_living_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..KEPT + 3 {
            let path = directory.path().join(format!("m-{number:03}"));
            fs::create_dir(&path).unwrap();
            let time = SystemTime::now() - Duration::from_secs(1000 - number as u64);
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
        let living = lock(&directory.path().join("m-000")).unwrap().unwrap();
        prune(directory.path()).unwrap();
        assert_eq!(directories(directory.path()).unwrap().len(), KEPT + 1);
        assert!(directory.path().join("m-000").exists());
        assert!(!directory.path().join("m-001").exists());
        drop(living);
        let old = SystemTime::now() - KEPT_FOR - Duration::from_secs(1);
        File::open(directory.path().join("m-000")).unwrap().set_modified(old).unwrap();
        prune(directory.path()).unwrap();
        assert!(!directory.path().join("m-000").exists());
    }
}
