//! Unpacks a tree that was copied into the machine.
//!
//! An archive that starts with an entry for `.` is a directory: its contents go into the
//! destination. Any other archive is a single file of the destination's name, which goes beside
//! whatever else is in that directory.

use std::fs::{self, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, Entry};

/// Unpacks `archive` at `destination`. Directories that are missing on the way there are made.
/// All that is made belongs to `owner`, user and group, or to the caller if there is none.
pub(crate) fn unpack(
    archive: impl Read,
    destination: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    archive.set_preserve_permissions(true);
    let mut entries = archive.entries()?;
    let Some(first) = entries.next() else {
        return Err(invalid("the archive is empty"));
    };
    let mut first = first?;
    if !relative(&first)?.as_os_str().is_empty() {
        return unpack_file(&mut first, destination, owner);
    }
    if create_missing(destination, owner)? {
        let mode = first.header().mode()?;
        fs::set_permissions(destination, Permissions::from_mode(mode & 0o7777))?;
    }
    for entry in entries {
        let mut entry = entry?;
        let path = relative(&entry)?;
        place(&mut entry, destination, &path, owner)?;
    }
    Ok(())
}

fn unpack_file(
    entry: &mut Entry<'_, impl Read>,
    destination: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let path = relative(entry)?;
    let (Some(parent), Some(name)) = (destination.parent(), destination.file_name()) else {
        return Err(invalid("a file can't take the place of a directory"));
    };
    if path.as_os_str() != name {
        return Err(invalid("the archive holds something else than the file"));
    }
    create_missing(parent, owner)?;
    place(entry, parent, &path, owner)
}

/// Puts one entry where it belongs below `base`.
fn place(
    entry: &mut Entry<'_, impl Read>,
    base: &Path,
    path: &Path,
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    // Refuses links that lead out of `base`, too.
    if !entry.unpack_in(base)? {
        return Err(invalid("an entry leads out of the archive"));
    }
    own(&base.join(path), owner)
}

/// The path of an entry, without `.` in it.
fn relative(entry: &Entry<'_, impl Read>) -> io::Result<PathBuf> {
    let path = entry.path()?;
    path.components()
        .filter(|component| *component != Component::CurDir)
        .map(|component| match component {
            Component::Normal(name) => Ok(name),
            _ => Err(invalid("an entry leads out of the archive")),
        })
        .collect()
}

/// Makes a directory and those above it that are missing. Tells whether it was missing itself.
fn create_missing(path: &Path, owner: Option<(u32, u32)>) -> io::Result<bool> {
    let missing: Vec<_> = path.ancestors().take_while(|path| !path.exists()).collect();
    for path in missing.iter().rev() {
        fs::create_dir(path)?;
        own(path, owner)?;
    }
    Ok(!missing.is_empty())
}

fn own(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(user, group)| lchown(path, Some(user), Some(group)))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
