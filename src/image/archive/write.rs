//! Writes an image of the store as an archive.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::{END, Moved, PIECE, header, padding, total};
use crate::image::error::ImageError;
use crate::image::manifest::Part;
use crate::image::name::Digest;
use crate::image::signature::SIGNATURE;
use crate::image::store::{Image, MANIFEST, Store};

/// How hard the compressor tries. Two levels further the window grows, and with it what a reader
/// must set aside.
const LEVEL: i32 = 9;

impl Store {
    /// Writes an image to `output`, called `to` in messages, with its signature if it has one. The
    /// same image makes the same archive.
    ///
    /// # Errors
    ///
    /// A part is not what was built, or something can't be read or written. What was written then
    /// is no archive: it lacks its end.
    pub fn export(
        &self,
        image: &Image,
        output: impl Write,
        to: &Path,
        moved: &mut Moved<'_>,
    ) -> Result<(), ImageError> {
        let unwritten = || ImageError::write(to);
        let mut archive = zstd::Encoder::new(output, LEVEL).map_err(unwritten())?;
        archive.include_checksum(true).map_err(unwritten())?;
        file(&mut archive, MANIFEST, &image.manifest_bytes()?).map_err(unwritten())?;
        if let Some(signature) = image.signature()? {
            file(&mut archive, SIGNATURE, &signature).map_err(unwritten())?;
        }
        let (mut done, total) = (0, total(&image.manifest));
        for part in image.manifest.parts.all() {
            part_to(&mut archive, image, part, to, &mut |bytes| {
                done += bytes;
                moved(done, total);
            })?;
        }
        archive
            .write_all(&[0; END])
            .and_then(|()| archive.finish())
            .and_then(|mut output| output.flush())
            .map_err(unwritten())
    }
}

fn file(archive: &mut impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let length = bytes.len() as u64;
    archive.write_all(&header(name, length)?)?;
    archive.write_all(bytes)?;
    archive.write_all(&[0; super::BLOCK][..padding(length)])
}

fn part_to(
    archive: &mut impl Write,
    image: &Image,
    part: &Part,
    to: &Path,
    moved: &mut dyn FnMut(u64),
) -> Result<(), ImageError> {
    let path = image.part(part.file);
    let unwritten = || ImageError::write(to);
    let header = header(part.file.as_str(), part.bytes).map_err(unwritten())?;
    archive.write_all(&header).map_err(unwritten())?;
    let file = File::open(&path).map_err(ImageError::read(&path))?;
    // A longer file shows by its digest.
    let mut input = file.take(part.bytes + 1);
    let (mut hasher, mut piece) = (Sha256::new(), vec![0; PIECE]);
    loop {
        let length = input.read(&mut piece).map_err(ImageError::read(&path))?;
        if length == 0 {
            break;
        }
        hasher.update(&piece[..length]);
        archive.write_all(&piece[..length]).map_err(unwritten())?;
        moved(length as u64);
    }
    let found = Digest::from_bytes(&hasher.finalize());
    if found != part.sha256 {
        return Err(ImageError::Changed { part: path, expected: part.sha256.clone(), found });
    }
    archive.write_all(&[0; super::BLOCK][..padding(part.bytes)]).map_err(unwritten())
}
