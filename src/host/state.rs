//! The state directory: all of Mayfly's files on disk.
//!
//! ```text
//! images/          the image store
//! microvms/ID/     a running microVM, or the black box of a failed one
//! verified/        verified image parts, with the state of the file at that time
//! ledger.db        the history of the daemon's jobs and microVMs
//! audit/           closed segments of the daemon's audit log
//! logs/            output of the daemon's local jobs
//! private/         empty; each shepherd mounts its own tmpfs over it
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use mayfly_failure::{Code, Failure};

/// The variable that names the state directory, unless an option does.
pub const VARIABLE: &str = "MAYFLY_STATE_DIR";

/// An existing, writable state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirectory {
    root: PathBuf,
}

/// The state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Not root, and no home directory to derive the path from.
    #[error("can't choose a state directory: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// The directory can't be read.
    #[error("can't read the state directory {0}")]
    NotFound(PathBuf, #[source] io::Error),
    /// A directory can't be created.
    #[error("can't create the state directory {0}")]
    NotCreated(PathBuf, #[source] io::Error),
    /// The directory can't be written to.
    #[error("can't write to the state directory {0}")]
    NotWritable(PathBuf, #[source] io::Error),
}

impl Failure for StateError {
    fn code(&self) -> Code {
        match self {
            Self::NotFound(..) => Code::NotFound,
            _ => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        let which = match self {
            Self::NotFound(..) => "the daemon's directory",
            _ => "a directory that you can write to",
        };
        Some(format!("use {which}: set {VARIABLE}, or host.state_directory in the settings"))
    }
}

impl StateDirectory {
    /// Returns the default path: `/var/lib/mayfly` for root, otherwise below the user's own state
    /// directory (XDG Base Directory Specification, `XDG_STATE_HOME`).
    pub fn default_path() -> Result<PathBuf, StateError> {
        if nix::unistd::geteuid().is_root() {
            return Ok(PathBuf::from("/var/lib/mayfly"));
        }
        let absolute = |variable: &str| {
            std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .map(|base| base.join("mayfly"))
            .ok_or(StateError::NoHome)
    }

    /// Creates missing directories and checks that the others are writable.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let create = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| StateError::NotCreated(path.to_owned(), error))
        };
        create(root)?;
        let root = fs::canonicalize(root)
            .map_err(|error| StateError::NotCreated(root.to_owned(), error))?;
        let state = Self { root };
        for path in [state.images(), state.microvms(), state.verified(), state.private()] {
            create(&path)?;
        }
        tempfile::tempfile_in(state.microvms())
            .map_err(|error| StateError::NotWritable(state.root.clone(), error))?;
        Ok(state)
    }

    /// Opens an existing directory for reading: creates nothing, and nothing needs to be writable.
    pub fn existing(root: &Path) -> Result<Self, StateError> {
        let root =
            fs::canonicalize(root).map_err(|error| StateError::NotFound(root.to_owned(), error))?;
        Ok(Self { root })
    }

    /// Returns the directory as an absolute path without symlinks.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the path of the image store.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Returns the path of the microVMs' directories.
    pub fn microvms(&self) -> PathBuf {
        self.root.join("microvms")
    }

    /// Returns the path of the stamps of verified image parts.
    pub fn verified(&self) -> PathBuf {
        self.root.join("verified")
    }

    /// Returns the path of the daemon's ledger.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.db")
    }

    /// Returns the path of the closed segments of the audit log.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    /// Returns the path of the local jobs' logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Returns the mount point of the shepherds' private tmpfs.
    pub fn private(&self) -> PathBuf {
        self.root.join("private")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_creates_the_layout_and_can_be_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("a/b");
        let state = StateDirectory::open(&root).unwrap();
        assert!(state.images().is_dir() && state.private().is_dir());
        assert_eq!(StateDirectory::open(&root).unwrap(), state);
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let error = StateDirectory::open(&file.join("state")).unwrap_err();
        assert!(error.to_string().contains("file/state"), "{error}");
        assert_eq!(error.code(), Code::CannotWrite);
    }
}
