//! Exports an image of the store as an archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{CHUNK, END, TransferProgress, header, padding, total_size};
use crate::error::ImageError;
use crate::manifest::Part;
use crate::name::Digest;
use crate::signature::SIGNATURE;
use crate::store::{Image, MANIFEST, Store};

/// The compression level. Two levels higher, the window grows, and with it the memory that a reader
/// needs.
const LEVEL: i32 = 9;

impl Store {
    /// Writes an image with its signature, if any, to `output`; `to` names it in messages. The same
    /// image gives the same archive.
    ///
    /// # Errors
    ///
    /// A part has changed since the build, or something can't be read or written. The output is
    /// then an incomplete archive.
    pub fn export(
        &self,
        image: &Image,
        output: impl Write,
        to: &Path,
        progress: &mut TransferProgress<'_>,
    ) -> Result<(), ImageError> {
        let write_error = || ImageError::write(to);
        let mut archive = zstd::Encoder::new(output, LEVEL).map_err(write_error())?;
        archive.include_checksum(true).map_err(write_error())?;
        write_file(&mut archive, MANIFEST, &image.manifest_bytes()?).map_err(write_error())?;
        if let Some(signature) = image.signature()? {
            write_file(&mut archive, SIGNATURE, &signature).map_err(write_error())?;
        }
        let (mut done, total_size) = (0, total_size(&image.manifest));
        for part in image.manifest.parts.all() {
            write_part(&mut archive, image, part, to, &mut |bytes| {
                done += bytes;
                progress(done, total_size);
            })?;
        }
        archive
            .write_all(&[0; END])
            .and_then(|()| archive.finish())
            .and_then(|mut output| output.flush())
            .map_err(write_error())
    }
}

fn write_file(archive: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len() as u64;
    archive.write_all(&header(name, length)?)?;
    archive.write_all(bytes)?;
    archive.write_all(&[0; super::BLOCK][..padding(length)])
}

fn write_part(
    archive: &mut impl Write,
    image: &Image,
    part: &Part,
    to: &Path,
    progress: &mut dyn FnMut(u64),
) -> Result<(), ImageError> {
    let path = image.part(part.file);
    let write_error = || ImageError::write(to);
    let header = header(part.file.as_str(), part.bytes).map_err(write_error())?;
    archive.write_all(&header).map_err(write_error())?;
    let file = File::open(&path).map_err(ImageError::read(&path))?;
    // One byte more, so that the digest of a longer file differs.
    let mut input = file.take(part.bytes + 1);
    let (mut hasher, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        let length = input.read(&mut chunk).map_err(ImageError::read(&path))?;
        if length == 0 {
            break;
        }
        hasher.update(&chunk[..length]);
        archive.write_all(&chunk[..length]).map_err(write_error())?;
        progress(length as u64);
    }
    let found = Digest::from_bytes(&hasher.finalize());
    if found != part.sha256 {
        return Err(ImageError::Changed { part: path, expected: part.sha256.clone(), found });
    }
    archive.write_all(&[0; super::BLOCK][..padding(part.bytes)]).map_err(write_error())
}
