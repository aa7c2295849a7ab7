//! Reads gzipped tar archives from outside, with limits; no entry can leave the directory that it
//! is unpacked in. Archives from a guest are read by `mayfly_tree`, which accepts only what its own
//! packer writes; here names may also be in pax headers, as other packers write them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use tar::{EntryType, PaxExtensions};

use mayfly_host::memory;

/// Limits. GitHub's runner has 12,000 files and 0.2 GB, unpacked 0.7 GB.
const MAX_ENTRIES: usize = 100_000;
const MAX_BYTES: u64 = 4 << 30;
const MAX_PATH: usize = 1024;
/// The total length of names, which are held in memory until the end.
const MAX_NAMES: usize = 16 << 20;
/// The largest extension header: two names and some numbers.
const MAX_EXTENSION: u64 = 8 << 10;

/// The reason why an archive is rejected.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// It is damaged or not a gzipped tar archive.
    #[error("not a gzipped tar archive, or damaged")]
    Damaged(#[from] io::Error),
    /// An entry is invalid.
    #[error("its entry {path:?} {reason}")]
    Entry {
        /// The entry.
        path: String,
        /// The reason.
        reason: &'static str,
    },
    /// A required file is missing.
    #[error("the file {0} is missing in it")]
    MissingFile(String),
    /// It is too large.
    #[error("the archive has more than {MAX_ENTRIES} files or {} GiB", MAX_BYTES >> 30)]
    TooLarge,
}

/// An entry of an archive; paths are relative, without `.` and `..`.
pub(super) enum Member<'r> {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its length.
        bytes: u64,
        /// Its modification time, in seconds since 1970.
        modified: u64,
        /// Whether it is executable.
        executable: bool,
        /// Its content.
        content: &'r mut dyn Read,
    },
    /// A symbolic link.
    Symlink(String),
    /// A hard link to an earlier file.
    HardLink(String),
}

/// Calls `visit` with each entry and its path.
pub(super) fn read<E: From<TarballError>>(
    file: File,
    mut visit: impl FnMut(&str, Member<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let _bound = memory::limit_data(memory::UNPACK_ALLOWANCE).map_err(TarballError::Damaged)?;
    let mut archive = tar::Archive::new(MultiGzDecoder::new(file).take(MAX_BYTES));
    let (mut seen, mut links) = (BTreeSet::new(), BTreeSet::new());
    let (mut extension, mut names) = (Extension::default(), 0);
    // Raw: the library reads extensions of any length.
    let entries = archive.entries().map_err(TarballError::Damaged)?.raw(true);
    for (index, entry) in entries.enumerate() {
        let mut entry = entry.map_err(TarballError::Damaged)?;
        if index == MAX_ENTRIES || names > MAX_NAMES {
            return Err(TarballError::TooLarge.into());
        }
        if extension.read(&mut entry)? {
            continue;
        }
        let Extension { path, target: long_target, size } = std::mem::take(&mut extension);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(path) = checked_path(&path)? else { continue };
        names += path.len();
        let refused = |reason| E::from(TarballError::Entry { path: path.clone(), reason });
        if parents(&path).any(|parent| links.contains(parent)) {
            return Err(refused("is below a symbolic link"));
        }
        if size.is_some_and(|size| size != entry.size()) {
            return Err(refused("has contradictory lengths"));
        }
        let kind = entry.header().entry_type();
        if !seen.insert(path.clone()) && kind != EntryType::Directory {
            return Err(refused("appears twice"));
        }
        let target = |entry: &tar::Entry<'_, _>| {
            let short = || entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = long_target.clone().unwrap_or_else(short);
            String::from_utf8(target).map_err(|_| refused("has a link target that is not UTF-8"))
        };
        match kind {
            EntryType::Directory => visit(&path, Member::Directory)?,
            EntryType::Regular | EntryType::Continuous => {
                let header = entry.header();
                let (bytes, modified) = (entry.size(), header.mtime().unwrap_or(0));
                let executable = header.mode().is_ok_and(|mode| mode & 0o100 != 0);
                let content: &mut dyn Read = &mut entry;
                visit(&path, Member::File { bytes, modified, executable, content })?;
            }
            EntryType::Symlink => {
                let target = target(&entry)?;
                if !stays_inside(&path, &target) {
                    return Err(refused("links outside of the archive"));
                }
                links.insert(path.clone());
                visit(&path, Member::Symlink(target))?;
            }
            EntryType::Link => {
                let target = checked_path(target(&entry)?.as_bytes())?;
                let target = target.filter(|target| seen.contains(target) && *target != path);
                let target = target.ok_or_else(|| refused("links to a missing file"))?;
                visit(&path, Member::HardLink(target))?;
            }
            _ => return Err(refused("is not a file, directory or link")),
        }
    }
    read_rest(archive.into_inner()).map_err(E::from)
}

/// Reads to the end, which detects damage after the last entry.
fn read_rest(mut archive: impl Read) -> Result<(), TarballError> {
    io::copy(&mut archive, &mut io::sink()).map(drop).map_err(TarballError::Damaged)
}

/// The properties of the next entry, from extension headers.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extension {
    /// Reads an entry if it is an extension of GNU or pax; returns whether it was.
    fn read(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool, TarballError> {
        let kind = entry.header().entry_type();
        let is_pax = kind == EntryType::XHeader;
        if !is_pax && !kind.is_gnu_longname() && !kind.is_gnu_longlink() {
            return Ok(false);
        }
        if entry.size() > MAX_EXTENSION {
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            return Err(TarballError::Entry { path, reason: "has a name that is too long" });
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        if !is_pax {
            if text.last() == Some(&0) {
                text.pop();
            }
            let field = if kind.is_gnu_longname() { &mut self.path } else { &mut self.target };
            *field = Some(text);
            return Ok(true);
        }
        for record in PaxExtensions::new(&text) {
            let record = record?;
            match record.key_bytes() {
                b"path" => self.path = Some(record.value_bytes().to_vec()),
                b"linkpath" => self.target = Some(record.value_bytes().to_vec()),
                b"size" => self.size = record.value().ok().and_then(|size| size.parse().ok()),
                _ => {}
            }
        }
        Ok(true)
    }
}

/// Returns an entry's path without `.`; `None` for the archive's root.
fn checked_path(bytes: &[u8]) -> Result<Option<String>, TarballError> {
    let lossy = String::from_utf8_lossy(bytes);
    let refused = |reason| TarballError::Entry { path: lossy.clone().into_owned(), reason };
    let text = std::str::from_utf8(bytes).map_err(|_| refused("has a name that is not UTF-8"))?;
    if text.len() > MAX_PATH || text.chars().any(char::is_control) {
        return Err(refused("has an invalid name"));
    }
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::CurDir => {}
            _ => return Err(refused("leads outside of the archive")),
        }
    }
    Ok(Some(parts.join("/")).filter(|path| !path.is_empty()))
}

/// Returns the parent directories of a path.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// Returns whether the target of a link at `path` is inside the archive's directory.
fn stays_inside(path: &str, target: &str) -> bool {
    let mut depth = parents(path).count();
    if target.is_empty() || target.len() > MAX_PATH || target.chars().any(char::is_control) {
        return false;
    }
    for component in Path::new(target).components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use proptest::prelude::*;
    use tar::Header;

    use super::*;

    /// A name, a type, and the link target or content.
    type Entry<'e> = (&'e str, EntryType, &'e str);

    /// Writes headers unchanged, which no library does.
    fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, kind, text) in entries {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o4755);
            header.set_mtime(7);
            let holds = *kind == EntryType::Regular;
            header.set_size(if holds { text.len() as u64 } else { 0 });
            if !holds {
                header.as_mut_bytes()[157..157 + text.len()].copy_from_slice(text.as_bytes());
            }
            header.set_cksum();
            bytes.extend_from_slice(header.as_bytes());
            if holds {
                bytes.extend_from_slice(text.as_bytes());
                bytes.resize(bytes.len().next_multiple_of(512), 0);
            }
        }
        bytes.resize(bytes.len() + 1024, 0);
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&bytes).unwrap();
        gzip.finish().unwrap()
    }

    fn unpack(bytes: &[u8]) -> Result<Vec<String>, TarballError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut visited = Vec::new();
        read::<TarballError>(file, |path, member| {
            visited.push(match member {
                Member::Directory => format!("{path}/"),
                Member::File { bytes, executable, content, .. } => {
                    let length = io::copy(content, &mut io::sink())?;
                    assert_eq!(length, bytes);
                    format!("{path} {bytes} {executable}")
                }
                Member::Symlink(target) => format!("{path} -> {target}"),
                Member::HardLink(other) => format!("{path} = {other}"),
            });
            Ok(())
        })?;
        Ok(visited)
    }

    #[test]
    fn the_entries_of_an_archive_are_visited_in_order() {
        let entries = [
            ("./", EntryType::Directory, ""),
            ("./bin/", EntryType::Directory, ""),
            ("./bin/a", EntryType::Regular, "hello"),
            ("bin/b", EntryType::Symlink, "../bin/a"),
            ("c", EntryType::Link, "./bin/a"),
        ];
        let visited = unpack(&archive(&entries)).unwrap();
        assert_eq!(visited, ["bin/", "bin/a 5 true", "bin/b -> ../bin/a", "c = bin/a"]);
    }

    #[test]
    fn entries_that_leave_the_directory_are_rejected() {
        for entries in [
            &[("../x", EntryType::Regular, "")][..],
            &[("/x", EntryType::Regular, "")],
            &[("a/../../x", EntryType::Regular, "")],
            &[("a", EntryType::Symlink, "/etc")],
            &[("a/b", EntryType::Symlink, "../../etc")],
            &[("a", EntryType::Symlink, "")],
            &[("a", EntryType::Symlink, "b"), ("a/x", EntryType::Regular, "")],
            &[("a", EntryType::Link, "/etc/shadow")],
            &[("a", EntryType::Link, "b")],
            &[("a", EntryType::Regular, ""), ("a", EntryType::Symlink, "b")],
            &[("a", EntryType::Fifo, "")],
            &[("a", EntryType::Char, "")],
        ] {
            let error = unpack(&archive(entries)).unwrap_err();
            assert!(matches!(error, TarballError::Entry { .. }), "{entries:?}: {error}");
        }
    }

    /// Returns an extension header with exactly this data after it, whatever size it declares.
    fn extended(kind: EntryType, size: u64, text: &[u8]) -> Vec<u8> {
        let mut header = Header::new_gnu();
        header.set_path("extension").unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    fn gzipped(parts: &[&[u8]]) -> Vec<u8> {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        for part in parts {
            gzip.write_all(part).unwrap();
        }
        gzip.finish().unwrap()
    }

    /// Returns an archive without compression.
    fn plain(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        MultiGzDecoder::new(&archive(entries)[..]).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn names_in_extensions_are_read() {
        let long = ["a"; 150].join("/");
        let pax = |key: &str, value: &str| {
            let length = key.len() + value.len() + 3;
            let digits = if length + 3 > 99 { 3 } else { 2 };
            format!("{} {key}={value}\n", length + digits).into_bytes()
        };
        let file = plain(&[("x", EntryType::Regular, "hello")]);
        for (extension, size) in [(pax("path", &long), 5), (pax("size", "5"), 5)] {
            let header = extended(EntryType::XHeader, extension.len() as u64, &extension);
            let visited = unpack(&gzipped(&[&header, &file])).unwrap();
            assert!(visited[0].ends_with(&format!(" {size} true")), "{visited:?}");
        }
        let header = extended(EntryType::GNULongName, long.len() as u64 + 1, long.as_bytes());
        let visited = unpack(&gzipped(&[&header, &file])).unwrap();
        assert_eq!(visited, [format!("{long} 5 true")]);
        // The same rules apply to them.
        let up = extended(EntryType::GNULongName, 5, b"../x\0");
        let other = extended(EntryType::XHeader, 9, b"9 size=6\n");
        for header in [up, other] {
            let error = unpack(&gzipped(&[&header, &file])).unwrap_err();
            assert!(matches!(error, TarballError::Entry { .. }), "{error}");
        }
    }

    #[test]
    fn oversized_extensions_are_rejected_before_memory_is_allocated() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            // By its declared size, whatever follows.
            let header = extended(kind, 300 << 20, &[]);
            let error = unpack(&gzipped(&[&header])).unwrap_err();
            assert!(matches!(error, TarballError::Entry { .. }), "{kind:?}: {error}");
        }
        // Many names of the maximum length.
        let mut bytes = Vec::new();
        for number in 0..20_000 {
            let name = format!("{number:05}{}", "/aaaaaaa".repeat(120));
            bytes.extend(extended(EntryType::GNULongName, name.len() as u64, name.as_bytes()));
            bytes.extend(&plain(&[("x", EntryType::Directory, "")])[..512]);
        }
        let error = unpack(&gzipped(&[&bytes])).unwrap_err();
        assert!(matches!(error, TarballError::TooLarge), "{error}");
    }

    #[test]
    fn damaged_archives_are_rejected() {
        let complete = archive(&[("a", EntryType::Regular, "hello")]);
        for bytes in
            [&b"hello"[..], &complete[..complete.len() / 2], &complete[..complete.len() - 4]]
        {
            assert!(matches!(unpack(bytes), Err(TarballError::Damaged(_))), "{}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_cause_no_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = unpack(&bytes);
            // Also inside gzip.
            let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
            bytes.resize(bytes.len().next_multiple_of(512), 0);
            gzip.write_all(&bytes).unwrap();
            let _ = unpack(&gzip.finish().unwrap());
        }

        #[test]
        fn a_path_never_leaves(path in "[./a-c]{0,12}") {
            if let Ok(Some(path)) = checked_path(path.as_bytes()) {
                prop_assert!(path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
            }
        }

        /// A link's target, followed step by step, never rises above the root.
        #[test]
        fn a_link_never_leaves(path in "([ab]/){0,3}[ab]", target in "(\\.\\./|\\./|a/){0,6}[ab]") {
            let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let mut at: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
            let mut left = false;
            for part in target.split('/').filter(|part| *part != ".") {
                if part == ".." { left |= at.pop().is_none() } else { at.push(part) }
            }
            prop_assert_eq!(stays_inside(&path, &target), !left);
        }
    }
}
