//! The state directory: everything of Mayfly's that lies on a disk.
//!
//! ```text
//! images/          the image store
//! microvms/ID/     a living microVM, or the black box of one that ended abnormally
//! verified/        which image parts were verified, and in what state of the file
//! ledger.db        what became of every job and microVM of the daemon's
//! logs/            what local jobs of the daemon's wrote
//! private/         empty; each shepherd mounts its own tmpfs over it
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::failure::{Code, Failure};

/// The variable that names the state directory, where no option does.
pub const VARIABLE: &str = "MAYFLY_STATE_DIR";

/// The state directory, there and writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirectory {
    root: PathBuf,
}

/// The state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Neither root nor a home directory to derive the path from.
    #[error("no place for the state directory: neither XDG_STATE_HOME nor HOME is set")]
    NoHome,
    /// There is none to look at.
    #[error("can't read the state directory {0}")]
    NotThere(PathBuf, #[source] io::Error),
    /// A directory could not be made.
    #[error("can't make the state directory {0}")]
    NotMade(PathBuf, #[source] io::Error),
    /// It is there but can't be written to.
    #[error("can't write to the state directory {0}")]
    NotWritable(PathBuf, #[source] io::Error),
}

impl Failure for StateError {
    fn code(&self) -> Code {
        match self {
            Self::NotThere(..) => Code::NotFound,
            _ => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        let which = match self {
            Self::NotThere(..) => "the daemon's directory",
            _ => "a directory that you may write to",
        };
        Some(format!("name {which}: {VARIABLE}, or host.state_directory in the settings"))
    }
}

impl StateDirectory {
    /// Where the state lies by default: `/var/lib/mayfly` for root, else under the user's own
    /// state directory (XDG Base Directory Specification, `XDG_STATE_HOME`).
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

    /// Makes what is missing and checks that the rest can be written to.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let make = |path: &Path| {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| StateError::NotMade(path.to_owned(), error))
        };
        make(root)?;
        let root =
            fs::canonicalize(root).map_err(|error| StateError::NotMade(root.to_owned(), error))?;
        let state = Self { root };
        for path in [state.images(), state.microvms(), state.verified(), state.private()] {
            make(&path)?;
        }
        tempfile::tempfile_in(state.microvms())
            .map_err(|error| StateError::NotWritable(state.root.clone(), error))?;
        Ok(state)
    }

    /// One that is there, only to be looked at: nothing is made and nothing need be writable.
    pub fn existing(root: &Path) -> Result<Self, StateError> {
        let root =
            fs::canonicalize(root).map_err(|error| StateError::NotThere(root.to_owned(), error))?;
        Ok(Self { root })
    }

    /// The directory itself, as an absolute path without links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image store.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The directories of the microVMs.
    pub fn microvms(&self) -> PathBuf {
        self.root.join("microvms")
    }

    /// The stamps of verified image parts.
    pub fn verified(&self) -> PathBuf {
        self.root.join("verified")
    }

    /// The daemon's ledger.
    pub fn ledger(&self) -> PathBuf {
        self.root.join("ledger.db")
    }

    /// Closed segments of the daemon's audit log.
    pub fn audit(&self) -> PathBuf {
        self.root.join("audit")
    }

    /// What local jobs of the daemon's wrote.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The mount point of a shepherd's private tmpfs.
    pub fn private(&self) -> PathBuf {
        self.root.join("private")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_makes_the_layout_once_and_again() {
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
