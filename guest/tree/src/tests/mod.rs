//! Tests with packed trees, and with archives that the packer never writes.

mod destinations;
mod hostile;
mod names;
mod trees;

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tar::{EntryType, Header};
use tempfile::TempDir;

use crate::{ArchiveOrigin, BLOCK, Destination, Notes, TreeError, unpack};

/// A limit that is large enough for every test.
const LIMIT: u64 = 64 << 20;

pub(super) const GUEST: ArchiveOrigin = ArchiveOrigin::Guest { limit: LIMIT };
pub(super) const HOST: ArchiveOrigin = ArchiveOrigin::Host { owner: None };

/// An archive built by hand, because no library writes hostile archives.
#[derive(Clone, Default)]
pub(super) struct Tar(pub(super) Vec<u8>);

impl Tar {
    /// Returns an archive that begins with the root directory.
    pub(super) fn tree() -> Self {
        Self::default().with(EntryType::Directory, b".", b"", b"")
    }

    pub(super) fn with(self, kind: EntryType, name: &[u8], target: &[u8], data: &[u8]) -> Self {
        self.with_header(header(kind, name, target, data.len() as u64), data)
    }

    pub(super) fn file(self, name: &[u8], data: &[u8]) -> Self {
        self.with(EntryType::Regular, name, b"", data)
    }

    pub(super) fn directory(self, name: &[u8]) -> Self {
        self.with(EntryType::Directory, name, b"", b"")
    }

    pub(super) fn symlink(self, name: &[u8], target: &[u8]) -> Self {
        self.with(EntryType::Symlink, name, target, b"")
    }

    pub(super) fn hard_link(self, name: &[u8], target: &[u8]) -> Self {
        self.with(EntryType::Link, name, target, b"")
    }

    pub(super) fn with_header(mut self, mut header: Header, data: &[u8]) -> Self {
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.with_raw(data)
    }

    /// Appends bytes, padded to a block.
    pub(super) fn with_raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Returns the bytes of the archive, with its end.
    pub(super) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

pub(super) fn header(kind: EntryType, name: &[u8], target: &[u8], size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.as_old_mut().linkname[..target.len()].copy_from_slice(target);
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(7);
    header.set_size(size);
    header
}

/// A temporary directory with files beside the destination that must not change.
pub(super) struct TestDir(TempDir);

impl TestDir {
    pub(super) fn new() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        fs::write(dir.path("victim"), "as it was").unwrap();
        dir
    }

    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Unpacks a tree named `tree` at `inner`.
    pub(super) fn unpack(&self, archive: &[u8], origin: ArchiveOrigin) -> Result<Notes, TreeError> {
        let name = matches!(origin, ArchiveOrigin::Guest { .. }).then_some(&b"tree"[..]);
        let path = self.path("inner");
        unpack(archive, Destination { path: &path, name }, origin, |_| Ok(()))
    }

    /// Returns the contents of `inner`, one line per entry.
    pub(super) fn listed(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let inner = self.path("inner");
        if inner.is_dir() {
            list(&inner, "", &mut lines);
        } else if let Ok(text) = fs::read_to_string(&inner) {
            lines.push(format!("={text}"));
        }
        lines.sort();
        lines
    }

    /// Asserts that nothing beside `inner` has changed.
    #[track_caller]
    pub(super) fn assert_nothing_beside(&self) {
        let names = fs::read_dir(self.0.path()).unwrap();
        let beside: Vec<_> = names
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "inner" && name != "victim")
            .collect();
        assert_eq!(beside, [""; 0], "something was written beside the destination");
        assert_eq!(fs::read_to_string(self.path("victim")).unwrap(), "as it was");
    }
}

fn list(directory: &Path, prefix: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().as_bytes().escape_ascii().to_string();
        let name = if name.len() > 60 { format!("{}…", &name[..8]) } else { name };
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            lines.push(format!("{prefix}{name}/"));
            list(&path, &format!("{prefix}{name}/"), lines);
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).unwrap();
            lines.push(format!("{prefix}{name}->{}", target.display()));
        } else if kind.is_fifo() {
            lines.push(format!("{prefix}{name}|"));
        } else {
            let metadata = fs::metadata(&path).unwrap();
            let text = match metadata.len() {
                large @ 1000.. => format!("{large} bytes"),
                _ => fs::read_to_string(&path).unwrap(),
            };
            let special = metadata.permissions().mode() & 0o7000;
            let special = if special == 0 { String::new() } else { format!(" {special:o}") };
            lines.push(format!("{prefix}{name}={text}{special}"));
        }
    }
}

/// A reader that counts the bytes read.
pub(super) struct Counted<R>(pub(super) R, pub(super) u64);

impl<R: io::Read> io::Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1 += count as u64;
        Ok(count)
    }
}
