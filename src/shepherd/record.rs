//! A microVM's directory: its record while it lives, its black box when it ended abnormally.
//!
//! Evidence is written as it comes, so that it is there however the microVM ends; a good end
//! removes it. The directory is locked by its shepherd: the kernel drops the lock with the
//! process, and a directory that nobody has locked is of a microVM that is no more.
//!
//! The directory of a detached microVM is left in every case, for the daemon to look at: it is the
//! daemon's as long as there is a `front-…` in it ([`owned`], [`collect`], [`keep`]).
//!
//! ```text
//! microvm.json           what it is
//! events.jsonl           what happened, a line each
//! programs.jsonl         what the job executed, up to a bound, where the image's agent tells
//! console.log            the end of the serial console (and console.previous)
//! qemu.log, vsock.log    what the programs complained of
//! front-…                detached: the socket for front ends
//! output.log             detached: what the job wrote, up to a bound
//! output.tail-N          detached: the end of what did not fit, until it is added to output.log
//! copy-N.tar             detached: the n-th tree that was copied out, up to a bound
//! pool                   detached, as a black box: the name of its pool
//! ```

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::detached;
use super::event::{Event, Happened, Phase};
use super::identity::{self, Identity};
use super::plan::{Id, Plan, monotonic};
use crate::host::size::Size;

/// The file with the name of a black box's pool; a microVM without a pool has none.
const POOL: &str = "pool";
/// Black boxes that are kept at the most.
const KEPT: usize = 50;
/// How long a black box is kept at the most.
const KEPT_FOR: Duration = Duration::from_secs(14 * 24 * 3600);

/// How often, and after which time, a directory is tried to be locked that others look at.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

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
    /// Tells its shepherd from a later process with the same number; older versions wrote none.
    #[serde(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<Identity>,
    /// When it was asked for: nanoseconds of `CLOCK_MONOTONIC` of its boot; older versions wrote
    /// none.
    #[serde(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<u64>,
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
    _lock: OwnedFd,
}

impl Record {
    /// Begins the record of a microVM whose directory does not exist yet, or exists and is locked
    /// already by the lock that is given.
    pub fn begin(plan: &Plan, inherited: Option<OwnedFd>) -> Result<Self, Cause> {
        let refused = |error| Cause::Record(plan.directory.clone(), error);
        let make = || {
            DirBuilder::new().mode(0o700).create(&plan.directory)?;
            lock_new(&plan.directory).map(OwnedFd::from)
        };
        let lock = inherited.map_or_else(make, Ok).map_err(refused)?;
        let summary = Summary {
            id: plan.id.clone(),
            image: plan.image.clone(),
            processors: plan.processors,
            memory: plan.memory,
            pid: host_process_id().map_err(refused)?,
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            process: Some(Identity::of("self").map_err(refused)?),
            asked: Some(plan.asked),
        };
        let text = serde_json::to_vec(&summary).map_err(|error| refused(error.into()))?;
        // Whoever reads it finds all of it or none.
        let new = plan.directory.join("microvm.json.new");
        fs::write(&new, text).map_err(refused)?;
        fs::rename(new, plan.directory.join("microvm.json")).map_err(refused)?;
        let events = File::create(plan.directory.join("events.jsonl")).map_err(refused)?;
        Ok(Self { directory: plan.directory.clone(), events, _lock: lock })
    }

    /// Adds an event.
    pub fn write(&mut self, event: &Event) -> Result<(), Cause> {
        let line = serde_json::to_string(event).map_err(io::Error::from);
        let written = line.and_then(|line| self.events.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|error| Cause::Record(self.directory.clone(), error))
    }

    /// Ends the record of a microVM that ended well: nothing is left in its directory. That itself
    /// is a mount point for its shepherd, and the front end's to remove.
    pub fn remove(self) -> Result<(), Cause> {
        empty(&self.directory).map_err(|error| Cause::Record(self.directory, error))
    }
}

fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// The process id of this process as the host sees it: the namespace of `/proc`'s mount is the
/// host's.
fn host_process_id() -> io::Result<u32> {
    let link = fs::read_link("/proc/self")?;
    link.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// Locks the directory of a microVM that is no more, so that nobody else looks after it; `None`
/// where it lives. Those who look have it for a moment only, which is waited for.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = File::open(directory)?;
    for _ in 0..LOOKS {
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB)? {
            return Ok(Some(file));
        }
        if is_living(directory)? {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(None)
}

/// Locks a directory that was just made: whoever has it looks at it only, and is soon done.
pub(super) fn lock_new(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    flock(&file, libc::LOCK_EX)?;
    Ok(file)
}

/// Whether the microVM of a directory lives. Looks do not stand in each other's way.
pub fn is_living(directory: &Path) -> io::Result<bool> {
    let file = File::open(directory)?;
    Ok(!flock(&file, libc::LOCK_SH | libc::LOCK_NB)?)
}

/// `flock(2)`; false where another has it. The lock belongs to the open file, so that a process that
/// inherits the descriptor has it too: it is gone when all have closed it.
fn flock(file: &File, operation: libc::c_int) -> io::Result<bool> {
    // SAFETY: takes an open descriptor and a number.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        },
    }
}

/// How a shepherd is, from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It holds its directory.
    Alive,
    /// Its directory is free, but its process has not ended yet.
    Ending,
    /// Its directory is free and its process has ended: nothing of the microVM is left.
    Gone,
}

/// How the shepherd of a directory is. An error says that it could not be looked at, never that it
/// is gone.
pub fn liveness(directory: &Path) -> io::Result<Liveness> {
    if is_living(directory)? {
        return Ok(Liveness::Alive);
    }
    // Without an identity a process with that number could be any by now.
    let known = summary(directory)?.filter(|summary| summary.process.is_some());
    let process = known.map(|summary| identity::find(summary.pid, summary.process.as_ref()));
    match process.transpose()?.flatten() {
        Some(_) => Ok(Liveness::Ending),
        None => Ok(Liveness::Gone),
    }
}

/// The shepherd of a directory as a process; `None` where it has ended, or has not said yet which
/// it is.
pub(super) fn process(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let Some(summary) = summary(directory)? else { return Ok(None) };
    let process = identity::find(summary.pid, summary.process.as_ref())?;
    // Without an identity: locked now, it was locked all the time, and the process is the one that
    // wrote its number.
    if summary.process.is_some() || is_living(directory)? { Ok(process) } else { Ok(None) }
}

/// Kills the shepherd of a directory, and with it everything of its microVM, through a descriptor
/// of its process. One that has ended already is no error.
pub fn kill(directory: &Path) -> io::Result<()> {
    process(directory)?.as_ref().map_or(Ok(()), identity::kill)
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

/// What was recorded of a microVM, in order; nothing where nothing was.
pub fn events(directory: &Path) -> io::Result<Vec<Event>> {
    let text = match fs::read(directory.join("events.jsonl")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    // A line that is being written, or that its writer did not live to finish, is none yet.
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(whole.filter_map(|line| Event::parse(line).ok()).collect())
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

/// Removes the directory of a detached microVM that lives no more.
pub fn collect(directory: &Path) -> io::Result<()> {
    let Some(_lock) = lock(directory)? else { return Err(io::ErrorKind::ResourceBusy.into()) };
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
    let Some(_lock) = lock(directory)? else { return Err(io::ErrorKind::ResourceBusy.into()) };
    fs::write(directory.join(POOL), pool)?;
    detached::socket(directory)?.map_or(Ok(()), |name| fs::remove_file(directory.join(name)))
}

/// The living microVMs, by name.
pub fn living(microvms: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for directory in directories(microvms)? {
        // One that ends while it is looked at is not living.
        if let (Ok(true), Some(entry)) = (is_living(&directory), read(&directory)) {
            entries.push(entry);
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
    for index in too_many(&boxes, oldest) {
        fs::remove_dir_all(&dead[index].2)?;
    }
    Ok(())
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
    let entries = fs::read_dir(microvms)?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    paths.filter(|path| path.as_ref().map_or(true, |path| path.is_dir())).collect()
}

fn read(directory: &Path) -> Option<Entry> {
    let summary = summary(directory).ok()??;
    let phases =
        events(directory).ok()?.into_iter().rev().filter_map(|event| match event.happened {
            Happened::Phase(phase) => Some(phase),
            _ => None,
        });
    let phase = phases.into_iter().next().unwrap_or(Phase::Planned);
    Some(Entry { summary, phase })
}

/// What the microVM of a directory is. None where that is not there, or can't be read as one.
pub fn summary(directory: &Path) -> io::Result<Option<Summary>> {
    match fs::read(directory.join("microvm.json")) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POOLS: [&[u8]; 4] = [b"", b"a", b"b", b"c"];

    proptest! {
        #[test]
        fn one_pools_failures_take_no_others_evidence(
            boxes in prop::collection::vec((0_usize..4, 0_u64..1000), 0..120),
            oldest in 0_u64..300,
        ) {
            let time = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let boxes: Vec<_> =
                boxes.into_iter().map(|(pool, seconds)| (POOLS[pool], time(seconds))).collect();
            let gone = too_many(&boxes, time(oldest));
            let stays = |index: &usize| !gone.contains(index);
            let fresh = |index: &usize| boxes[*index].1 >= time(oldest);
            let all = 0..boxes.len();
            let (stayed, young) = (all.clone().filter(stays), all.clone().filter(fresh));
            prop_assert_eq!(stayed.clone().count(), young.clone().count().min(KEPT));
            for pool in POOLS {
                let of_pool = |index: &usize| boxes[*index].0 == pool;
                let (had, has) = (
                    young.clone().filter(of_pool).count(),
                    stayed.clone().filter(of_pool).count(),
                );
                // Whoever has less than a share loses nothing.
                prop_assert!(has >= had.min(KEPT / POOLS.len()), "{} of {}", has, had);
                let newest = all.clone().filter(|one| of_pool(one) && fresh(one) && !stays(one));
                let newest = newest.map(|index| boxes[index].1).max();
                let kept = stayed.clone().filter(of_pool).map(|index| boxes[index].1).min();
                prop_assert!(newest.is_none() || kept.is_none() || newest <= kept);
            }
        }
    }

    #[test]
    fn what_ran_is_told_whatever_the_hosts_clock_says() {
        let directory = tempfile::tempdir().unwrap();
        let id = Id::parse("m-0123456789").unwrap();
        let asked = monotonic() - 60_000_000_000;
        let summary = Summary {
            id: id.clone(),
            image: "base".to_owned(),
            processors: 1,
            memory: Size::mebibytes(256),
            pid: std::process::id(),
            since: "1999-01-01T00:00:00Z".to_owned(),
            process: Some(Identity::of("self").unwrap()),
            asked: Some(asked),
        };
        let write = |summary: &Summary| {
            let text = serde_json::to_vec(summary).unwrap();
            fs::write(directory.path().join("microvm.json"), text).unwrap();
        };
        // By the host's clock, which was set in the meantime, it began a century later.
        let running = Event {
            time: "2099-01-01T00:00:00.000Z".to_owned(),
            microvm: id.clone(),
            elapsed_ms: 50_000.0,
            happened: Happened::Phase(Phase::Running),
        };
        let (living, events) = (true, vec![running]);
        let found = Found { id, directory: directory.path().to_owned(), living, events };
        write(&summary);
        let ago = ago(&found, Phase::Running).unwrap();
        assert!(ago >= Duration::from_secs(10) && ago < Duration::from_secs(600), "{ago:?}");
        assert_eq!(super::ago(&found, Phase::Finished), None);
        let other = Identity { boot: "another".to_owned(), ticks: 1 };
        write(&Summary { process: Some(other), ..summary.clone() });
        assert_eq!(super::ago(&found, Phase::Running), None);
        write(&Summary { asked: None, ..summary });
        assert_eq!(super::ago(&found, Phase::Running), None);
    }

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

    #[test]
    fn a_directory_goes_while_others_look_at_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m-0123456789");
        fs::create_dir(&path).unwrap();
        let looking = File::open(&path).unwrap();
        assert!(flock(&looking, libc::LOCK_SH | libc::LOCK_NB).unwrap());
        let looks = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(looking);
        });
        collect(&path).unwrap();
        assert!(!path.exists());
        looks.join().unwrap();
    }
}
