//! Files and directories that are copied into a microVM and out of it, as tar archives.
//!
//! One side [packs](pack()), the other [unpacks](unpack()); host and guest use the same code. What
//! comes from a guest was made by hostile code, so that the archive is read by a [`Reader`] that
//! takes only what the packer writes, with a bound on everything, and unpacked relative to an open
//! directory that the kernel does not let it leave (`openat2(2)`).
//!
//! An archive is one of two things: a directory, whose first entry is `.` and whose others are
//! relative to it, each directory followed by all that is in it; or a single file, whose one entry
//! has the file's name. It has an end, which a packer that fails does not write.
//!
//! ```text
//! regular file, directory   ustar header, name after an `L` entry where it is too long
//! file with holes           GNU's sparse header `S`, its map before its data
//! symbolic and hard link    ustar header, target after a `K` entry where it is too long
//! pipe, socket, device      a header without content; unpacked in a guest only (pipes), or noted
//! ```

mod below;
mod error;
mod holes;
mod name;
mod notes;
mod origin;
mod pack;
mod place;
mod read;
mod room;
mod unpack;
mod write;

pub use error::{Shown, TreeError};
pub use name::Name;
pub use notes::Notes;
pub use origin::Origin;
pub use pack::{Packer, check, pack};
pub use place::Destination;
pub use read::{Entry, Kind, Reader};
pub use room::Room;
pub use unpack::unpack;

/// Bytes of a path within a tree: what the kernel takes, without the final zero.
pub const LONGEST_PATH: usize = 4095;
/// Bytes of one component of a path.
pub const LONGEST_NAME: usize = 255;
/// How deep directories may lie in each other.
pub const DEEPEST: usize = 1024;
/// Entries of an archive.
pub const MOST_ENTRIES: u64 = 1_000_000;
/// Parts of a file between which there are holes. A packer writes out what is left beyond.
pub const MOST_SEGMENTS: usize = 65_536;
/// Bytes of a file, holes included: what ext4 can have.
pub const LARGEST_FILE: u64 = 16 << 40;

/// The bytes of a tar header, and what contents are filled up to.
const BLOCK: usize = 512;
/// How much is moved at a time.
const PIECE: usize = 64 * 1024;

#[cfg(test)]
mod tests;
