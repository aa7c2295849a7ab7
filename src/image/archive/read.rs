//! Reads archives from untrusted sources.

use std::io::{BufRead, BufReader, Read};

use sha2::{Digest as _, Sha256};

use super::{ArchiveError, BLOCK, END, MAX_MANIFEST, MAX_WINDOW_LOG, check_parts, header, padding};
use crate::hash;
use crate::manifest::{Manifest, Part};
use crate::name::Digest;
use crate::signature::{MAX_FILE_SIZE, SIGNATURE};
use crate::store::MANIFEST;

/// A reader of an uncompressed archive, positioned at its parts.
pub(super) struct ArchiveReader<R> {
    input: R,
    /// The header of the first part, which was read to check for a signature.
    peeked: Option<[u8; BLOCK]>,
}

/// The entries of an archive before its parts.
pub(super) struct ArchiveHeader {
    pub(super) manifest: Manifest,
    /// The manifest's bytes, as they are signed.
    pub(super) bytes: Vec<u8>,
    /// The bytes of its signature, unchecked.
    pub(super) signature: Option<Vec<u8>>,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads up to the first part.
    pub(super) fn open(input: R) -> Result<(ArchiveHeader, Self), ArchiveError> {
        let mut reader = Self { input, peeked: None };
        let block = reader.block()?;
        let Some(length) = length_if_named(&block, MANIFEST) else {
            return Err(ArchiveError::NotAnArchive);
        };
        let bytes = reader.small_file(MANIFEST, length, MAX_MANIFEST)?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(ArchiveError::Manifest)?;
        check_parts(&manifest)?;
        let next = reader.block()?;
        let signature = if let Some(length) = length_if_named(&next, SIGNATURE) {
            Some(reader.small_file(SIGNATURE, length, MAX_FILE_SIZE)?)
        } else {
            reader.peeked = Some(next);
            None
        };
        Ok((ArchiveHeader { manifest, bytes, signature }, reader))
    }

    /// Reads the header of the next part, which must be `part`.
    pub(super) fn part<'a>(
        &'a mut self,
        part: &'a Part,
    ) -> Result<PartReader<'a, R>, ArchiveError> {
        let block = match self.peeked.take() {
            Some(block) => block,
            None => self.block()?,
        };
        let name = part.file.as_str();
        if block != header(name, part.bytes)? {
            return Err(ArchiveError::Entry { expected: name, found: describe(&block) });
        }
        Ok(PartReader { reader: self, part, remaining: part.bytes, hasher: Some(Sha256::new()) })
    }

    /// Checks that the end of the tar archive and of the input follows.
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

    /// Reads a small file into memory, after its header.
    fn small_file(
        &mut self,
        name: &'static str,
        bytes: u64,
        limit: u64,
    ) -> Result<Vec<u8>, ArchiveError> {
        if bytes > limit {
            return Err(ArchiveError::TooLong { name, bytes, limit });
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

/// A reader of the bytes of one part.
pub(super) struct PartReader<'a, R> {
    reader: &'a mut ArchiveReader<R>,
    part: &'a Part,
    remaining: u64,
    /// `None` once the digest is verified.
    hasher: Option<Sha256>,
}

impl<R: Read> PartReader<'_, R> {
    /// Fills a chunk, or as much of it as remains of the part. Returns 0 at the end, when the
    /// digest has been verified.
    pub(super) fn read(&mut self, chunk: &mut [u8]) -> Result<usize, ArchiveError> {
        let length = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(chunk.len());
        let chunk = &mut chunk[..length];
        self.reader.input.read_exact(chunk)?;
        self.remaining -= length as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&*chunk);
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

/// Returns the length in a header if it is exactly the header of a file called `name`.
fn length_if_named(block: &[u8; BLOCK], name: &str) -> Option<u64> {
    let length = tar::Header::from_byte_slice(block).entry_size().ok()?;
    (header(name, length).ok()? == *block).then_some(length)
}

/// Describes a header, for messages.
fn describe(block: &[u8; BLOCK]) -> String {
    if *block == [0; BLOCK] {
        return "the end".to_owned();
    }
    let name = block[..100].split(|byte| *byte == 0).next().unwrap_or_default();
    format!("{:?}, or that with other properties", String::from_utf8_lossy(name))
}

/// The decompressor of an archive.
pub(super) type Decompressed<'a, R> = zstd::Decoder<'a, BufReader<R>>;

/// Decompresses an archive, which is exactly one frame; [`at_end`] detects anything after it.
pub(super) fn decompress<'a, R: Read>(input: R) -> Result<Decompressed<'a, R>, ArchiveError> {
    let mut decoder = zstd::Decoder::with_buffer(BufReader::new(input))?;
    decoder.window_log_max(MAX_WINDOW_LOG)?;
    Ok(decoder.single_frame())
}

/// Checks that nothing follows the compressed archive.
pub(super) fn at_end<R: Read>(decompressed: Decompressed<'_, R>) -> Result<(), ArchiveError> {
    if decompressed.finish().fill_buf()?.is_empty() {
        return Ok(());
    }
    Err(ArchiveError::Trailing)
}

/// Reads a whole uncompressed archive, as an import does, and returns the digest of its image.
/// Called by the fuzzer.
///
/// # Errors
///
/// The archive is invalid.
pub fn check(input: &[u8]) -> Result<Digest, ArchiveError> {
    let (archive_header, mut reader) = ArchiveReader::open(input)?;
    let mut chunk = vec![0; 4096];
    for part in archive_header.manifest.parts.all() {
        let mut body = reader.part(part)?;
        while body.read(&mut chunk)? > 0 {}
    }
    reader.end()?;
    Ok(hash::of_bytes(&archive_header.bytes))
}
