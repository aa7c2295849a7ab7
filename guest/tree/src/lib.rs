//! Copies files and directories into and out of a microVM, as tar archives.
//!
//! One side [packs](pack()), the other [unpacks](unpack()); host and guest use the same code. An
//! archive from a guest is hostile input. A [`TreeReader`] accepts only what the packer writes, with
//! a limit on everything, and the archive is unpacked relative to an open directory that the kernel
//! does not let it leave (`openat2(2)`).
//!
//! An archive contains either a directory or a single file. The first entry of a directory is `.`;
//! the other entries are relative to it, and each directory is followed by its contents. The one
//! entry of a single file has the file's name. A packer that fails does not write the end of the
//! archive.
//!
//! ```text
//! regular file, directory   ustar header, name after an `L` entry where it is too long
//! sparse file               GNU's sparse header `S`, its map before its data
//! symbolic and hard link    ustar header, target after a `K` entry where it is too long
//! pipe, socket, device      a header without content; skipped and noted (pipes: only on a host)
//! ```

mod confined_dir;
mod destination;
mod error;
mod holes;
mod notes;
mod origin;
mod pack;
mod quota;
mod read;
mod tree_path;
mod unpack;
mod write;

pub use destination::Destination;
pub use error::{QuotedPath, TreeError};
pub use notes::Notes;
pub use origin::ArchiveOrigin;
pub use pack::{Packer, check, pack};
pub use quota::DiskQuota;
pub use read::{ArchiveEntry, EntryKind, TreeReader};
pub use tree_path::TreePath;
pub use unpack::unpack;

/// The longest path within a tree, in bytes: the kernel's limit without the terminating NUL.
pub const MAX_PATH_LENGTH: usize = 4095;
/// The longest component of a path, in bytes.
pub const MAX_COMPONENT_LENGTH: usize = 255;
/// The deepest nesting of directories.
pub const MAX_DEPTH: usize = 1024;
/// The most entries of an archive.
pub const MAX_ENTRIES: u64 = 1_000_000;
/// The most data ranges of a sparse file. A packer writes the rest of the file without holes.
pub const MAX_DATA_RANGES: usize = 65_536;
/// The largest file, in bytes, holes included: the limit of ext4.
pub const MAX_FILE_SIZE: u64 = 16 << 40;

/// The size of a tar block, in bytes: contents are padded to a multiple of it.
const BLOCK: usize = 512;
/// The size of a copy buffer, in bytes.
const BUFFER_SIZE: usize = 64 * 1024;

#[cfg(test)]
mod tests;
