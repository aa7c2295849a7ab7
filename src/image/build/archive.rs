//! Reads a gzipped tar archive that came from elsewhere: bounded, and nothing in it leads out of
//! the directory that it is unpacked in.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path};

use flate2::read::MultiGzDecoder;
use tar::EntryType;

/// What is refused beyond: GitHub's runner has 0.2 GB in 12,000 files, unpacked 0.7 GB.
const MOST_ENTRIES: usize = 100_000;
const MOST_BYTES: u64 = 4 << 30;
const LONGEST_PATH: usize = 1024;

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
    let mut archive = tar::Archive::new(MultiGzDecoder::new(file).take(MOST_BYTES));
    let (mut seen, mut links) = (BTreeSet::new(), BTreeSet::new());
    let entries = archive.entries().map_err(TarballError::Damaged)?;
    for (index, entry) in entries.enumerate() {
        if index == MOST_ENTRIES {
            return Err(TarballError::TooLarge.into());
        }
        let mut entry = entry.map_err(TarballError::Damaged)?;
        let Some(path) = checked_path(&entry.path_bytes())? else { continue };
        let refused = |problem| E::from(TarballError::Entry { path: path.clone(), problem });
        if parents(&path).any(|parent| links.contains(parent)) {
            return Err(refused("is behind a link"));
        }
        let kind = entry.header().entry_type();
        if !seen.insert(path.clone()) && kind != EntryType::Directory {
            return Err(refused("is there twice"));
        }
        let target = |entry: &tar::Entry<'_, _>| {
            let target = entry.link_name_bytes().unwrap_or_default();
            String::from_utf8(target.into_owned()).map_err(|_| refused("links to what is no text"))
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
    // Damage behind the last entry is damage.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TarballError::Damaged)?;
    Ok(())
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
