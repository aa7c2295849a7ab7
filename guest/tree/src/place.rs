//! Where a tree goes: what the person who asked for it has named, never what the archive says.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, lchown};
use std::path::{Path, PathBuf};

use crate::TreeError;
use crate::name::Name;

/// The place that a person has named for a tree.
#[derive(Debug, Clone, Copy)]
pub struct Destination<'a> {
    /// The path.
    pub path: &'a Path,
    /// What the tree is called where it comes from: the last part of the path that was asked for.
    /// None where the archive comes from who asked, and is believed to say it.
    pub name: Option<&'a [u8]>,
}

impl Destination<'_> {
    /// The directory that a single file goes into, and its name there. A file takes the place that
    /// was named, or goes into it under its own name if that is a directory.
    pub(crate) fn of_file(&self, entry: &Name) -> Result<(PathBuf, Name), TreeError> {
        let bytes = self.path.as_os_str().as_bytes();
        let refused = |why| TreeError::refused(bytes, why);
        if ends_as_directory(bytes) || self.path.is_dir() {
            return Ok((self.path.to_owned(), self.own_name(entry)?));
        }
        match fs::symlink_metadata(self.path).map(|there| there.file_type()) {
            Ok(there) if there.is_symlink() && self.name.is_some() => {
                return Err(refused("is a link: name the file itself"));
            }
            Ok(there)
                if there.is_char_device()
                    || there.is_block_device()
                    || there.is_fifo()
                    || there.is_socket() =>
            {
                return Err(refused("is neither a file nor a directory"));
            }
            _ => {}
        }
        let name = self.path.file_name().ok_or_else(|| refused("can't be a file's name"))?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let name = Name::default().join(name.as_bytes()).map_err(refused)?;
        Ok((parent.unwrap_or(Path::new(".")).to_owned(), name))
    }

    /// The directory that a directory's contents go into: the place that was named. If that is
    /// there already, holds something and is called otherwise, they go into it under the tree's own
    /// name: nobody who asks for a file is to find a whole directory's contents among his own.
    pub(crate) fn of_directory(&self) -> Result<PathBuf, TreeError> {
        let Some(name) = self.name else { return Ok(self.path.to_owned()) };
        let same = self.path.file_name().is_some_and(|own| own.as_bytes() == name);
        if same || !self.path.is_dir() || is_empty(self.path) {
            return Ok(self.path.to_owned());
        }
        let name = self.own_name(&Name::default())?;
        Ok(self.path.join(OsStr::from_bytes(name.as_bytes())))
    }

    fn own_name(&self, entry: &Name) -> Result<Name, TreeError> {
        match self.name {
            Some(name) => Name::default().join(name).map_err(|_| {
                let path = self.path.as_os_str().as_bytes();
                TreeError::refused(path, "is a directory, and what was asked for has no name")
            }),
            None => Ok(entry.clone()),
        }
    }
}

fn ends_as_directory(path: &[u8]) -> bool {
    path.ends_with(b"/") || path.ends_with(b"/.") || path == b"."
}

/// One that can't be read is taken for one that holds something.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

/// Makes a directory and those above it that are missing. Tells whether it was missing itself.
pub(crate) fn create_missing(path: &Path, owner: Option<(u32, u32)>) -> io::Result<bool> {
    let is_missing = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    for path in missing.iter().rev() {
        match fs::create_dir(path) {
            // `a/.` is there as soon as `a` is.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            made => made?,
        }
        if let Some((user, group)) = owner {
            lchown(path, Some(user), Some(group))?;
        }
    }
    Ok(!missing.is_empty())
}
