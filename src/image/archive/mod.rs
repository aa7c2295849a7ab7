//! An image as one file, to be carried to another host.
//!
//! A tar archive, compressed with zstd, of exactly this:
//!
//! ```text
//! manifest.json            first, so that it bounds everything after it
//! manifest.json.minisig    if the image is signed
//! kernel, initramfs, …     each part, in the manifest's order
//! ```
//!
//! Any tar unpacks it. What reads it here takes nothing but what [`write`] makes: of the manifest's
//! and the signature's header the length is taken, every other is foreseen, byte by byte. No name
//! of an archive becomes a path, and there is nothing in one that could be said twice.
//!
//! This folder knows bytes; where files go is the store's matter.

mod import;
mod read;
mod write;

use std::io;

use super::manifest::{Manifest, Part};
use super::name::Digest;

pub use read::check;

/// Is told how many bytes of the image were moved, and of how many.
pub type Moved<'a> = dyn FnMut(u64, u64) + 'a;

/// The bytes of a tar header, and what lengths are filled up to.
const BLOCK: usize = 512;

/// The end of a tar archive: two empty blocks.
const END: usize = 2 * BLOCK;

/// The most bytes of a manifest. One of 2,000 packages has 300,000.
const LARGEST_MANIFEST: u64 = 16 << 20;

/// The most bytes of a part: what the builder's root file systems can grow to.
const LARGEST_PART: u64 = 1 << 40;

/// How much of a part is moved at a time.
const PIECE: usize = 1 << 20;

/// What the decompressor may set aside: 8 MiB are what the compressor's level needs.
const LARGEST_WINDOW: u32 = 23;

/// Why an archive is none that can be trusted to be an image.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It begins with something else than a manifest.
    #[error("it is no image archive of this Mayfly's: it does not begin with a manifest")]
    NoArchive,
    /// Its manifest does not say what a manifest says.
    #[error("can't understand its manifest")]
    Manifest(#[source] serde_json::Error),
    /// The manifest names a file twice, or in the place of another.
    #[error("its manifest names the part {0} in the place of another")]
    Parts(&'static str),
    /// Something is longer than it can be.
    #[error("its {name} would have {bytes} bytes; the most is {most}")]
    TooLong {
        /// What.
        name: &'static str,
        /// How long it would be.
        bytes: u64,
        /// How long it may be.
        most: u64,
    },
    /// Something else comes where a part should.
    #[error("where {expected} should come there is {found}")]
    Entry {
        /// What should come.
        expected: &'static str,
        /// What comes, if it has a name.
        found: String,
    },
    /// A part is not what the manifest says.
    #[error("its {name} is not what was exported: SHA-256 {found} instead of {expected}")]
    Changed {
        /// The part.
        name: &'static str,
        /// The digest that the manifest says.
        expected: Digest,
        /// The digest that it has.
        found: Digest,
    },
    /// It ends too early.
    #[error("it is not whole: it ends in the middle")]
    Truncated,
    /// It does not end where it should.
    #[error("something follows after its end")]
    Trailing,
    /// It can't be read, or not be decompressed.
    #[error("it can't be read")]
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

/// The header of a file: always the same for the same name and length.
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

/// How many bytes fill up the last block of a file.
fn padding(bytes: u64) -> usize {
    let block = BLOCK as u64;
    // Less than a block.
    usize::try_from((block - bytes % block) % block).unwrap_or_default()
}

/// The bytes of all parts.
fn total(manifest: &Manifest) -> u64 {
    manifest.parts.all().iter().map(|part| part.bytes).fold(0, u64::saturating_add)
}

/// Checks that a manifest's parts are each in their own place and no longer than parts can be.
fn check_parts(manifest: &Manifest) -> Result<(), ArchiveError> {
    let parts = manifest.parts.all();
    for (index, part) in parts.iter().enumerate() {
        let name = part.file.as_str();
        if parts[..index].iter().any(|other: &&Part| other.file == part.file) {
            return Err(ArchiveError::Parts(name));
        }
        if part.bytes > LARGEST_PART {
            let (bytes, most) = (part.bytes, LARGEST_PART);
            return Err(ArchiveError::TooLong { name, bytes, most });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
