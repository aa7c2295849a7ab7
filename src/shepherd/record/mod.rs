//! A microVM's directory: its record while it runs, its black box after a failure.
//!
//! Evidence is written as it arrives, so that it exists however the microVM ends; a regular end
//! removes it. The shepherd locks the directory. The kernel releases the lock when the process
//! ends, so an unlocked directory belongs to an ended microVM.
//!
//! The directory of a detached microVM always remains for the daemon, to which it belongs while a
//! `front-…` is in it ([`uncollected`], [`collect`], [`keep_black_box`]).
//!
//! ```text
//! microvm.json           summary of the microVM
//! events.jsonl           its events, one per line
//! programs.jsonl         programs that the job executed, size-limited, if the agent reports them
//! console.log            end of the serial console (and console.previous)
//! qemu.log, vsock.log    error output of the programs
//! front-…                detached: socket for front ends
//! output.log             detached: output of the job, size-limited
//! output.tail-N          detached: end of longer output, until it is appended to output.log
//! copy-N.tar             detached: the n-th tree that was copied out, size-limited
//! pool                   detached, as a black box: name of its pool
//! ```

mod liveness;
mod retention;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::cause::FailureCause;
use super::event::Event;
use super::identity::ProcessIdentity;
use super::plan::{Deadlines, MicrovmId, MicrovmPlan};
pub use liveness::{Liveness, is_locked, kill, liveness};
pub(super) use liveness::{lock_created, process};
use mayfly_host::size::Size;
pub use retention::{
    MicrovmEntry, RecordedMicrovm, collect, keep_black_box, list_running, prune, time_since_phase,
    uncollected,
};

/// Maximum sizes, in bytes, of the summary and the events that are read into memory. A compromised
/// shepherd may write more.
const MAX_SUMMARY: u64 = 64 << 10;
const MAX_EVENTS: u64 = 16 << 20;

/// The summary of a microVM for other processes. It contains nothing of the job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MicrovmSummary {
    /// Its name.
    pub id: MicrovmId,
    /// Its image, with the digest.
    pub image: String,
    /// Virtual processors.
    pub processors: u32,
    /// Memory, in bytes.
    pub memory: Size,
    /// Its shepherd's process id on the host.
    pub pid: u32,
    /// When it was requested (RFC 3339, UTC).
    pub since: String,
    /// Tells its shepherd from a later process with the same id. Older versions wrote none.
    #[serde(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessIdentity>,
    /// When it was requested: nanoseconds of `CLOCK_MONOTONIC` of its boot. Older versions wrote
    /// none.
    #[serde(rename = "asked", default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<u64>,
    /// Its deadlines, for a daemon that adopts it. Older versions wrote none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadlines: Option<RecordedDeadlines>,
}

/// The deadlines of a microVM that its daemon needs, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedDeadlines {
    /// From its plan until its guest is ready.
    #[serde(rename = "boot_ms")]
    pub boot: u64,
    /// While ready without a job.
    #[serde(rename = "idle_ms")]
    pub idle: u64,
    /// While its job runs.
    #[serde(rename = "job_ms")]
    pub job: u64,
    /// From the interrupt of a runner to the end of its microVM.
    #[serde(rename = "farewell_ms")]
    pub farewell: u64,
}

impl From<&Deadlines> for RecordedDeadlines {
    fn from(deadlines: &Deadlines) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            boot: ms(deadlines.prepare.saturating_add(deadlines.boot)),
            idle: ms(deadlines.idle),
            job: ms(deadlines.job),
            farewell: ms(deadlines.farewell),
        }
    }
}

/// The record of one running microVM.
#[derive(Debug)]
pub struct Record {
    directory: PathBuf,
    events: File,
    // Held open for the lock.
    _lock: OwnedFd,
}

impl Record {
    /// Creates the record. The directory must not exist yet, or must be locked by the inherited
    /// lock.
    pub fn create(plan: &MicrovmPlan, inherited: Option<OwnedFd>) -> Result<Self, FailureCause> {
        let refused = |error| FailureCause::Record(plan.directory.clone(), error);
        let create = || {
            DirBuilder::new().mode(0o700).create(&plan.directory)?;
            lock_created(&plan.directory).map(OwnedFd::from)
        };
        let lock = inherited.map_or_else(create, Ok).map_err(refused)?;
        let summary = MicrovmSummary {
            id: plan.id.clone(),
            image: plan.image.clone(),
            processors: plan.processors,
            memory: plan.memory,
            pid: host_process_id().map_err(refused)?,
            since: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            process: Some(ProcessIdentity::read("self").map_err(refused)?),
            requested_at: Some(plan.requested_at),
            deadlines: Some((&plan.deadlines).into()),
        };
        let text = serde_json::to_vec(&summary).map_err(|error| refused(error.into()))?;
        // Renamed into place, so that readers never see a part of it.
        let new = plan.directory.join("microvm.json.new");
        fs::write(&new, text).map_err(refused)?;
        fs::rename(new, plan.directory.join("microvm.json")).map_err(refused)?;
        let events = File::create(plan.directory.join("events.jsonl")).map_err(refused)?;
        Ok(Self { directory: plan.directory.clone(), events, _lock: lock })
    }

    /// Appends an event.
    pub fn write(&mut self, event: &Event) -> Result<(), FailureCause> {
        let line = serde_json::to_string(event).map_err(io::Error::from);
        let written = line.and_then(|line| self.events.write_all(format!("{line}\n").as_bytes()));
        written.map_err(|error| FailureCause::Record(self.directory.clone(), error))
    }

    /// Removes the record's files after a regular end. The directory itself is a mount point of
    /// this shepherd; the front end removes it.
    pub fn remove(self) -> Result<(), FailureCause> {
        remove_files(&self.directory).map_err(|error| FailureCause::Record(self.directory, error))
    }
}

/// Removes all files of a directory that has no subdirectories.
fn remove_files(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Returns the process id of this process on the host. `/proc` is mounted in the host's process-id
/// namespace.
fn host_process_id() -> io::Result<u32> {
    let link = fs::read_link("/proc/self")?;
    link.to_str().and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidData.into())
}

/// Reads the recorded events of a microVM, in order. Empty if there are none.
pub fn read_events(directory: &Path) -> io::Result<Vec<Event>> {
    let Some(text) = read_bounded(&directory.join("events.jsonl"), MAX_EVENTS)? else {
        return Ok(Vec::new());
    };
    // An incomplete last line is still being written, or its writer was killed.
    let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    Ok(lines.filter_map(|line| Event::parse(line).ok()).collect())
}

/// Reads the summary in a directory. `None` if it is missing or invalid.
pub fn read_summary(directory: &Path) -> io::Result<Option<MicrovmSummary>> {
    let text = read_bounded(&directory.join("microvm.json"), MAX_SUMMARY)?;
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
}

/// Reads at most `most` bytes of a file. `None` if it does not exist.
fn read_bounded(path: &Path, most: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(most).read_to_end(&mut text)?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// A command to a shepherd with a plan.
    const COMMANDS: &str = include_str!("../recorded/version-1/to-shepherd.jsonl");

    #[test]
    fn a_record_has_its_deadlines_and_one_of_an_older_version_is_still_read() {
        let commands = COMMANDS.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let mut plans = commands.map(|mut command| command["order"]["order"]["prepare"].take());
        let plan = plans.find(|plan| !plan.is_null()).unwrap();
        let mut plan: MicrovmPlan = serde_json::from_value(plan).unwrap();
        let directory = tempfile::tempdir().unwrap();
        plan.directory = directory.path().join("m-0123456789");
        plan.deadlines.prepare = Duration::from_secs(20);
        plan.deadlines.boot = Duration::from_secs(21);
        plan.deadlines.farewell = Duration::from_secs(7);
        let _record = Record::create(&plan, None).unwrap();
        let summary = read_summary(&plan.directory).unwrap().unwrap();
        let deadlines = summary.deadlines.unwrap();
        assert_eq!((deadlines.boot, deadlines.farewell), (41_000, 7000));

        let mut older = serde_json::to_value(summary).unwrap();
        older.as_object_mut().unwrap().remove("deadlines").unwrap();
        fs::write(plan.directory.join("microvm.json"), older.to_string()).unwrap();
        assert_eq!(read_summary(&plan.directory).unwrap().unwrap().deadlines, None);
    }
}
