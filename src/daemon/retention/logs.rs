//! The logs of jobs: which are retained, and their size.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The retained files of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct JobFiles {
    job: u64,
    /// Whether they may still be written.
    is_unfinished: bool,
    /// When they were last written.
    modified: SystemTime,
    bytes: u64,
}

/// The limits of the retained logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) oldest: SystemTime,
    pub(super) jobs: usize,
    pub(super) bytes: u64,
}

/// Returns the jobs whose files are removed: old ones, and the oldest beyond the limits of number
/// and bytes. The files of unfinished jobs count, and stay.
fn jobs_to_prune(files: &[JobFiles], bounds: Bounds) -> BTreeSet<u64> {
    let mut newest_first = files.to_vec();
    newest_first.sort_by_key(|one| (!one.is_unfinished, Reverse((one.modified, one.job))));
    let mut bytes = 0_u64;
    let mut full = false;
    let mut pruned = BTreeSet::new();
    for (rank, one) in newest_first.into_iter().enumerate() {
        bytes = bytes.saturating_add(one.bytes);
        // Everything older than the first excess job goes too, so that no gaps remain.
        full |= bytes > bounds.bytes || rank >= bounds.jobs;
        if !one.is_unfinished && (full || one.modified < bounds.oldest) {
            pruned.insert(one.job);
        }
    }
    pruned
}

/// Removes files beyond the limits. Returns the remaining bytes.
pub(super) fn prune(
    directory: &Path,
    bounds: Bounds,
    is_unfinished: impl Fn(u64) -> bool,
) -> io::Result<u64> {
    let mut jobs = BTreeMap::<u64, (JobFiles, Vec<PathBuf>)>::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // Leave other files alone.
        let Some(job) = job_of(&entry.file_name()) else { continue };
        let metadata = match entry.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        let (modified, bytes) = (metadata.modified()?, metadata.len());
        let none = JobFiles { job, is_unfinished: false, modified, bytes: 0 };
        let (files, paths) = jobs.entry(job).or_insert_with(|| (none, Vec::new()));
        files.modified = files.modified.max(modified);
        files.bytes = files.bytes.saturating_add(bytes);
        paths.push(entry.path());
    }
    let mut all: Vec<_> = jobs.values().map(|(files, _)| *files).collect();
    for one in &mut all {
        one.is_unfinished = is_unfinished(one.job);
    }
    let pruned = jobs_to_prune(&all, bounds);
    let mut remaining = 0_u64;
    for one in &all {
        let paths = jobs.get(&one.job).map(|(_, paths)| &paths[..]).unwrap_or_default();
        // A file that can't be removed does not stop the others.
        if !pruned.contains(&one.job) || !remove(paths) {
            remaining = remaining.saturating_add(one.bytes);
        }
    }
    Ok(remaining)
}

/// Removes files. Returns whether all are gone.
fn remove(paths: &[PathBuf]) -> bool {
    paths.iter().fold(true, |all, path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("can't remove the old log {}: {error}", path.display());
            false
        }
        _ => all,
    })
}

/// Returns the job of a file name: `7.log`, `7.egress.jsonl`, `7.access.log`.
fn job_of(name: &OsStr) -> Option<u64> {
    name.to_str()?.split_once('.')?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn files(job: u64, modified: u64, bytes: u64) -> JobFiles {
        JobFiles { job, is_unfinished: false, modified: time(modified), bytes }
    }

    #[test]
    fn the_newest_logs_are_retained_up_to_the_limits() {
        let all: Vec<_> = (1..=5).map(|number| files(number, 1000 - number * 100, 10)).collect();
        let wide = Bounds { oldest: time(0), jobs: 10, bytes: 1000 };
        for (bounds, pruned) in [
            (wide, &[][..]),
            (Bounds { jobs: 4, ..wide }, &[5][..]),
            (Bounds { oldest: time(750), ..wide }, &[3, 4, 5]),
            (Bounds { bytes: 50, ..wide }, &[]),
            (Bounds { bytes: 49, ..wide }, &[5]),
            (Bounds { bytes: 10, ..wide }, &[2, 3, 4, 5]),
            (Bounds { bytes: 0, ..wide }, &[1, 2, 3, 4, 5]),
        ] {
            assert_eq!(jobs_to_prune(&all, bounds), pruned.iter().copied().collect(), "{bounds:?}");
        }
    }

    proptest! {
        #[test]
        fn retention_respects_the_limits_and_removes_the_oldest_first(
            sizes in prop::collection::vec((0_u64..1000, 0_u64..100, any::<bool>()), 0..40),
            oldest in 0_u64..1000,
            jobs in 0_usize..40,
            bytes in 0_u64..2000,
        ) {
            let all: Vec<_> = sizes
                .iter()
                .zip(0..)
                .map(|((modified, bytes, is_unfinished), job)| {
                    JobFiles { is_unfinished: *is_unfinished, ..files(job, *modified, *bytes) }
                })
                .collect();
            let bounds = Bounds { oldest: time(oldest), jobs, bytes };
            let pruned = jobs_to_prune(&all, bounds);
            let (went, stayed): (Vec<&JobFiles>, Vec<&JobFiles>) =
                all.iter().partition(|one| pruned.contains(&one.job));
            prop_assert!(went.iter().all(|one| !one.is_unfinished));
            let over: Vec<_> = stayed.iter().filter(|one| !one.is_unfinished).collect();
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
    fn a_log_that_can_not_be_removed_is_counted_and_stops_no_other() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1.log", "3.log"] {
            fs::write(directory.path().join(name), "0123456789").unwrap();
        }
        // A directory, so that it can't be removed as a file.
        fs::create_dir(directory.path().join("2.log")).unwrap();
        let bytes = fs::metadata(directory.path().join("2.log")).unwrap().len();
        let none = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: 0, bytes: 0 };
        assert_eq!(prune(directory.path(), none, |_| false).unwrap(), bytes);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn all_files_of_a_job_are_removed_together_and_other_files_stay() {
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
        let remaining = || {
            let entries = fs::read_dir(directory.path()).unwrap();
            let mut names: Vec<_> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let bounds = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: 10, bytes: 45 };
        // Job 3 runs again: the log of its first try stays.
        assert_eq!(prune(directory.path(), bounds, |job| job == 3).unwrap(), 20);
        assert_eq!(remaining(), ["2.log", "3.log", "notes.txt"]);
        let none = Bounds { bytes: 0, ..bounds };
        assert_eq!(prune(directory.path(), none, |_| false).unwrap(), 0);
        assert_eq!(remaining(), ["notes.txt"]);
    }
}
