//! Reads a gzipped tar archive that came from elsewhere: bounded, and nothing in it leads out of
//! the directory that it is unpacked in. What comes from a guest is read by `mayfly_tree`, which takes
//! only what its own packer writes; here names may also come in pax headers, as others write them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use tar::{EntryType, PaxExtensions};

use crate::host::memory;

/// What is refused beyond: GitHub's runner has 0.2 GB in 12,000 files, unpacked 0.7 GB.
const MOST_ENTRIES: usize = 100_000;
const MOST_BYTES: u64 = 4 << 30;
const LONGEST_PATH: usize = 1024;
/// All names together, which are kept until the end.
const MOST_NAMES: usize = 16 << 20;
/// A header of extensions: its two names, and some numbers.
const LONGEST_EXTENSION: u64 = 8 << 10;

/// Why an archive can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TarballError {
    /// It is damaged or no such archive.
    #[error("it is no gzipped tar archive, or damaged")]
    Damaged(#[from] io::Error),
    /// An entry that can't be allowed.
    #[error("its entry {path:?} {problem}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// It lacks what it is wanted for.
    #[error("there is no file {0} in it")]
    Lacks(String),
    /// It is too large.
    #[error("it holds more than {MOST_ENTRIES} files or {} GiB", MOST_BYTES >> 30)]
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
        /// When it was last changed, in seconds since 1970.
        modified: u64,
        /// Whether it is a program.
        executable: bool,
        /// What is in it.
        content: &'r mut dyn Read,
    },
    /// A symbolic link.
    Link(String),
    /// Another name of a file before it.
    SameAs(String),
}

/// Calls `take` with each entry's path.
pub(super) fn read<E: From<TarballError>>(
    file: File,
    mut take: impl FnMut(&str, Member<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let _bound = memory::bound(memory::FOR_UNPACKING).map_err(TarballError::Damaged)?;
    let mut archive = tar::Archive::new(MultiGzDecoder::new(file).take(MOST_BYTES));
    let (mut seen, mut links) = (BTreeSet::new(), BTreeSet::new());
    let (mut extension, mut names) = (Extension::default(), 0);
    // Raw: the library would read extensions of any length.
    let entries = archive.entries().map_err(TarballError::Damaged)?.raw(true);
    for (index, entry) in entries.enumerate() {
        let mut entry = entry.map_err(TarballError::Damaged)?;
        if index == MOST_ENTRIES || names > MOST_NAMES {
            return Err(TarballError::TooLarge.into());
        }
        if extension.read(&mut entry)? {
            continue;
        }
        let Extension { path, target: long_target, size } = std::mem::take(&mut extension);
        let path = path.unwrap_or_else(|| entry.path_bytes().into_owned());
        let Some(path) = checked_path(&path)? else { continue };
        names += path.len();
        let refused = |problem| E::from(TarballError::Entry { path: path.clone(), problem });
        if parents(&path).any(|parent| links.contains(parent)) {
            return Err(refused("is behind a link"));
        }
        if size.is_some_and(|size| size != entry.size()) {
            return Err(refused("has two lengths"));
        }
        let kind = entry.header().entry_type();
        if !seen.insert(path.clone()) && kind != EntryType::Directory {
            return Err(refused("is there twice"));
        }
        let target = |entry: &tar::Entry<'_, _>| {
            let short = || entry.link_name_bytes().unwrap_or_default().into_owned();
            let target = long_target.clone().unwrap_or_else(short);
            String::from_utf8(target).map_err(|_| refused("links to what is no text"))
        };
        match kind {
            EntryType::Directory => take(&path, Member::Directory)?,
            EntryType::Regular | EntryType::Continuous => {
                let header = entry.header();
                let (bytes, modified) = (entry.size(), header.mtime().unwrap_or(0));
                let executable = header.mode().is_ok_and(|mode| mode & 0o100 != 0);
                let content: &mut dyn Read = &mut entry;
                take(&path, Member::File { bytes, modified, executable, content })?;
            }
            EntryType::Symlink => {
                let target = target(&entry)?;
                if !stays_inside(&path, &target) {
                    return Err(refused("links to what is outside"));
                }
                links.insert(path.clone());
                take(&path, Member::Link(target))?;
            }
            EntryType::Link => {
                let target = checked_path(target(&entry)?.as_bytes())?;
                let target = target.filter(|target| seen.contains(target) && *target != path);
                let target = target.ok_or_else(|| refused("links to what is not there"))?;
                take(&path, Member::SameAs(target))?;
            }
            _ => return Err(refused("is neither file, directory nor link")),
        }
    }
    read_rest(archive.into_inner()).map_err(E::from)
}

/// Damage behind the last entry is damage.
fn read_rest(mut archive: impl Read) -> Result<(), TarballError> {
    io::copy(&mut archive, &mut io::sink()).map(drop).map_err(TarballError::Damaged)
}

/// What headers say of the entry after them.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Extension {
    /// Reads an entry that is one of GNU's or pax's, if it is.
    fn read(&mut self, entry: &mut tar::Entry<'_, impl Read>) -> Result<bool, TarballError> {
        let kind = entry.header().entry_type();
        let is_pax = kind == EntryType::XHeader;
        if !is_pax && !kind.is_gnu_longname() && !kind.is_gnu_longlink() {
            return Ok(false);
        }
        if entry.size() > LONGEST_EXTENSION {
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            return Err(TarballError::Entry { path, problem: "is a name that is too long" });
        }
        let mut text = Vec::new();
        entry.read_to_end(&mut text)?;
        if !is_pax {
            if text.last() == Some(&0) {
                text.pop();
            }
            let place = if kind.is_gnu_longname() { &mut self.path } else { &mut self.target };
            *place = Some(text);
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

/// An entry's path without `.`; none for the archive's own root.
fn checked_path(bytes: &[u8]) -> Result<Option<String>, TarballError> {
    let lossy = String::from_utf8_lossy(bytes);
    let refused = |problem| TarballError::Entry { path: lossy.clone().into_owned(), problem };
    let text = std::str::from_utf8(bytes).map_err(|_| refused("has a name that is no text"))?;
    if text.len() > LONGEST_PATH || text.chars().any(char::is_control) {
        return Err(refused("has no usable name"));
    }
    let mut parts = Vec::new();
    for component in Path::new(text).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_string_lossy()),
            Component::CurDir => {}
            _ => return Err(refused("leads out of the archive")),
        }
    }
    Ok(Some(parts.join("/")).filter(|path| !path.is_empty()))
}

/// The directories above a path.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// Whether what a link at `path` names is in the archive's directory.
fn stays_inside(path: &str, target: &str) -> bool {
    let mut depth = parents(path).count();
    if target.is_empty() || target.len() > LONGEST_PATH || target.chars().any(char::is_control) {
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

    /// A name, a kind, and what it links to or holds.
    type Entry<'e> = (&'e str, EntryType, &'e str);

    /// Writes headers as they are given, which no library would.
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
        let mut taken = Vec::new();
        read::<TarballError>(file, |path, member| {
            taken.push(match member {
                Member::Directory => format!("{path}/"),
                Member::File { bytes, executable, content, .. } => {
                    let length = io::copy(content, &mut io::sink())?;
                    assert_eq!(length, bytes);
                    format!("{path} {bytes} {executable}")
                }
                Member::Link(target) => format!("{path} -> {target}"),
                Member::SameAs(other) => format!("{path} = {other}"),
            });
            Ok(())
        })?;
        Ok(taken)
    }

    #[test]
    fn what_is_in_an_archive_is_told_in_order() {
        let entries = [
            ("./", EntryType::Directory, ""),
            ("./bin/", EntryType::Directory, ""),
            ("./bin/a", EntryType::Regular, "hello"),
            ("bin/b", EntryType::Symlink, "../bin/a"),
            ("c", EntryType::Link, "./bin/a"),
        ];
        let taken = unpack(&archive(&entries)).unwrap();
        assert_eq!(taken, ["bin/", "bin/a 5 true", "bin/b -> ../bin/a", "c = bin/a"]);
    }

    #[test]
    fn what_leads_out_is_refused() {
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

    /// A header of an extension, with as much behind it as it says, and no more than that is made.
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

    /// What `archive` makes, without its compression.
    fn plain(entries: &[Entry<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        MultiGzDecoder::new(&archive(entries)[..]).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn names_come_in_extensions_too() {
        let long = ["a"; 150].join("/");
        let pax = |key: &str, value: &str| {
            let length = key.len() + value.len() + 3;
            let digits = if length + 3 > 99 { 3 } else { 2 };
            format!("{} {key}={value}\n", length + digits).into_bytes()
        };
        let file = plain(&[("x", EntryType::Regular, "hello")]);
        for (extension, size) in [(pax("path", &long), 5), (pax("size", "5"), 5)] {
            let header = extended(EntryType::XHeader, extension.len() as u64, &extension);
            let taken = unpack(&gzipped(&[&header, &file])).unwrap();
            assert!(taken[0].ends_with(&format!(" {size} true")), "{taken:?}");
        }
        let header = extended(EntryType::GNULongName, long.len() as u64 + 1, long.as_bytes());
        let taken = unpack(&gzipped(&[&header, &file])).unwrap();
        assert_eq!(taken, [format!("{long} 5 true")]);
        // They are bound to the same rules.
        let up = extended(EntryType::GNULongName, 5, b"../x\0");
        let other = extended(EntryType::XHeader, 9, b"9 size=6\n");
        for header in [up, other] {
            let error = unpack(&gzipped(&[&header, &file])).unwrap_err();
            assert!(matches!(error, TarballError::Entry { .. }), "{error}");
        }
    }

    #[test]
    fn what_would_take_memory_is_refused_before_it_does() {
        for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
            // By what it says, whatever comes behind it.
            let header = extended(kind, 300 << 20, &[]);
            let error = unpack(&gzipped(&[&header])).unwrap_err();
            assert!(matches!(error, TarballError::Entry { .. }), "{kind:?}: {error}");
        }
        // Names that are each as long as may be.
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
    fn what_is_damaged_is_refused() {
        let whole = archive(&[("a", EntryType::Regular, "hello")]);
        for bytes in [&b"hello"[..], &whole[..whole.len() / 2], &whole[..whole.len() - 4]] {
            assert!(matches!(unpack(bytes), Err(TarballError::Damaged(_))), "{}", bytes.len());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(mut bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = unpack(&bytes);
            // Behind gzip as well.
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
