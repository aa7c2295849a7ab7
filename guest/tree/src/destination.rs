//! The destination of a tree: chosen by the user, never by the archive.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};

use crate::TreeError;
use crate::tree_path::TreePath;

/// The destination that a user has chosen for a tree.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The path.
    pub path: &'a Path,
    /// The name of the tree at its source: the last component of the requested path. `None` if the
    /// archive is trusted to name it.
    pub name: Option<&'a [u8]>,
}

impl Destination<'_> {
    /// Returns the directory for a single file, and the file's name in it. The file is written to
    /// the path itself, or below it under its own name if the path is a directory.
    pub(crate) fn for_file(&self, entry: &TreePath) -> Result<(PathBuf, TreePath), TreeError> {
        let bytes = self.path.as_os_str().as_bytes();
        let rejected = |why| TreeError::rejected(bytes, why);
        if ends_as_directory(bytes) || self.path.is_dir() {
            return Ok((self.path.to_owned(), self.own_name(entry)?));
        }
        match fs::symlink_metadata(self.path).map(|there| there.file_type()) {
            Ok(there) if there.is_symlink() && self.name.is_some() => {
                return Err(rejected("is a link: specify the file itself"));
            }
            Ok(there)
                if there.is_char_device()
                    || there.is_block_device()
                    || there.is_fifo()
                    || there.is_socket() =>
            {
                return Err(rejected("is neither a file nor a directory"));
            }
            _ => {}
        }
        let name = self.path.file_name().ok_or_else(|| rejected("is not a valid file name"))?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let name = TreePath::default().join(name.as_bytes()).map_err(rejected)?;
        Ok((parent.unwrap_or(Path::new(".")).to_owned(), name))
    }

    /// Returns the directory for a directory's contents: the path itself. If the path is an
    /// existing non-empty directory with another name, it is a subdirectory with the tree's name: a
    /// user who asks for a file must not get a directory's contents among his own files.
    pub(crate) fn for_directory(&self) -> Result<PathBuf, TreeError> {
        let Some(name) = self.name else { return Ok(self.path.to_owned()) };
        let same = self.path.file_name().is_some_and(|own| own.as_bytes() == name);
        if same || !self.path.is_dir() || is_empty(self.path) {
            return Ok(self.path.to_owned());
        }
        let name = self.own_name(&TreePath::default())?;
        Ok(self.path.join(OsStr::from_bytes(name.as_bytes())))
    }

    fn own_name(&self, entry: &TreePath) -> Result<TreePath, TreeError> {
        match self.name {
            Some(name) => TreePath::default().join(name).map_err(|_| {
                let path = self.path.as_os_str().as_bytes();
                TreeError::rejected(path, "is a directory, and the source path has no file name")
            }),
            None => Ok(entry.clone()),
        }
    }
}

fn ends_as_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.") || path == b"."
}

/// Returns whether a directory is empty. One that can't be read counts as not empty.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Creates a directory and its missing parents. Returns whether it was missing itself.
pub(crate) fn create_missing(path: &Path, owner: Option<(u32, u32)>) -> io::Result<bool> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    for path in missing.iter().rev() {
        match fs::create_dir(path) {
            // `a/.` exists as soon as `a` does.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        if let Some((user, group)) = owner {
            lchown(path, Some(user), Some(group))?;
        }
    }
    Ok(!missing.is_empty())
}
