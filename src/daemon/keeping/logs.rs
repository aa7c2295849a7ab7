//! The logs of jobs: which are kept, and what they take.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

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
pub(super) struct Bounds {
    pub(super) oldest: SystemTime,
    pub(super) jobs: usize,
    pub(super) bytes: u64,
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
pub(super) fn prune(
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
    let mut left = 0_u64;
    for one in &all {
        let paths = jobs.get(&one.job).map(|(_, paths)| &paths[..]).unwrap_or_default();
        // One that can't be removed keeps no other.
        if !gone.contains(&one.job) || !remove(paths) {
            left = left.saturating_add(one.bytes);
        }
    }
    Ok(left)
}

/// Removes files; whether none is left.
fn remove(paths: &[PathBuf]) -> bool {
    paths.iter().fold(true, |all, path| match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!("can't remove an old log: {}: {error}", path.display());
            false
        }
        _ => all,
    })
}

/// The job that a file in the directory is of: `7.log`, `7.egress.jsonl`, `7.access.log`.
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
    fn a_log_that_can_not_be_removed_keeps_no_other_and_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1.log", "3.log"] {
            fs::write(directory.path().join(name), "0123456789").unwrap();
        }
        // No file, so that it can't be removed as one.
        fs::create_dir(directory.path().join("2.log")).unwrap();
        let bytes = fs::metadata(directory.path().join("2.log")).unwrap().len();
        let none = Bounds { oldest: SystemTime::UNIX_EPOCH, jobs: 0, bytes: 0 };
        assert_eq!(prune(directory.path(), none, |_| false).unwrap(), bytes);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
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
        assert_eq!(prune(directory.path(), bounds, |job| job == 3).unwrap(), 20);
        assert_eq!(left(), ["2.log", "3.log", "notes.txt"]);
        let none = Bounds { bytes: 0, ..bounds };
        assert_eq!(prune(directory.path(), none, |_| false).unwrap(), 0);
        assert_eq!(left(), ["notes.txt"]);
    }
}
