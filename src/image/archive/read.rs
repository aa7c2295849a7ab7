//! Reads an archive, from any source, and believes nothing.

use std::io::{BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::{
    ArchiveError, BLOCK, END, LARGEST_MANIFEST, LARGEST_WINDOW, check_parts, header, padding,
};
use crate::image::hash;
use crate::image::manifest::{Manifest, Part};
use crate::image::name::Digest;
use crate::image::signature::{LONGEST, SIGNATURE};
use crate::image::store::MANIFEST;

/// An archive without its compression, read as far as its parts.
pub(super) struct Reader<R> {
    input: R,
    /// The header of the first part, which was read to see whether it is that of a signature.
    ahead: Option<[u8; BLOCK]>,
}

/// What an archive says of itself.
pub(super) struct Opening {
    pub(super) manifest: Manifest,
    /// The manifest's bytes, as they are signed.
    pub(super) bytes: Vec<u8>,
    /// The bytes of its signature, whatever they are worth.
    pub(super) signature: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads as far as the first part.
    pub(super) fn open(input: R) -> Result<(Opening, Self), ArchiveError> {
        let mut reader = Self { input, ahead: None };
        let block = reader.block()?;
        let Some(length) = length_if(&block, MANIFEST) else {
            return Err(ArchiveError::NoArchive);
        };
        let bytes = reader.short(MANIFEST, length, LARGEST_MANIFEST)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(ArchiveError::Manifest)?;
        check_parts(&manifest)?;
        let next = reader.block()?;
        let signature = if let Some(length) = length_if(&next, SIGNATURE) {
            Some(reader.short(SIGNATURE, length, LONGEST)?)
        } else {
            reader.ahead = Some(next);
            None
        };
        Ok((Opening { manifest, bytes, signature }, reader))
    }

    /// The part that must come now.
    pub(super) fn part<'a>(&'a mut self, part: &'a Part) -> Result<Body<'a, R>, ArchiveError> {
        let block = match self.ahead.take() {
            Some(block) => block,
            None => self.block()?,
        };
        let name = part.file.as_str();
        if block != header(name, part.bytes)? {
            return Err(ArchiveError::Entry { expected: name, found: named(&block) });
        }
        Ok(Body { reader: self, part, left: part.bytes, hasher: Some(Sha256::new()) })
    }

    /// What comes after the last part must be the end of a tar archive, and of the input.
    pub(super) fn end(mut self) -> Result<R, ArchiveError> {
        let mut end = [1; END];
        self.input.read_exact(&mut end)?;
        if end != [0; END] || self.input.read(&mut [0])? != 0 {
            return Err(ArchiveError::Trailing);
        }
        Ok(self.input)
    }

    fn block(&mut self) -> Result<[u8; BLOCK], ArchiveError> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block)?;
        Ok(block)
    }

    /// A file that is kept in memory, whose header was read.
    fn short(
        &mut self,
        name: &'static str,
        bytes: u64,
        most: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        if bytes > most {
            return Err(ArchiveError::TooLong { name, bytes, most });
        }
        let mut file = Vec::new();
        (&mut self.input).take(bytes).read_to_end(&mut file)?;
        if (file.len() as u64) < bytes {
            return Err(ArchiveError::Truncated);
        }
        self.padding(name, bytes)?;
        Ok(file)
    }

    fn padding(&mut self, name: &'static str, bytes: u64) -> Result<(), ArchiveError> {
        let mut rest = [1; BLOCK];
        let rest = &mut rest[..padding(bytes)];
        self.input.read_exact(rest)?;
        if rest.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(ArchiveError::Entry { expected: "nothing", found: format!("something after {name}") })
    }
}

/// The bytes of a part, as they come.
pub(super) struct Body<'a, R> {
    reader: &'a mut Reader<R>,
    part: &'a Part,
    left: u64,
    /// None once the digest was compared.
    hasher: Option<Sha256>,
}

impl<R: Read> Body<'_, R> {
    /// Fills a piece, or as much of it as is left. Zero bytes are the end, and then they were all
    /// what the manifest says.
    pub(super) fn read(&mut self, piece: &mut [u8]) -> Result<usize, ArchiveError> {
        let length = usize::try_from(self.left).unwrap_or(usize::MAX).min(piece.len());
        let piece = &mut piece[..length];
        self.reader.input.read_exact(piece)?;
        self.left -= length as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&*piece);
        }
        if length == 0
            && let Some(hasher) = self.hasher.take()
        {
            let (name, expected) = (self.part.file.as_str(), &self.part.sha256);
            self.reader.padding(name, self.part.bytes)?;
            let found = Digest::from_bytes(&hasher.finalize());
            if found != *expected {
                let expected = expected.clone();
                return Err(ArchiveError::Changed { name, expected, found });
            }
        }
        Ok(length)
    }
}

/// The length in a header, if it is that of a file called `name` as this program writes it.
fn length_if(block: &[u8; BLOCK], name: &str) -> Option<u64> {
    let length = tar::Header::from_byte_slice(block).entry_size().ok()?;
    (header(name, length).ok()? == *block).then_some(length)
}

/// What a header is called, for a message.
fn named(block: &[u8; BLOCK]) -> String {
    if *block == [0; BLOCK] {
        return "the end".to_owned();
    }
    let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    format!("{:?}, or that with other properties", String::from_utf8_lossy(name))
}

/// An archive without its compression.
pub(super) type Decompressed<'a, R> = zstd::Decoder<'a, BufReader<R>>;

/// Takes the compression off. One frame is an archive; what follows is found by [`at_end`].
pub(super) fn decompress<'a, R: Read>(input: R) -> Result<Decompressed<'a, R>, ArchiveError> {
    let mut decoder = zstd::Decoder::with_buffer(BufReader::new(input))?;
    decoder.window_log_max(LARGEST_WINDOW)?;
    Ok(decoder.single_frame())
}

/// Nothing may follow after the compressed archive.
pub(super) fn at_end<R: Read>(decompressed: Decompressed<'_, R>) -> Result<(), ArchiveError> {
    if decompressed.finish().fill_buf()?.is_empty() {
        return Ok(());
    }
    Err(ArchiveError::Trailing)
}

/// Reads a whole archive without its compression, as an import does: the digest of the image that
/// it is. What fuzzing calls.
///
/// # Errors
///
/// It is none.
pub fn check(input: &[u8]) -> Result<Digest, ArchiveError> {
    let (opening, mut reader) = Reader::open(input)?;
    let mut piece = vec![0; 4096];
    for part in opening.manifest.parts.all() {
        let mut body = reader.part(part)?;
        while body.read(&mut piece)? > 0 {}
    }
    reader.end()?;
    Ok(hash::of_bytes(&opening.bytes))
}
