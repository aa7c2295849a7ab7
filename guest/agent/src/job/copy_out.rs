//! Packs a tree that is to be copied out of the machine.
//!
//! The archive has the shape that [`super::copy_in`] takes: a directory is the entry `.` and what
//! is in it, anything else is one entry of its own name. No link is followed; sockets, pipes and
//! devices are left out.

use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mayfly_protocol::flow::MAX_CHUNK;
use tar::{Builder, Header};

/// Packs `path` into `to`.
pub(crate) fn pack(path: &Path, to: impl Write) -> io::Result<()> {
    let mut builder = Builder::new(BufWriter::with_capacity(MAX_CHUNK, to));
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        pack_tree(&mut builder, path, &metadata)?;
    } else {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        pack_entry(&mut builder, path, Path::new(name), &metadata)?;
    }
    builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.flush()
}

fn pack_tree(
    builder: &mut Builder<impl Write>,
    root: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    pack_entry(builder, root, Path::new("."), metadata)?;
    // Directories whose contents are still to be packed, relative to the root.
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let path = directory.join(entry?.file_name());
            let full = root.join(&path);
            let metadata = fs::symlink_metadata(&full)?;
            pack_entry(builder, &full, &path, &metadata)?;
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

fn pack_entry(
    builder: &mut Builder<impl Write>,
    full: &Path,
    name: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    if metadata.is_symlink() {
        header.set_size(0);
        builder.append_link(&mut header, name, fs::read_link(full)?)
    } else if metadata.is_dir() {
        header.set_size(0);
        builder.append_data(&mut header, name, io::empty())
    } else if metadata.is_file() {
        header.set_size(metadata.size());
        // Exactly what the header says, whatever the file does meanwhile.
        let bytes = File::open(full)?.chain(io::repeat(0)).take(metadata.size());
        builder.append_data(&mut header, name, bytes)
    } else {
        Ok(())
    }
}
