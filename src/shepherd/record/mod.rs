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

mod keeping;
mod liveness;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::event::Event;
use super::identity::Identity;
use super::plan::{Id, Plan};
use crate::host::size::Size;
pub use keeping::{Entry, Found, ago, collect, keep, living, owned, prune};
pub use liveness::{Liveness, is_living, kill, liveness};
pub(super) use liveness::{lock_new, process};

/// Bytes of what a microVM is, and of its events, at the most: a shepherd that was taken over may
/// write more, and whoever reads them has memory for all of them.
const SUMMARY: u64 = 64 << 10;
const EVENTS: u64 = 16 << 20;

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

/// There are but files.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// The process id of this process as the host sees it: the namespace of `/proc`'s mount is the
/// host's.
fn host_process_id() -> io::Result<u32> {
    let link = fs::read_link("/proc/self")?;
    link.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// What was recorded of a microVM, in order; nothing where nothing was.
pub fn events(directory: &Path) -> io::Result<Vec<Event>> {
    let Some(text) = read(&directory.join("events.jsonl"), EVENTS)? else { return Ok(Vec::new()) };
    // A line that is being written, or that its writer did not live to finish, is none yet.
    let whole = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(whole.filter_map(|line| Event::parse(line).ok()).collect())
}

/// What the microVM of a directory is. None where that is not there, or can't be read as one.
pub fn summary(directory: &Path) -> io::Result<Option<Summary>> {
    let text = read(&directory.join("microvm.json"), SUMMARY)?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// The beginning of a file. None where there is none.
fn read(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(Some(text))
}
