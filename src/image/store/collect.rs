//! What of a store may go, and its removal.
//!
//! A build is kept if somebody could mean it: its name, a rollback of its name, whoever names it
//! by its digest; or if it runs, which the kernel knows (`hold`). What is left of builds and
//! imports that ended in the middle goes in any case, and so do downloads that no image was made
//! of.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::hold::unused;
use super::{Image, Store, absent_is_fine, names_in};
use crate::image::build::{DeadBuild, dead_builds, doomed_directory};
use crate::image::error::ImageError;
use crate::image::name::{Digest, ImageName, Reference};

/// Where builds keep what they downloaded, each file called by its digest.
const DOWNLOADS: &str = ".downloads";

/// A download of which no image was made yet may be for a build under way.
const DOWNLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// What is kept in any case.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// What pools are made of.
    pub pinned: Vec<Reference>,
    /// How many builds of each name, those that were published last.
    pub recent: usize,
}

/// Why a build is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// Its name means it.
    Meant,
    /// Its name meant it before; a rollback goes there.
    Previous,
    /// A pool names it by its digest.
    Pinned,
    /// It is one of those that were published last.
    Recent,
    /// A microVM runs from it, or somebody is about to try it.
    InUse,
}

/// A build of a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Build {
    /// Its name.
    pub name: ImageName,
    /// Its digest.
    pub digest: Digest,
    /// What it takes on the disk.
    pub bytes: u64,
    /// Why it is kept; none if it went.
    pub kept: Option<Kept>,
}

/// What a collection did, or would do.
#[derive(Debug, Default, Serialize)]
pub struct Collection {
    /// Every build that was there, by name.
    pub images: Vec<Build>,
    /// How many builds and imports had ended in the middle.
    pub dead_builds: usize,
    /// How many downloads went.
    pub downloads: usize,
    /// What all of it took on the disk.
    pub freed: u64,
}

/// What is known of a build before anything is decided.
#[derive(Debug, Clone)]
struct Known {
    digest: Digest,
    published: SystemTime,
    meant: bool,
    previous: bool,
    pinned: bool,
}

/// Why each build of a name is kept, if it is.
fn decide(builds: &[Known], recent: usize) -> Vec<Option<Kept>> {
    let mut by_age: Vec<usize> = (0..builds.len()).collect();
    // Of two that were published at the same time either may go first, but always the same.
    by_age.sort_by_key(|&index| {
        std::cmp::Reverse((builds[index].published, builds[index].digest.clone()))
    });
    let last: BTreeSet<usize> = by_age.into_iter().take(recent).collect();
    let reason = |(index, build): (usize, &Known)| match build {
        Known { meant: true, .. } => Some(Kept::Meant),
        Known { previous: true, .. } => Some(Kept::Previous),
        Known { pinned: true, .. } => Some(Kept::Pinned),
        _ => last.contains(&index).then_some(Kept::Recent),
    };
    builds.iter().enumerate().map(reason).collect()
}

impl Store {
    /// Removes what nobody could mean and nobody uses; with `dry_run` only says what that is.
    ///
    /// # Errors
    ///
    /// The store can't be read, or something can't be removed; the rest is whole.
    pub fn collect(&self, retention: &Retention, dry_run: bool) -> Result<Collection, ImageError> {
        let mut collection = Collection::default();
        let lock = self.lock()?;
        let doomed = doomed_directory(self.path())?;
        let mut needed = BTreeSet::new();
        for name in names_in(self.path())?.into_iter().filter_map(|name| name.parse().ok()) {
            self.collect_name(&name, retention, dry_run, &doomed, &mut collection)?;
        }
        for build in collection.images.iter().filter(|build| build.kept.is_some()) {
            needed.extend(self.downloads_of(build));
        }
        drop(lock);
        fs::remove_dir_all(&doomed).or_else(absent_is_fine).map_err(ImageError::write(&doomed))?;
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
        retention: &Retention,
        dry_run: bool,
        doomed: &Path,
        collection: &mut Collection,
    ) -> Result<(), ImageError> {
        let builds = self.known(name, &retention.pinned)?;
        for (build, kept) in builds.iter().zip(decide(&builds, retention.recent)) {
            let directory = self.directory(name, &build.digest);
            let bytes = disk_usage(&directory);
            let kept = match kept {
                None => {
                    let lock = unused(&directory).map_err(ImageError::read(&directory))?;
                    if lock.is_some() && !dry_run {
                        let aside = doomed.join(build.digest.as_str());
                        fs::rename(&directory, aside).map_err(ImageError::write(&directory))?;
                    }
                    lock.is_none().then_some(Kept::InUse)
                }
                kept => kept,
            };
            collection.freed += if kept.is_none() { bytes } else { 0 };
            let (name, digest) = (name.clone(), build.digest.clone());
            collection.images.push(Build { name, digest, bytes, kept });
        }
        // A name that meant nothing may have no build any more.
        let _ = fs::remove_dir(self.path().join(name.as_str()));
        Ok(())
    }

    fn known(&self, name: &ImageName, pinned: &[Reference]) -> Result<Vec<Known>, ImageError> {
        let (newest, previous) = (self.newest(name)?, self.previous(name)?);
        let known = |digest: Digest| Known {
            published: self.published(name, &digest),
            meant: newest.as_ref() == Some(&digest),
            previous: previous.as_ref() == Some(&digest),
            pinned: pinned.iter().any(|reference| {
                let prefix = reference.digest_prefix.as_deref();
                reference.name == *name
                    && prefix.is_some_and(|prefix| digest.as_str().starts_with(prefix))
            }),
            digest,
        };
        Ok(self.digests(name)?.into_iter().map(known).collect())
    }

    /// The digests of what a build was made of; nothing of one that is broken.
    fn downloads_of(&self, build: &Build) -> Vec<String> {
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
        collection: &mut Collection,
    ) -> Result<(), ImageError> {
        let directory = self.path().join(DOWNLOADS);
        for name in names_in(&directory)?.into_iter().filter(|name| !needed.contains(name)) {
            let path = directory.join(name);
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let age = metadata.modified().ok().and_then(|modified| modified.elapsed().ok());
            if !metadata.is_file() || age.is_none_or(|age| age < DOWNLOAD_AGE) {
                continue;
            }
            collection.downloads += 1;
            collection.freed += metadata.blocks() * 512;
            if !dry_run {
                fs::remove_file(&path).or_else(absent_is_fine).map_err(ImageError::write(path))?;
            }
        }
        Ok(())
    }
}

/// What a directory takes on the disk, as far as it can be read; for people.
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
    use crate::image::hash;

    prop_compose! {
        fn builds()(
            facts in proptest::collection::vec((0..5u64, any::<bool>()), 0..12),
            meant in 0..12usize,
            previous in 0..12usize,
        ) -> Vec<Known> {
            facts.into_iter().enumerate().map(|(index, (age, pinned))| Known {
                digest: hash::of_bytes(&index.to_le_bytes()),
                published: SystemTime::UNIX_EPOCH + Duration::from_secs(age),
                meant: index == meant,
                previous: index == previous && index != meant,
                pinned,
            }).collect()
        }
    }

    proptest! {
        #[test]
        fn what_somebody_could_mean_stays_and_the_rest_goes(
            builds in builds(),
            recent in 0..14usize,
        ) {
            let kept = decide(&builds, recent);
            for (build, kept) in builds.iter().zip(&kept) {
                let newer = builds.iter().filter(|other| {
                    (other.published, &other.digest) > (build.published, &build.digest)
                });
                let wanted = build.meant || build.previous || build.pinned
                    || newer.count() < recent;
                prop_assert_eq!(kept.is_some(), wanted, "{:?} {:?}", build, kept);
            }
        }
    }
}
