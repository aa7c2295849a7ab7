//! The working directory of one build, and its removal.
//!
//! `<store>/.building-XXXXXX/` contains `image/`, the finished parts, and `work/`, everything else.
//! The builder holds a lock on it, which the kernel releases when the builder ends. A directory
//! without a locked owner is therefore garbage, and the next build removes it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;

use super::enclosure::Enclosure;
use super::process::{Deadline, ProcessRunner};
use super::{CLEANUP_TIMEOUT, Progress};
use crate::error::ImageError;
use crate::store::Store;
use mayfly_host::lock;

const PREFIX: &str = ".building-";

/// A build's directory, locked for as long as the value lives.
pub(crate) struct Workspace {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Workspace {
    /// Creates a directory in the store and removes those of dead builds.
    pub(super) fn create(
        store: &Store,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<Self, ImageError> {
        for dead in dead_builds(store)? {
            // A directory that can't be removed now, e.g. because its last process is still ending,
            // is left to the next build.
            let _ = enclosure.remove(runner, &dead.path);
        }
        let workspace = Self::claim(store)?;
        let work = workspace.work();
        fs::create_dir(&work).map_err(ImageError::write(work))?;
        Ok(workspace)
    }

    /// Creates a directory in the store that contains only `image/`.
    pub(crate) fn claim(store: &Store) -> Result<Self, ImageError> {
        // Takes the store's lock, so that no other process mistakes the new directory for a dead
        // build.
        let store_lock = store.lock()?;
        let path = disposable_directory(store.path())?;
        let lock = try_lock(&path)?
            .ok_or_else(|| ImageError::StoreBusy { store: store.path().to_owned() })?;
        drop(store_lock);
        let workspace = Self { path, _lock: lock };
        let image = workspace.image();
        fs::create_dir(&image).map_err(ImageError::write(image))?;
        Ok(workspace)
    }

    /// Returns the directory of the image's files.
    pub(crate) fn image(&self) -> PathBuf {
        self.path.join("image")
    }

    /// Returns the directory of everything else.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Removes it; all files in it must belong to this user.
    pub(crate) fn discard(self) -> Result<(), ImageError> {
        fs::remove_dir_all(&self.path).map_err(ImageError::write(&self.path))
    }

    /// Removes it, with everything that the build left in it.
    pub(super) fn remove(
        self,
        enclosure: Enclosure,
        runner: &ProcessRunner<'_>,
    ) -> Result<(), ImageError> {
        enclosure.remove(runner, &self.path)
    }
}

/// Creates a directory in a store that the next build removes unless its creator locks it while
/// holding the store's lock.
pub(crate) fn disposable_directory(store: &Path) -> Result<PathBuf, ImageError> {
    let directory = tempfile::Builder::new().prefix(PREFIX).tempdir_in(store);
    let directory = directory.map_err(ImageError::write(store))?.keep();
    Ok(directory)
}

/// The remains of an interrupted build, locked so that no other process removes them.
pub(crate) struct DeadBuild {
    path: PathBuf,
    _lock: Flock<File>,
}

impl DeadBuild {
    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, including files that belong to other ids of the user's range.
    pub(crate) fn remove(self) -> Result<(), ImageError> {
        // Most need no enclosure, which not every host allows.
        if fs::remove_dir_all(&self.path).is_ok() {
            return Ok(());
        }
        let runner =
            ProcessRunner { deadline: Deadline::after(CLEANUP_TIMEOUT), progress: &NoProgress };
        Enclosure::new(&runner)?.remove(&runner, &self.path)
    }
}

/// Discards progress.
struct NoProgress;

impl Progress for NoProgress {
    fn step(&self, _: &str) {}

    fn detail(&self, _: &str) {}
}

/// Returns the remains of dead builds in a store.
pub(crate) fn dead_builds(store: &Store) -> Result<Vec<DeadBuild>, ImageError> {
    let _lock = store.lock()?;
    let path = store.path();
    let mut dead = Vec::new();
    for entry in fs::read_dir(path).map_err(ImageError::read(path))? {
        let entry = entry.map_err(ImageError::read(path))?;
        if !entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes()) {
            continue;
        }
        // Skips directories that vanished in the meantime or can't be opened.
        if let Ok(Some(lock)) = try_lock(&entry.path()) {
            dead.push(DeadBuild { path: entry.path(), _lock: lock });
        }
    }
    Ok(dead)
}

/// Locks a directory, unless it is locked already.
fn try_lock(directory: &Path) -> Result<Option<Flock<File>>, ImageError> {
    let file = File::open(directory).map_err(ImageError::read(directory))?;
    lock::try_exclusive(file).map_err(ImageError::read(directory))
}
