//! What is kept, and for how long: the ledger's rows, logs of jobs, black boxes.
//!
//! A host that runs jobs for years must not fill up with what they leave.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::DaemonError;
use super::happening::Happening;
use super::millis::Millis;
use super::tasks::Tasks;
use crate::config::Settings;
use crate::failure::chain;
use crate::host::state::StateDirectory;
use crate::ledger::{JobId, Ledger, Reader, Retention, segments};
use crate::shepherd::record;

/// Between two times of forgetting.
const INTERVAL: Duration = Duration::from_secs(3600);
/// How long the log of a job is kept.
const LOG_AGE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How many segments of the audit log are closed at a time: each takes some 50 ms.
const CLOSINGS: usize = 4;
/// How many logs are kept.
const LOGS: usize = 10_000;

/// When old records are forgotten next, and how much there is of what jobs wrote.
pub(super) struct Keeping {
    state: StateDirectory,
    next: Millis,
    /// Whether files are being removed.
    at_work: bool,
    /// Bytes that there were after files were last removed, and that came since.
    left: u64,
    came: u64,
}

impl Keeping {
    pub(super) fn new(state: StateDirectory) -> Self {
        Self { state, next: Millis(0), at_work: false, left: 0, came: 0 }
    }

    /// Forgets what is old, where it is time. Files go in a task.
    pub(super) fn act(
        &mut self,
        settings: &Settings,
        ledger: &mut Ledger,
        now: Millis,
        tasks: &mut Tasks,
    ) -> Result<(), DaemonError> {
        if self.next > now || self.at_work {
            return Ok(());
        }
        (self.next, self.at_work, self.came) = (now + INTERVAL, true, 0);
        ledger.prune(&Retention::default())?;
        self.close_segments(settings, ledger);
        let bounds = Bounds {
            oldest: SystemTime::now().checked_sub(LOG_AGE).unwrap_or(SystemTime::UNIX_EPOCH),
            jobs: LOGS,
            // With room for what comes until the next time.
            bytes: settings.host.log_bytes.0 / 10 * 9,
        };
        let (state, before) = (self.state.clone(), self.left);
        tasks.report(async move {
            let prune = tokio::task::spawn_blocking(move || prune(&state, bounds, before));
            Happening::Pruned(prune.await.unwrap_or(before))
        });
        Ok(())
    }

    /// Closes segments of the audit log, and forgets old ones. What fails is tried again in an hour;
    /// until then the ledger is larger than it should be.
    fn close_segments(&self, settings: &Settings, ledger: &mut Ledger) {
        let directory = self.state.audit();
        let host = &settings.host;
        let kept = segments::Kept { bytes: host.audit_bytes.0, age: host.audit_age };
        for _ in 0..CLOSINGS {
            match ledger.close_segment(&directory, segments::SEGMENT) {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    return tracing::error!(
                        "can't close a segment of the audit log: {}",
                        chain(&error)
                    );
                }
            }
        }
        if let Err(error) = ledger.prune_segments(&directory, kept) {
            tracing::error!("can't forget old segments of the audit log: {}", chain(&error));
        }
    }

    /// When it is time.
    pub(super) fn wake(&self) -> Option<Millis> {
        (!self.at_work).then_some(self.next)
    }

    /// Files were removed: so many bytes are left of what was there before.
    pub(super) fn pruned(&mut self, left: u64) {
        (self.left, self.at_work) = (left, false);
    }

    /// So many bytes came to what is kept of jobs, which is looked through when it is too much.
    pub(super) fn kept(&mut self, bytes: u64, settings: &Settings) {
        self.came = self.came.saturating_add(bytes);
        if self.left.saturating_add(self.came) > settings.host.log_bytes.0 {
            self.next = Millis(0);
        }
    }
}

/// Removes files that are too old or too much. Gives how many bytes are left of what jobs wrote.
fn prune(state: &StateDirectory, bounds: Bounds, before: u64) -> u64 {
    if let Err(error) = record::prune(&state.microvms()) {
        tracing::warn!("can't remove old black boxes: {error}");
    }
    let reader = match Reader::open(&state.ledger()) {
        Ok(reader) => reader,
        Err(error) => {
            tracing::warn!("can't remove old logs: {error}");
            return before;
        }
    };
    // One that can't be looked up may not be over.
    let unfinished = |number| match reader.job(JobId(number)) {
        Ok(job) => job.is_some_and(|job| !job.state.is_over()),
        Err(_) => true,
    };
    // Files that can't be removed now are tried again in an hour.
    prune_logs(&state.logs(), bounds, unfinished).unwrap_or_else(|error| {
        tracing::warn!("can't remove old logs: {error}");
        before
    })
}

/// What is kept of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    job: u64,
    /// Whether it may still be written to.
    unfinished: bool,
    /// When it was last written to.
    modified: SystemTime,
    bytes: u64,
}

/// What may be kept in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    oldest: SystemTime,
    jobs: usize,
    bytes: u64,
}

/// The jobs of which nothing is kept any more: those that are old, and the oldest beyond what is kept
/// in number and in bytes. What an unfinished job has counts, and stays.
fn too_much(kept: &[Kept], bounds: Bounds) -> BTreeSet<u64> {
    let mut newest_first = kept.to_vec();
    newest_first.sort_by_key(|one| (!one.unfinished, Reverse((one.modified, one.job))));
    let mut bytes = 0_u64;
    let mut full = false;
    let mut gone = BTreeSet::new();
    for (rank, one) in newest_first.into_iter().enumerate() {
        bytes = bytes.saturating_add(one.bytes);
        // What is older than one that had no room goes with it: what is kept has no gaps.
        full |= bytes > bounds.bytes || rank >= bounds.jobs;
        if !one.unfinished && (full || one.modified < bounds.oldest) {
            gone.insert(one.job);
        }
    }
    gone
}

/// Removes what is too much. Returns how many bytes are left.
fn prune_logs(
    directory: &Path,
    bounds: Bounds,
    unfinished: impl Fn(u64) -> bool,
) -> io::Result<u64> {
    let mut jobs = BTreeMap::<u64, (Kept, Vec<PathBuf>)>::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // A file that is nobody's here is left alone.
        let Some(job) = job_of(&entry.file_name()) else { continue };
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let (modified, bytes) = (metadata.modified()?, metadata.len());
        let none = Kept { job, unfinished: false, modified, bytes: 0 };
        let (kept, paths) = jobs.entry(job).or_insert_with(|| (none, Vec::new()));
        kept.modified = kept.modified.max(modified);
        kept.bytes = kept.bytes.saturating_add(bytes);
        paths.push(entry.path());
    }
    let mut all: Vec<_> = jobs.values().map(|(kept, _)| *kept).collect();
    for one in &mut all {
        one.unfinished = unfinished(one.job);
    }
    let gone = too_much(&all, bounds);
    for path in gone.iter().filter_map(|job| jobs.get(job)).flat_map(|(_, paths)| paths) {
        fs::remove_file(path)?;
    }
    Ok(all.iter().filter(|one| !gone.contains(&one.job)).map(|one| one.bytes).sum())
}

/// The job that a file in the directory is of: `7.log`, `7.egress.jsonl`, `7.access.log`.
fn job_of(name: &OsStr) -> Option<u64> {
    name.to_str()?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn kept(job: u64, modified: u64, bytes: u64) -> Kept {
        Kept { job, unfinished: false, modified: time(modified), bytes }
    }

    #[test]
    fn the_newest_are_kept_up_to_a_number_an_age_and_their_bytes() {
        let all: Vec<_> = (1..=5).map(|number| kept(number, 1000 - number * 100, 10)).collect();
        let wide = Bounds { oldest: time(0), jobs: 10, bytes: 1000 };
        for (bounds, gone) in [
            (wide, &[][..]),
            (Bounds { jobs: 4, ..wide }, &[5][..]),
            (Bounds { oldest: time(750), ..wide }, &[3, 4, 5]),
            (Bounds { bytes: 50, ..wide }, &[]),
            (Bounds { bytes: 49, ..wide }, &[5]),
            (Bounds { bytes: 10, ..wide }, &[2, 3, 4, 5]),
            (Bounds { bytes: 0, ..wide }, &[1, 2, 3, 4, 5]),
        ] {
            assert_eq!(too_much(&all, bounds), gone.iter().copied().collect(), "{bounds:?}");
        }
    }

    proptest! {
        #[test]
        fn no_more_is_kept_than_may_be_and_no_newer_one_goes_before_an_older(
            sizes in prop::collection::vec((0_u64..1000, 0_u64..100, any::<bool>()), 0..40),
            oldest in 0_u64..1000,
            jobs in 0_usize..40,
            bytes in 0_u64..2000,
        ) {
            let all: Vec<_> = sizes
                .iter()
                .zip(0..)
                .map(|((modified, bytes, unfinished), job)| {
                    Kept { unfinished: *unfinished, ..kept(job, *modified, *bytes) }
                })
                .collect();
            let bounds = Bounds { oldest: time(oldest), jobs, bytes };
            let gone = too_much(&all, bounds);
            let (went, stayed): (Vec<&Kept>, Vec<&Kept>) =
                all.iter().partition(|one| gone.contains(&one.job));
            prop_assert!(went.iter().all(|one| !one.unfinished));
            let over: Vec<_> = stayed.iter().filter(|one| !one.unfinished).collect();
            if !over.is_empty() {
                prop_assert!(stayed.len() <= jobs);
                prop_assert!(stayed.iter().map(|one| one.bytes).sum::<u64>() <= bytes);
                prop_assert!(over.iter().all(|one| one.modified >= time(oldest)));
                let newest = went.iter().map(|one| one.modified).max();
                let oldest = over.iter().map(|one| one.modified).min();
                prop_assert!(newest.is_none_or(|newest| Some(newest) <= oldest));
            }
        }
    }

    #[test]
    fn all_files_of_a_job_go_together_and_strangers_stay() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        for (name, age) in [
            ("1.log", 300),
            ("1.egress.jsonl", 200),
            ("1.access.log", 300),
            ("2.log", 100),
            ("3.log", 400),
            ("notes.txt", 900),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, "0123456789").unwrap();
            let file = fs::File::open(&path).unwrap();
            file.set_modified(now - Duration::from_secs(age)).unwrap();
        }
        let left = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let bounds = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: 10, bytes: 45 };
        // Job 3 runs again: what it wrote at its first try stays.
        assert_eq!(prune_logs(directory.path(), bounds, |job| job == 3).unwrap(), 20);
        assert_eq!(left(), ["2.log", "3.log", "notes.txt"]);
        let none = Bounds { bytes: 0, ..bounds };
        assert_eq!(prune_logs(directory.path(), none, |_| false).unwrap(), 0);
        assert_eq!(left(), ["notes.txt"]);
    }
}
