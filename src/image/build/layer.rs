//! The files that a build adds on top of the packages: one archive that is unpacked in the new
//! system.
//!
//! An archive rather than plain files, because only the enclosure may write to the new system, and
//! because it sets owners and times independently of the user who builds.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::path::{Path, PathBuf};

use tar::{EntryType, Header};

use mayfly_tree::DiskQuota;

use crate::error::ImageError;
use crate::recipe::AbsolutePath;

/// A layer archive being written.
pub(super) struct Layer {
    archive: tar::Builder<BufWriter<File>>,
    path: PathBuf,
    quota: DiskQuota,
    /// The time of all entries, in seconds since 1970.
    date: u64,
}

/// The owner and permissions of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    /// The id of the user and of its group.
    pub(super) owner: u32,
    /// The permissions.
    pub(super) mode: u32,
}

impl Access {
    /// Owned by root, readable by all.
    pub(super) const PUBLIC: Self = Self { owner: 0, mode: 0o644 };
    /// A directory owned by root, accessible to all.
    const PUBLIC_DIRECTORY: Self = Self { owner: 0, mode: 0o755 };
}

impl Layer {
    /// Creates the archive at `path`.
    pub(super) fn create(path: PathBuf, date: u64) -> Result<Self, ImageError> {
        let output = File::create_new(&path).map_err(ImageError::write(&path))?;
        let quota = DiskQuota::new(&output, u64::MAX).map_err(ImageError::disk_full(&path))?;
        let archive = tar::Builder::new(BufWriter::new(output));
        Ok(Self { archive, path, quota, date })
    }

    /// Adds a file of `length` bytes.
    pub(super) fn file(
        &mut self,
        path: &str,
        access: Access,
        length: u64,
        content: impl Read,
    ) -> Result<(), ImageError> {
        // Twice, because it is unpacked while the archive exists.
        self.quota
            .reserve_entry(length.saturating_mul(2))
            .map_err(ImageError::disk_full(&self.path))?;
        let mut header = self.header(EntryType::Regular, access);
        header.set_size(length);
        let added = self.archive.append_data(&mut header, relative(path), content);
        added.map_err(ImageError::write(&self.path))
    }

    /// Adds a directory, or sets the owner and mode of an existing one.
    pub(super) fn directory(&mut self, path: &str, access: Access) -> Result<(), ImageError> {
        let mut header = self.header(EntryType::Directory, access);
        let added = self.archive.append_data(&mut header, relative(path), io::empty());
        added.map_err(ImageError::write(&self.path))
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, owner: u32, to: &str) -> Result<(), ImageError> {
        let mut header = self.header(EntryType::Symlink, Access { owner, mode: 0o777 });
        let added = self.archive.append_link(&mut header, relative(path), to);
        added.map_err(ImageError::write(&self.path))
    }

    /// Adds a hard link to an added file.
    pub(super) fn hard_link(&mut self, path: &str, owner: u32, of: &str) -> Result<(), ImageError> {
        let mut header = self.header(EntryType::Link, Access { owner, mode: 0o644 });
        let added = self.archive.append_link(&mut header, relative(path), relative(of));
        added.map_err(ImageError::write(&self.path))
    }

    /// Adds the content of the directory `from` below `to`, owned by root.
    pub(super) fn tree(&mut self, from: &Path, to: &str) -> Result<(), ImageError> {
        self.directory(to, Access::PUBLIC_DIRECTORY)?;
        let listed = fs::read_dir(from).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut entries = listed.map_err(ImageError::read(from))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let to = format!("{to}/{}", name.to_string_lossy());
            if path.is_dir() {
                self.tree(&path, &to)?;
                continue;
            }
            let file = File::open(&path).map_err(ImageError::read(&path))?;
            let length = file.metadata().map_err(ImageError::read(&path))?.len();
            self.file(&to, Access::PUBLIC, length, file)?;
        }
        Ok(())
    }

    /// Completes the archive.
    pub(super) fn finish(self) -> Result<(), ImageError> {
        let written = self.archive.into_inner().and_then(|output| Ok(output.into_inner()?));
        written.map(drop).map_err(ImageError::write(self.path))
    }

    fn header(&self, kind: EntryType, access: Access) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_mode(access.mode);
        header.set_uid(u64::from(access.owner));
        header.set_gid(u64::from(access.owner));
        header.set_mtime(self.date);
        header
    }
}

/// Returns a path relative to the root: `append_data` rejects absolute paths.
fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Returns the directories between `home` and `path`, from the top: those that a user creates along
/// with a file in the home directory.
pub(super) fn directories_between<'p>(home: &AbsolutePath, path: &'p str) -> Vec<&'p str> {
    let Some(below) = path.strip_prefix(home.as_str()).filter(|rest| rest.starts_with('/')) else {
        return Vec::new();
    };
    let start = path.len() - below.len();
    let ends = below.match_indices('/').skip(1).map(|(end, _)| start + end);
    ends.map(|end| &path[..end]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_a_home_are_those_below_it() {
        let home = AbsolutePath::try_from("/home/runner".to_owned()).unwrap();
        let between = |path| directories_between(&home, path);
        assert_eq!(between("/home/runner/a/b/c"), ["/home/runner/a", "/home/runner/a/b"]);
        assert_eq!(between("/home/runner/a"), Vec::<&str>::new());
        assert_eq!(between("/home/runners/a/b"), Vec::<&str>::new());
        assert_eq!(between("/etc/a/b"), Vec::<&str>::new());
    }
}
