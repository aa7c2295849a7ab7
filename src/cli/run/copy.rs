//! Trees copied in and out, as tar archives through pipes.
//!
//! What comes out of a microVM was made by hostile code. It is unpacked on a thread that the
//! kernel lets write below the destination only (Landlock), beside the archive library's own
//! checks; devices, sockets and set-user-id bits are not taken.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};
use std::thread::{self, JoinHandle};

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr,
};
use tar::{Archive, Builder, Entry, EntryType};

/// A thread that packs or unpacks, and ends with its pipe.
pub(super) type Copying = JoinHandle<io::Result<()>>;

/// The newest Landlock version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;

/// Packs `source` for `destination` in a guest. Gives the end of the pipe that the archive comes
/// out of.
pub(super) fn pack(source: &Path, destination: &[u8]) -> io::Result<(PipeReader, Copying)> {
    let metadata = fs::metadata(source)?;
    let (reader, writer) = io::pipe()?;
    let source = source.to_owned();
    let name = destination.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty());
    let name = PathBuf::from(String::from_utf8_lossy(name.unwrap_or_default()).into_owned());
    let packing = thread::Builder::new().name("copy-in".to_owned()).spawn(move || {
        let mut archive = Builder::new(writer);
        archive.follow_symlinks(false);
        if metadata.is_dir() {
            archive.append_dir_all(".", &source)?;
        } else {
            archive.append_file(&name, &mut File::open(&source)?)?;
        }
        archive.finish()
    })?;
    Ok((reader, packing))
}

/// Unpacks into `destination` what goes into the pipe, of which it gives the other end. More than
/// `limit` bytes are not taken.
pub(super) fn unpack(destination: &Path, limit: u64) -> io::Result<(PipeWriter, Copying)> {
    let (reader, writer) = io::pipe()?;
    let destination = std::path::absolute(destination)?;
    let unpacking = thread::Builder::new().name("copy-out".to_owned()).spawn(move || {
        let mut archive = Archive::new(reader.take(limit));
        let result = unpack_archive(&mut archive, &destination);
        // A writer that is still writing is not to be left waiting.
        io::copy(&mut archive.into_inner(), &mut io::sink())?;
        result
    })?;
    Ok((writer, unpacking))
}

fn unpack_archive(archive: &mut Archive<impl Read>, destination: &Path) -> io::Result<()> {
    archive.set_preserve_ownerships(false);
    archive.set_preserve_permissions(false);
    archive.set_unpack_xattrs(false);
    let mut entries = archive.entries()?;
    // The guest may have had nothing to send; it says so elsewhere.
    let Some(first) = entries.next() else { return Ok(()) };
    let mut first = first?;
    if first.path()?.components().any(|part| matches!(part, Component::Normal(_))) {
        return unpack_file(&mut first, destination);
    }
    fs::create_dir_all(destination)?;
    let destination = fs::canonicalize(destination)?;
    confine(&destination)?;
    for entry in entries {
        let mut entry = entry?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Directory | EntryType::Symlink | EntryType::Link => {
                if !entry.unpack_in(&destination)? {
                    return Err(refused(&entry, "leads out of the destination"));
                }
            }
            _ => return Err(refused(&entry, "is neither file, directory nor link")),
        }
    }
    Ok(())
}

/// A single file: takes the name that the person gave, whatever the archive calls it.
fn unpack_file(entry: &mut Entry<'_, impl Read>, destination: &Path) -> io::Result<()> {
    if entry.header().entry_type() != EntryType::Regular {
        return Err(refused(entry, "is no file"));
    }
    let path = entry.path()?.into_owned();
    let target = match (destination.is_dir(), path.file_name()) {
        (true, Some(name)) => destination.join(name),
        _ => destination.to_owned(),
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(target)?;
    io::copy(entry, &mut file)?;
    file.set_permissions(Permissions::from_mode(entry.header().mode()? & 0o777))
}

fn refused(entry: &Entry<'_, impl Read>, why: &str) -> io::Error {
    let path = entry.path().map_or_else(|_| "an entry".into(), |path| path.display().to_string());
    io::Error::other(format!("{path:?} {why}"))
}

/// Lets this thread write nowhere but below `directory`, for good.
fn confine(directory: &Path) -> io::Result<()> {
    let writing = AccessFs::from_write(LANDLOCK);
    let descriptor = PathFd::new(directory).map_err(io::Error::other)?;
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(writing)
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rule(PathBeneath::new(descriptor, writing)))
        .and_then(RulesetCreated::restrict_self)
        .map(drop)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::symlink;

    fn header(path: &str, kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_ustar();
        // Written by hand: the library refuses to build what a hostile guest would send.
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6755);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        builder.append(&header("./", EntryType::Directory, 0), io::empty()).unwrap();
        for (path, kind, content) in entries {
            let data = if *kind == EntryType::Regular { content.as_bytes() } else { b"" };
            let mut header = header(path, *kind, data.len() as u64);
            if *kind != EntryType::Regular {
                header.set_link_name_literal(content).unwrap();
                header.set_cksum();
            }
            builder.append(&header, data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpack_bytes(bytes: &[u8], destination: &Path) -> io::Result<()> {
        let (mut writer, unpacking) = unpack(destination, 1 << 20).unwrap();
        writer.write_all(bytes).unwrap();
        drop(writer);
        unpacking.join().unwrap()
    }

    #[test]
    fn a_tree_survives_the_way_in_and_out() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::create_dir_all(source.join("deep/er")).unwrap();
        fs::write(source.join("deep/er/file"), "content").unwrap();
        symlink("deep/er/file", source.join("link")).unwrap();
        let (mut reader, packing) = pack(&source, b"/somewhere").unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        packing.join().unwrap().unwrap();
        let destination = directory.path().join("destination");
        unpack_bytes(&bytes, &destination).unwrap();
        assert_eq!(fs::read_to_string(destination.join("link")).unwrap(), "content");
    }

    #[test]
    fn a_single_file_takes_the_name_it_is_given() {
        let directory = tempfile::tempdir().unwrap();
        let source = directory.path().join("source");
        fs::write(&source, "content").unwrap();
        let (mut reader, packing) = pack(&source, b"/tmp/name").unwrap();
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        packing.join().unwrap().unwrap();
        unpack_bytes(&bytes, &directory.path().join("other")).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("other")).unwrap(), "content");
        unpack_bytes(&bytes, directory.path()).unwrap();
        assert_eq!(fs::read_to_string(directory.path().join("name")).unwrap(), "content");
    }

    #[test]
    fn nothing_is_written_outside_the_destination() {
        for entries in [
            vec![("../escaped", EntryType::Regular, "x")],
            vec![("a/../../escaped", EntryType::Regular, "x")],
            vec![("link", EntryType::Symlink, ".."), ("link/escaped", EntryType::Regular, "x")],
            vec![("link", EntryType::Symlink, "../escaped"), ("link", EntryType::Regular, "x")],
            vec![("hard", EntryType::Link, "../victim"), ("hard", EntryType::Regular, "x")],
            vec![("device", EntryType::Char, "")],
            vec![("pipe", EntryType::Fifo, "")],
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join("victim"), "as it was").unwrap();
            let destination = directory.path().join("destination");
            // Whether it is refused or made harmless: nothing beside the destination changes.
            let result = unpack_bytes(&archive(&entries), &destination);
            let beside: Vec<_> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .filter(|name| name != "destination" && name != "victim")
                .collect();
            assert!(beside.is_empty(), "{entries:?}: {beside:?}, {result:?}");
            let victim = fs::read_to_string(directory.path().join("victim")).unwrap();
            assert_eq!(victim, "as it was", "{entries:?}");
        }
    }

    #[test]
    fn set_user_id_bits_are_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = archive(&[("program", EntryType::Regular, "x")]);
        unpack_bytes(&bytes, directory.path()).unwrap();
        let mode = fs::metadata(directory.path().join("program")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0, "{mode:o}");
    }

    #[test]
    fn more_than_the_limit_is_not_taken() {
        let directory = tempfile::tempdir().unwrap();
        let content = "x".repeat(1 << 21);
        let bytes = archive(&[("large", EntryType::Regular, &content)]);
        let (mut writer, unpacking) = unpack(directory.path(), 1 << 20).unwrap();
        // The pipe breaks once the limit is reached.
        let _ = writer.write_all(&bytes);
        drop(writer);
        assert!(unpacking.join().unwrap().is_err());
        let taken = fs::metadata(directory.path().join("large")).unwrap().len();
        assert!(taken <= 1 << 20, "{taken} bytes");
    }
}
