//! Garbage collection of a store.
//!
//! A build is retained if it is current or previous for its name, is pinned by its digest, is among
//! the most recent, or is in use, which the kernel knows (`hold`). Remains of interrupted builds
//! and imports are always removed, and so are old downloads that no image uses.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::hold::lock_if_unused;
use super::{Image, Store, ignore_not_found, names_in};
use crate::build::{DeadBuild, dead_builds, disposable_directory};
use crate::error::ImageError;
use crate::name::{Digest, ImageName, Reference};

/// The download cache of builds. Files are named by their digests.
const DOWNLOADS: &str = ".downloads";

/// A younger download may belong to a build in progress.
const MIN_DOWNLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// The builds to retain in any case.
#[derive(Debug, Clone, Default)]
pub struct RetainedBuilds {
    /// The images that pools pin by digest.
    pub pinned: Vec<Reference>,
    /// How many of the most recently published builds of each name.
    pub recent: usize,
}

/// The reason why a build is retained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RetentionReason {
    /// It is the current build of its name.
    #[serde(rename = "meant")]
    Current,
    /// It is the previous build of its name, the target of a rollback.
    Previous,
    /// A pool pins it by its digest.
    Pinned,
    /// It is among the most recently published.
    Recent,
    /// A microVM runs from it, or it is about to be tested.
    InUse,
}

/// A build that a collection examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CollectedBuild {
    /// Its name.
    pub name: ImageName,
    /// Its digest.
    pub digest: Digest,
    /// Its disk usage in bytes.
    pub bytes: u64,
    /// The reason why it is retained; `None` if it was removed.
    #[serde(rename = "kept")]
    pub retained: Option<RetentionReason>,
}

/// The result of a collection, or of its dry run.
#[derive(Debug, Default, Serialize)]
pub struct CollectionReport {
    /// Every build of the store, by name.
    pub images: Vec<CollectedBuild>,
    /// The number of interrupted builds and imports.
    pub dead_builds: usize,
    /// The number of removed downloads.
    pub downloads: usize,
    /// The disk space freed, in bytes.
    pub freed: u64,
}

/// The state of a build that the decision is based on.
#[derive(Debug, Clone)]
struct BuildState {
    digest: Digest,
    published: SystemTime,
    is_latest: bool,
    is_previous: bool,
    is_pinned: bool,
}

/// Decides for each build of a name why it is retained, if it is.
fn decide(builds: &[BuildState], recent: usize) -> Vec<Option<RetentionReason>> {
    let mut by_age: Vec<usize> = (0..builds.len()).collect();
    // The digest breaks ties, so that the result is deterministic.
    by_age.sort_by_key(|&index| {
        std::cmp::Reverse((builds[index].published, builds[index].digest.clone()))
    });
    let last: BTreeSet<usize> = by_age.into_iter().take(recent).collect();
    let reason = |(index, build): (usize, &BuildState)| match build {
        BuildState { is_latest: true, .. } => Some(RetentionReason::Current),
        BuildState { is_previous: true, .. } => Some(RetentionReason::Previous),
        BuildState { is_pinned: true, .. } => Some(RetentionReason::Pinned),
        _ => last.contains(&index).then_some(RetentionReason::Recent),
    };
    builds.iter().enumerate().map(reason).collect()
}

impl Store {
    /// Removes builds that are neither retained nor in use; with `dry_run`, only reports them.
    ///
    /// # Errors
    ///
    /// The store can't be read, or something can't be removed; the remaining images stay intact.
    pub fn collect(
        &self,
        retention: &RetainedBuilds,
        dry_run: bool,
    ) -> Result<CollectionReport, ImageError> {
        let mut collection = CollectionReport::default();
        let lock = self.lock()?;
        let scratch = disposable_directory(self.path())?;
        let mut needed = BTreeSet::new();
        for name in names_in(self.path())?.into_iter().filter_map(|name| name.parse().ok()) {
            self.collect_name(&name, retention, dry_run, &scratch, &mut collection)?;
        }
        for build in collection.images.iter().filter(|build| build.retained.is_some()) {
            needed.extend(self.downloads_of(build));
        }
        drop(lock);
        fs::remove_dir_all(&scratch)
            .or_else(ignore_not_found)
            .map_err(ImageError::write(&scratch))?;
        for dead in dead_builds(self)? {
            collection.dead_builds += 1;
            collection.freed += disk_usage(dead.path());
            if !dry_run {
                DeadBuild::remove(dead)?;
            }
        }
        self.collect_downloads(&needed, dry_run, &mut collection)?;
        Ok(collection)
    }

    fn collect_name(
        &self,
        name: &ImageName,
        retention: &RetainedBuilds,
        dry_run: bool,
        scratch: &Path,
        collection: &mut CollectionReport,
    ) -> Result<(), ImageError> {
        let builds = self.build_states(name, &retention.pinned)?;
        for (build, kept) in builds.iter().zip(decide(&builds, retention.recent)) {
            let directory = self.directory(name, &build.digest);
            let bytes = disk_usage(&directory);
            let kept = match kept {
                None => {
                    let lock = lock_if_unused(&directory).map_err(ImageError::read(&directory))?;
                    if lock.is_some() && !dry_run {
                        let aside = scratch.join(build.digest.as_str());
                        fs::rename(&directory, aside).map_err(ImageError::write(&directory))?;
                    }
                    lock.is_none().then_some(RetentionReason::InUse)
                }
                kept => kept,
            };
            collection.freed += if kept.is_none() { bytes } else { 0 };
            let (name, digest) = (name.clone(), build.digest.clone());
            collection.images.push(CollectedBuild { name, digest, bytes, retained: kept });
        }
        // The name's directory may be empty now.
        let _ = fs::remove_dir(self.path().join(name.as_str()));
        Ok(())
    }

    fn build_states(
        &self,
        name: &ImageName,
        pinned: &[Reference],
    ) -> Result<Vec<BuildState>, ImageError> {
        let (latest, previous) = (self.latest(name)?, self.previous(name)?);
        let state = |digest: Digest| BuildState {
            published: self.published(name, &digest),
            is_latest: latest.as_ref() == Some(&digest),
            is_previous: previous.as_ref() == Some(&digest),
            is_pinned: pinned.iter().any(|reference| {
                let prefix = reference.digest_prefix.as_deref();
                reference.name == *name
                    && prefix.is_some_and(|prefix| digest.as_str().starts_with(prefix))
            }),
            digest,
        };
        Ok(self.digests(name)?.into_iter().map(state).collect())
    }

    /// Returns the digests of the downloads that a build uses; none for a broken build.
    fn downloads_of(&self, build: &CollectedBuild) -> Vec<String> {
        let directory = self.directory(&build.name, &build.digest);
        let Ok(image) = Image::read(&build.name, build.digest.clone(), directory) else {
            return Vec::new();
        };
        let runner = image.manifest.runner.into_iter().map(|runner| runner.sha256);
        let downloads = image.manifest.downloads.into_iter().map(|download| download.sha256);
        runner.chain(downloads).map(String::from).collect()
    }

    fn collect_downloads(
        &self,
        needed: &BTreeSet<String>,
        dry_run: bool,
        collection: &mut CollectionReport,
    ) -> Result<(), ImageError> {
        let directory = self.path().join(DOWNLOADS);
        for name in names_in(&directory)?.into_iter().filter(|name| !needed.contains(name)) {
            let path = directory.join(name);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
            if !metadata.is_file() || age.is_none_or(|age| age < MIN_DOWNLOAD_AGE) {
                continue;
            }
            collection.downloads += 1;
            collection.freed += metadata.blocks() * 512;
            if !dry_run {
                fs::remove_file(&path)
                    .or_else(ignore_not_found)
                    .map_err(ImageError::write(path))?;
            }
        }
        Ok(())
    }
}

/// Returns the disk usage of a directory, as far as it can be read; for display only.
fn disk_usage(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => disk_usage(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hash;

    prop_compose! {
        fn builds()(
            facts in proptest::collection::vec((0..5u64, any::<bool>()), 0..12),
            latest in 0..12usize,
            previous in 0..12usize,
        ) -> Vec<BuildState> {
            facts.into_iter().enumerate().map(|(index, (age, pinned))| BuildState {
                digest: hash::of_bytes(&index.to_le_bytes()),
                published: SystemTime::UNIX_EPOCH + Duration::from_secs(age),
                is_latest: index == latest,
                is_previous: index == previous && index != latest,
                is_pinned: pinned,
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn builds_are_retained_exactly_for_the_documented_reasons(
            builds in builds(),
            recent in 0..14usize,
        ) {
            let kept = decide(&builds, recent);
            for (build, kept) in builds.iter().zip(&kept) {
                let newer = builds.iter().filter(|other| {
                    (other.published, &other.digest) > (build.published, &build.digest)
                });
                let expected = build.is_latest || build.is_previous || build.is_pinned
                    || newer.count() < recent;
                prop_assert_eq!(kept.is_some(), expected, "{:?} {:?}", build, kept);
            }
        }
    }
}
