//! Image archives: an image as one file, for transfer to another host.
//!
//! A tar archive, compressed with zstd, with exactly this content:
//!
//! ```text
//! manifest.json            first, so that it limits everything after it
//! manifest.json.minisig    if the image is signed
//! kernel, initramfs, …     each part, in the manifest's order
//! ```
//!
//! Any tar can unpack it. The reader here accepts only what [`write`] produces: it takes the length
//! from the headers of the manifest and the signature; all other headers are compared byte by byte
//! with the expected ones. No name of an archive becomes a path, and no entry can appear twice.
//!
//! This module handles bytes; the store decides where files go.

mod import;
mod read;
mod write;

use std::io;

use super::manifest::{Manifest, Part};
use super::name::Digest;

pub use read::check;

/// A callback for progress: the bytes transferred so far, and the total.
pub type TransferProgress<'a> = dyn FnMut(u64, u64) + 'a;

/// The size of a tar header, and the unit that files are padded to.
const BLOCK: usize = 512;

/// The length of the end of a tar archive: two empty blocks.
const END: usize = 2 * BLOCK;

/// The largest manifest, in bytes. One with 2,000 packages has 300,000. Parsed, JSON can take some 35
/// times its size in memory, which is less than the process may map.
const MAX_MANIFEST: u64 = 2 << 20;

/// The largest part, in bytes: the maximum size of the builder's root file systems.
const MAX_PART: u64 = 1 << 40;

/// The size of one read or write.
const CHUNK: usize = 1 << 20;

/// The largest window of the decompressor, as a power of two: 8 MiB, as the compressor's level
/// needs.
const MAX_WINDOW_LOG: u32 = 23;

/// The reason why an archive is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It does not begin with a manifest.
    #[error("not a Mayfly image archive: it does not begin with a manifest")]
    NotAnArchive,
    /// Its manifest can't be parsed.
    #[error("can't parse its manifest")]
    Manifest(#[source] serde_json::Error),
    /// The manifest lists a file twice or in the wrong place.
    #[error("its manifest lists the part {0} twice or in the wrong place")]
    WrongPart(&'static str),
    /// An entry exceeds its size limit.
    #[error("its {name} is too large: {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// The entry.
        name: &'static str,
        /// Its length in bytes.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// An unexpected entry.
    #[error("unexpected entry: expected {expected}, found {found}")]
    Entry {
        /// The expected entry.
        expected: &'static str,
        /// The entry that was found.
        found: String,
    },
    /// A part does not match its digest in the manifest.
    #[error("its {name} has changed since the export: SHA-256 {found}, expected {expected}")]
    Changed {
        /// The part.
        name: &'static str,
        /// The digest in the manifest.
        expected: Digest,
        /// The actual digest.
        found: Digest,
    },
    /// It ends too early.
    #[error("the archive is truncated")]
    Truncated,
    /// It has data after its end.
    #[error("unexpected data after its end")]
    Trailing,
    /// It can't be read or decompressed.
    #[error("the archive can't be read")]
    Unreadable(#[source] io::Error),
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Truncated
        } else {
            Self::Unreadable(error)
        }
    }
}

/// Returns the tar header of a file; it depends on the name and length only.
fn header(name: &str, bytes: u64) -> io::Result<[u8; BLOCK]> {
    let mut header = tar::Header::new_ustar();
    header.set_path(name)?;
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o444);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    Ok(*header.as_bytes())
}

/// Returns the number of padding bytes after a file.
fn padding(bytes: u64) -> usize {
    let block = BLOCK as u64;
    // Less than a block.
    usize::try_from((block - bytes % block) % block).unwrap_or_default()
}

/// Returns the total size of all parts.
fn total_size(manifest: &Manifest) -> u64 {
    manifest.parts.all().iter().map(|part| part.bytes).fold(0, u64::saturating_add)
}

/// Checks that each part of a manifest is in its place and within the size limit.
fn check_parts(manifest: &Manifest) -> Result<(), ArchiveError> {
    let parts = manifest.parts.all();
    for (index, part) in parts.iter().enumerate() {
        let name = part.file.as_str();
        if parts[..index].iter().any(|other: &&Part| other.file == part.file) {
            return Err(ArchiveError::WrongPart(name));
        }
        if part.bytes > MAX_PART {
            let (bytes, limit) = (part.bytes, MAX_PART);
            return Err(ArchiveError::TooLong { name, bytes, limit });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
