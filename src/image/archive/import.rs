//! Puts the image of an archive into a store.
//!
//! The parts are written to files without a name, which the kernel frees however this ends; only
//! when all of the archive was read and found good do they get names, in a directory that the
//! next build or collection would remove, and are published from there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use mayfly_tree::Room;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use super::read::{Body, Opening, Reader, at_end, decompress};
use super::{Moved, PIECE, total};
use crate::host::memory;
use crate::image::build::Workspace;
use crate::image::error::ImageError;
use crate::image::hash;
use crate::image::manifest::Part;
use crate::image::signature::{SIGNATURE, Trust};
use crate::image::store::{Candidate, Image, MANIFEST, Store, write_sealed};

/// What is not written where it is zero: a block of the file systems that images lie on.
const HOLE: usize = 4096;

impl Store {
    /// Makes the image of an archive, called `from` in messages, one of the store's and lets its
    /// name mean it.
    ///
    /// # Errors
    ///
    /// The archive is none, or is not signed as `trust` wants it; the store is as before.
    pub fn import(
        &self,
        input: impl Read,
        from: &Path,
        trust: &Trust,
        moved: &mut Moved<'_>,
    ) -> Result<Image, ImageError> {
        let refused = |source| ImageError::Archive { path: from.to_owned(), source };
        let _bound = memory::bound(memory::FOR_UNPACKING).map_err(ImageError::read(from))?;
        let archive = decompress(input).map_err(refused)?;
        let (opening, mut reader) = Reader::open(archive).map_err(refused)?;
        let digest = hash::of_bytes(&opening.bytes);
        // Before anything is written.
        let signed = trust.check(&opening.bytes, opening.signature.as_deref());
        let signed = signed.map_err(|source| {
            let image = format!("{}@{}", opening.manifest.name, digest.short());
            ImageError::Untrusted { image, source }
        })?;
        drop(self.lock()?);
        let disk = File::open(self.path()).map_err(ImageError::write(self.path()))?;
        // An archive takes a fraction of what it becomes.
        let mut room = Room::on(&disk, u64::MAX).map_err(ImageError::no_room(self.path()))?;
        let (mut done, total) = (0, total(&opening.manifest));
        let mut parts = Vec::new();
        for part in opening.manifest.parts.all() {
            let body = reader.part(part).map_err(refused)?;
            let file = self.receive(body, part, from, &mut room, &mut |bytes| {
                done += bytes;
                moved(done, total);
            })?;
            parts.push((part, file));
        }
        reader.end().and_then(at_end).map_err(refused)?;
        let candidate = self.publish_parts(&opening, digest, &parts)?;
        let image = self.adopt(&candidate)?;
        match opening.signature {
            // Of an image that was there already. A signature that nobody checked does not take
            // the place of another.
            Some(signature) if signed.is_some() || image.signature()?.is_none() => {
                self.put_signature(&image, &signature)?;
            }
            _ => {}
        }
        Ok(image)
    }

    /// Writes a part to a file without a name, with holes where it is zero.
    fn receive(
        &self,
        mut body: Body<'_, impl Read>,
        part: &Part,
        from: &Path,
        room: &mut Room,
        moved: &mut dyn FnMut(u64),
    ) -> Result<File, ImageError> {
        let unwritten = || ImageError::write(self.path());
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(self.path())
            .and_then(|file| file.set_len(part.bytes).map(|()| file))
            .map_err(unwritten())?;
        let (mut piece, mut at) = (vec![0; PIECE], 0);
        loop {
            let read = body.read(&mut piece);
            let length =
                read.map_err(|source| ImageError::Archive { path: from.to_owned(), source })?;
            if length == 0 {
                break;
            }
            room.write(length as u64).map_err(ImageError::no_room(self.path()))?;
            write_but_zeros(&file, &piece[..length], at).map_err(unwritten())?;
            at += length as u64;
            moved(length as u64);
        }
        file.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .map_err(unwritten())?;
        Ok(file)
    }

    fn publish_parts(
        &self,
        opening: &Opening,
        digest: crate::image::Digest,
        parts: &[(&Part, File)],
    ) -> Result<Candidate, ImageError> {
        let workspace = Workspace::claim(self)?;
        let directory = workspace.image();
        let published = name_parts(&directory, opening, parts)
            .map_err(ImageError::write(&directory))
            .and_then(|()| self.publish(&directory, &opening.manifest.name, digest));
        let removed = workspace.discard();
        let candidate = published?;
        removed?;
        Ok(candidate)
    }
}

fn name_parts(directory: &Path, opening: &Opening, parts: &[(&Part, File)]) -> io::Result<()> {
    for (part, file) in parts {
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = directory.join(part.file.as_str());
        linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)?;
    }
    write_sealed(&directory.join(MANIFEST), &opening.bytes)?;
    if let Some(signature) = &opening.signature {
        write_sealed(&directory.join(SIGNATURE), signature)?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    File::open(directory)?.sync_all()
}

/// Writes what is not zero of a piece of a new file.
fn write_but_zeros(file: &File, piece: &[u8], at: u64) -> io::Result<()> {
    for (index, block) in piece.chunks(HOLE).enumerate() {
        if *block != [0; HOLE][..block.len()] {
            file.write_all_at(block, at + (index * HOLE) as u64)?;
        }
    }
    Ok(())
}
