//! Compares the files of two root file systems.
//!
//! It reads the ext4 images without mounting them and needs no privileges. Extended attributes are
//! not compared.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use ext4_view::{Ext4, Ext4Error, File, Metadata, PathBuf};
use serde::Serialize;

use super::error::ImageError;

/// The size of one read.
const CHUNK: usize = 64 << 10;

/// The most differences that are reported.
const MAX_CHANGES: usize = 10_000;

/// A file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileChange {
    /// Its absolute path.
    pub path: String,
    /// The kind of difference.
    pub difference: Difference,
}

/// The difference of a file: the first that applies, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Difference {
    /// Only the second file system has it.
    Added,
    /// Only the first file system has it.
    Removed,
    /// The file types differ.
    Kind,
    /// The content, or the target of a symbolic link, differs.
    Content,
    /// The permissions differ.
    Mode,
    /// The user or group differs.
    Owner,
    /// The modification time differs.
    Time,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Kind => "kind",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
        })
    }
}

/// Returns the files that differ between two ext4 images, 10,000 at most.
///
/// # Errors
///
/// One of the images can't be read as a file system.
pub(super) fn between(from: &Path, to: &Path) -> Result<Vec<FileChange>, ImageError> {
    let load = |path: &Path| Ext4::load_from_path(path).map_err(unreadable(path));
    let mut comparison = Comparison { from: load(from)?, to: load(to)?, changes: Vec::new() };
    comparison.directories().map_err(unreadable(to))?;
    let mut changes = comparison.changes;
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(changes)
}

fn unreadable(path: &Path) -> impl FnOnce(Ext4Error) -> ImageError {
    |source| ImageError::FileSystem { path: path.to_owned(), source }
}

struct Comparison {
    from: Ext4,
    to: Ext4,
    changes: Vec<FileChange>,
}

impl Comparison {
    /// Compares the entries of each directory that both have.
    fn directories(&mut self) -> Result<(), Ext4Error> {
        let mut pending = vec![PathBuf::new("/")];
        while let Some(directory) = pending.pop() {
            let (from, to) = (entries(&self.from, &directory)?, entries(&self.to, &directory)?);
            for (name, old) in &from {
                let path = directory.join(name);
                match to.get(name) {
                    None => self.add(&path, Difference::Removed),
                    Some(new) => {
                        if let Some(difference) = self.difference(&path, old, new)? {
                            self.add(&path, difference);
                        }
                        if old.is_dir() && new.is_dir() {
                            pending.push(path);
                        }
                    }
                }
            }
            for name in to.keys().filter(|name| !from.contains_key(*name)) {
                self.add(&directory.join(name), Difference::Added);
            }
            if self.changes.len() >= MAX_CHANGES {
                break;
            }
        }
        self.changes.truncate(MAX_CHANGES);
        Ok(())
    }

    fn add(&mut self, path: &PathBuf, difference: Difference) {
        self.changes.push(FileChange { path: path.display().to_string(), difference });
    }

    fn difference(
        &self,
        path: &PathBuf,
        old: &Metadata,
        new: &Metadata,
    ) -> Result<Option<Difference>, Ext4Error> {
        let owner = |metadata: &Metadata| (metadata.uid(), metadata.gid());
        Ok(if old.file_type() != new.file_type() {
            Some(Difference::Kind)
        } else if self.content_differs(path, old, new)? {
            Some(Difference::Content)
        } else if old.mode() != new.mode() {
            Some(Difference::Mode)
        } else if owner(old) != owner(new) {
            Some(Difference::Owner)
        } else if old.modified() != new.modified() {
            Some(Difference::Time)
        } else {
            None
        })
    }

    fn content_differs(
        &self,
        path: &PathBuf,
        old: &Metadata,
        new: &Metadata,
    ) -> Result<bool, Ext4Error> {
        if old.is_symlink() {
            return Ok(self.from.read_link(path)? != self.to.read_link(path)?);
        }
        if !old.file_type().is_regular_file() {
            return Ok(false);
        }
        if old.len() != new.len() {
            return Ok(true);
        }
        let (mut one, mut other) = (self.from.open(path)?, self.to.open(path)?);
        let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
        loop {
            let (read, other_read) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
            if left[..read] != right[..other_read] {
                return Ok(true);
            }
            if read < CHUNK {
                return Ok(false);
            }
        }
    }
}

/// Reads until the buffer is full or the file is at its end.
fn fill(file: &mut File, buffer: &mut [u8]) -> Result<usize, Ext4Error> {
    let mut filled = 0;
    loop {
        match file.read_bytes(&mut buffer[filled..])? {
            0 => return Ok(filled),
            read => filled += read,
        }
    }
}

/// Returns the entries of a directory by name.
fn entries(system: &Ext4, directory: &PathBuf) -> Result<BTreeMap<Vec<u8>, Metadata>, Ext4Error> {
    let mut entries = BTreeMap::new();
    for entry in system.read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().as_ref().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            entries.insert(name, system.symlink_metadata(&entry.path())?);
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    /// Makes an ext4 image of what `fill` puts into a directory.
    fn image(directory: &Path, name: &str, fill: impl FnOnce(&Path)) -> std::path::PathBuf {
        let (root, image) = (directory.join(name), directory.join(format!("{name}.img")));
        fs::create_dir(&root).unwrap();
        fill(&root);
        fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
        let mut command = Command::new("/sbin/mke2fs");
        command.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&image);
        assert!(command.status().unwrap().success());
        image
    }

    fn write(root: &Path, name: &str, bytes: &[u8], mode: u32) {
        let path = root.join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1);
        fs::File::open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn each_changed_file_is_reported_with_its_difference() {
        let directory = tempfile::tempdir().unwrap();
        let long = vec![7; 3 * CHUNK + 5];
        let mut changed = long.clone();
        changed[2 * CHUNK + 1] = 8;
        let from = image(directory.path(), "from", |root| {
            write(root, "same", &long, 0o644);
            write(root, "content", &long, 0o644);
            write(root, "mode", b"", 0o644);
            write(root, "gone", b"", 0o644);
            write(root, "kind", b"", 0o644);
            symlink("a", root.join("link")).unwrap();
        });
        let to = image(directory.path(), "to", |root| {
            write(root, "same", &long, 0o644);
            write(root, "content", &changed, 0o644);
            write(root, "mode", b"", 0o600);
            fs::create_dir_all(root.join("kind/new")).unwrap();
            symlink("b", root.join("link")).unwrap();
        });
        let changes = between(&from, &to).unwrap();
        let found: Vec<_> = changes
            .iter()
            // The directory itself was made a moment later.
            .filter(|change| change.difference != Difference::Time)
            .map(|change| (change.path.as_str(), change.difference))
            .collect();
        let expected = [
            ("/content", Difference::Content),
            ("/gone", Difference::Removed),
            ("/kind", Difference::Kind),
            ("/link", Difference::Content),
            ("/mode", Difference::Mode),
        ];
        assert_eq!(found, expected);
        assert_eq!(between(&from, &from).unwrap(), []);
    }

    #[test]
    fn an_image_without_a_file_system_is_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.img");
        fs::write(&path, vec![0; 1 << 20]).unwrap();
        let error = between(&path, &path).unwrap_err();
        assert!(error.to_string().contains("none.img"), "{error}");
    }
}
