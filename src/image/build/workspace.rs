//! The directory in which one build works, and what becomes of it.
//!
//! `<store>/.building-XXXXXX/` holds `image/`, the parts as they are finished, and `work/`,
//! everything else. The builder holds a lock on it; the kernel releases that lock however the
//! builder ends. A directory whose lock is free is therefore waste, and the next build removes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::enclosure::Enclosure;
use super::process::{Deadline, Runner};
use super::{CLEANING, Progress};
use crate::image::error::ImageError;
use crate::image::store::Store;

const PREFIX: &str = ".building-";

/// A build's directory, held for as long as the value lives.
pub(in crate::image) struct Workspace {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Workspace {
    /// Makes a directory in the store and removes those of dead builds.
    pub(super) fn create(
        store: &Store,
        enclosure: Enclosure,
        runner: &Runner<'_>,
    ) -> Result<Self, ImageError> {
        for dead in dead_builds(store)? {
            // What can't be removed now, e.g. because the last process in it is about to end,
            // waits for the next build.
            let _ = enclosure.remove(runner, &dead.path);
        }
        let workspace = Self::claim(store)?;
        let work = workspace.work();
        fs::create_dir(&work).map_err(ImageError::write(work))?;
        Ok(workspace)
    }

    /// Makes a directory in the store with nothing but room for the image's files.
    pub(in crate::image) fn claim(store: &Store) -> Result<Self, ImageError> {
        // The store's lock, so that nobody takes a directory for dead that was just made.
        let store_lock = store.lock()?;
        let path = doomed_directory(store.path())?;
        let lock = try_lock(&path)?
            .ok_or_else(|| ImageError::StoreBusy { store: store.path().to_owned() })?;
        drop(store_lock);
        let workspace = Self { path, _lock: lock };
        let image = workspace.image();
        fs::create_dir(&image).map_err(ImageError::write(image))?;
        Ok(workspace)
    }

    /// Where the image's files are made.
    pub(in crate::image) fn image(&self) -> PathBuf {
        self.path.join("image")
    }

    /// Where everything else is made.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Removes it, if there is nothing in it but the user's own files.
    pub(in crate::image) fn discard(self) -> Result<(), ImageError> {
        fs::remove_dir_all(&self.path).map_err(ImageError::write(&self.path))
    }

    /// Removes it, with whatever the build left there.
    pub(super) fn remove(
        self,
        enclosure: Enclosure,
        runner: &Runner<'_>,
    ) -> Result<(), ImageError> {
        enclosure.remove(runner, &self.path)
    }
}

/// A new directory in a store that the next build removes unless its maker locks it while
/// holding the store's lock.
pub(in crate::image) fn doomed_directory(store: &Path) -> Result<PathBuf, ImageError> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(store);
    let directory = directory.map_err(ImageError::write(store))?.keep();
    Ok(directory)
}

/// What a build left that ended in the middle, locked so that nobody else removes it as well.
pub(in crate::image) struct DeadBuild {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DeadBuild {
    /// Where it is.
    pub(in crate::image) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, also what belongs to other ids of the user's range.
    pub(in crate::image) fn remove(self) -> Result<(), ImageError> {
        // Most have nothing that needs an enclosure, and not every host lets everybody have one.
        if fs::remove_dir_all(&self.path).is_ok() {
            return Ok(());
        }
        let runner = Runner { deadline: Deadline::after(CLEANING), progress: &Silent };
        Enclosure::new(&runner)?.remove(&runner, &self.path)
    }
}

/// A removal has nothing to tell.
struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}

    fn detail(&self, _: &str) {}
}

/// What dead builds left in a store.
pub(in crate::image) fn dead_builds(store: &Store) -> Result<Vec<DeadBuild>, ImageError> {
    let _lock = store.lock()?;
    let path = store.path();
    let mut dead = Vec::new();
    for entry in fs::read_dir(path).map_err(ImageError::read(path))? {
        let entry = entry.map_err(ImageError::read(path))?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // One that vanished in the meantime, or that can't be opened, is none of ours to remove.
        if let Ok(Some(lock)) = try_lock(&entry.path()) {
            dead.push(DeadBuild { path: entry.path(), _lock: lock });
        }
    }
    Ok(dead)
}

/// The lock on a directory, unless somebody has it.
fn try_lock(directory: &Path) -> Result<Option<Flock<File>>, ImageError> {
    let file = File::open(directory).map_err(ImageError::read(directory))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(ImageError::read(directory)(errno.into())),
    }
}
