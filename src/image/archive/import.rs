//! Imports the image of an archive into a store.
//!
//! The parts are written to unnamed files, which the kernel frees if the import is interrupted.
//! Only after the whole archive was read and verified are they linked into a directory that the
//! next build or collection would remove, and published from there.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use mayfly_tree::DiskQuota;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use super::read::{ArchiveHeader, ArchiveReader, PartReader, at_end, decompress};
use super::{CHUNK, TransferProgress, total_size};
use crate::build::Workspace;
use crate::error::ImageError;
use crate::hash;
use crate::manifest::Part;
use crate::signature::{SIGNATURE, Trust};
use crate::store::{Candidate, Image, MANIFEST, Store, write_read_only};
use mayfly_host::memory;

/// The unit of holes in the files: a block of common file systems.
const HOLE_SIZE: usize = 4096;

impl Store {
    /// Imports the image of an archive and makes it the current build of its name. `from` names the
    /// archive in messages.
    ///
    /// # Errors
    ///
    /// The archive is invalid, or lacks a signature that `trust` accepts. The store is unchanged.
    pub fn import(
        &self,
        input: impl Read,
        from: &Path,
        trust: &Trust,
        progress: &mut TransferProgress<'_>,
    ) -> Result<Image, ImageError> {
        let refused = |source| ImageError::Archive { path: from.to_owned(), source };
        let _bound =
            memory::limit_data(memory::UNPACK_ALLOWANCE).map_err(ImageError::read(from))?;
        let archive = decompress(input).map_err(refused)?;
        let (header, mut reader) = ArchiveReader::open(archive).map_err(refused)?;
        let digest = hash::of_bytes(&header.bytes);
        // Checked before anything is written.
        let signed = trust.check(&header.bytes, header.signature.as_deref());
        let signed = signed.map_err(|source| {
            let image = format!("{}@{}", header.manifest.name, digest.short());
            ImageError::Untrusted { image, source }
        })?;
        drop(self.lock()?);
        let disk = File::open(self.path()).map_err(ImageError::write(self.path()))?;
        // An archive is a fraction of the size of its image.
        let mut quota =
            DiskQuota::new(&disk, u64::MAX).map_err(ImageError::disk_full(self.path()))?;
        let (mut done, total_size) = (0, total_size(&header.manifest));
        let mut parts = Vec::new();
        for part in header.manifest.parts.all() {
            let body = reader.part(part).map_err(refused)?;
            let file = self.receive(body, part, from, &mut quota, &mut |bytes| {
                done += bytes;
                progress(done, total_size);
            })?;
            parts.push((part, file));
        }
        reader.end().and_then(at_end).map_err(refused)?;
        let candidate = self.publish_parts(&header, digest, &parts)?;
        let image = self.promote(&candidate)?;
        match header.signature {
            // The image may already have a signature. An unchecked one does not replace it.
            Some(signature) if signed.is_some() || image.signature()?.is_none() => {
                self.put_signature(&image, &signature)?;
            }
            _ => {}
        }
        Ok(image)
    }

    /// Writes a part to an unnamed file, with holes for zero blocks.
    fn receive(
        &self,
        mut body: PartReader<'_, impl Read>,
        part: &Part,
        from: &Path,
        quota: &mut DiskQuota,
        progress: &mut dyn FnMut(u64),
    ) -> Result<File, ImageError> {
        let write_error = || ImageError::write(self.path());
        let file = File::options()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .mode(0o600)
            .open(self.path())
            .and_then(|file| file.set_len(part.bytes).map(|()| file))
            .map_err(write_error())?;
        let (mut chunk, mut at) = (vec![0; CHUNK], 0);
        loop {
            let read = body.read(&mut chunk);
            let length =
                read.map_err(|source| ImageError::Archive { path: from.to_owned(), source })?;
            if length == 0 {
                break;
            }
            quota.reserve_bytes(length as u64).map_err(ImageError::disk_full(self.path()))?;
            write_nonzero(&file, &chunk[..length], at).map_err(write_error())?;
            at += length as u64;
            progress(length as u64);
        }
        file.set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| file.sync_all())
            .map_err(write_error())?;
        Ok(file)
    }

    fn publish_parts(
        &self,
        header: &ArchiveHeader,
        digest: crate::Digest,
        parts: &[(&Part, File)],
    ) -> Result<Candidate, ImageError> {
        let workspace = Workspace::claim(self)?;
        let directory = workspace.image();
        let published = link_parts(&directory, header, parts)
            .map_err(ImageError::write(&directory))
            .and_then(|()| self.publish(&directory, &header.manifest.name, digest));
        let removed = workspace.discard();
        let candidate = published?;
        removed?;
        Ok(candidate)
    }
}

fn link_parts(directory: &Path, header: &ArchiveHeader, parts: &[(&Part, File)]) -> io::Result<()> {
    for (part, file) in parts {
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        let name = directory.join(part.file.as_str());
        linkat(AT_FDCWD, unnamed.as_str(), AT_FDCWD, &name, AtFlags::AT_SYMLINK_FOLLOW)?;
    }
    write_read_only(&directory.join(MANIFEST), &header.bytes)?;
    if let Some(signature) = &header.signature {
        write_read_only(&directory.join(SIGNATURE), signature)?;
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755))?;
    File::open(directory)?.sync_all()
}

/// Writes the non-zero blocks of a chunk of a new file.
fn write_nonzero(file: &File, chunk: &[u8], at: u64) -> io::Result<()> {
    for (index, block) in chunk.chunks(HOLE_SIZE).enumerate() {
        if *block != [0; HOLE_SIZE][..block.len()] {
            file.write_all_at(block, at + (index * HOLE_SIZE) as u64)?;
        }
    }
    Ok(())
}
