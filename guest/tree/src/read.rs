//! Reads an untrusted archive. It rejects everything that the packer does not write, limits
//! everything, and stores only the names and the map of one entry.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::holes::DataRange;
use crate::tree_path::TreePath;
use crate::{BLOCK, MAX_DATA_RANGES, MAX_ENTRIES, MAX_FILE_SIZE, MAX_PATH_LENGTH, TreeError};

/// An entry of an archive. Its content is read from the [`TreeReader`].
#[derive(Debug, PartialEq, Eq)]
pub struct ArchiveEntry {
    /// Its path.
    pub name: TreePath,
    /// Its type.
    pub kind: EntryKind,
    /// Its mode: permissions, set-id and sticky bits.
    pub mode: u32,
    /// The time of its last modification, in seconds since 1970.
    pub modified: u64,
}

/// The type of an entry.
#[derive(Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its size in bytes, holes included.
        size: u64,
        /// Its data ranges in the archive, in order. The rest are holes.
        ranges: Vec<DataRange>,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A hard link to an earlier file.
    HardLink(TreePath),
    /// A named pipe, or a socket.
    Pipe {
        /// Whether it is a socket.
        socket: bool,
    },
    /// A device.
    Device,
}

/// An archive that is read from `R`.
pub struct TreeReader<R> {
    input: R,
    /// The unread bytes of the entry's content, and the padding of its last block.
    remaining: u64,
    padding: u64,
    entries: u64,
    has_started: bool,
}

/// Long names of an entry, which precede it as entries of their own.
#[derive(Default)]
struct LongNames {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl<R: Read> TreeReader<R> {
    /// Returns a reader of the archive in `input`.
    pub fn new(input: R) -> Self {
        Self { input, remaining: 0, padding: 0, entries: 0, has_started: false }
    }

    /// Reads the next entry; `None` at the end of the archive. Skips the unread content of the
    /// previous entry.
    pub fn next_entry(&mut self) -> Result<Option<ArchiveEntry>, TreeError> {
        self.skip_content()?;
        let mut long = LongNames::default();
        loop {
            let Some(header) = self.read_header()? else {
                return match long {
                    LongNames { name: None, target: None } => Ok(None),
                    _ => Err(TreeError::Damaged("a long name without an entry")),
                };
            };
            let text = match header.entry_type() {
                EntryType::GNULongName => &mut long.name,
                EntryType::GNULongLink => &mut long.target,
                _ => {
                    self.entries += 1;
                    if self.entries > MAX_ENTRIES {
                        return Err(TreeError::LimitExceeded {
                            what: "entries",
                            limit: MAX_ENTRIES,
                        });
                    }
                    return self.parse_entry(&header, long).map(Some);
                }
            };
            if text.is_some() {
                return Err(TreeError::Damaged("two long names for one entry"));
            }
            *text = Some(self.read_long_name(&header)?);
        }
    }

    /// Reads more of the entry's content.
    pub fn read_content(&mut self, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(TreeError::Truncated),
                Ok(count) => {
                    self.remaining -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::Input(error)),
            }
        }
    }

    fn skip_content(&mut self) -> Result<(), TreeError> {
        let mut scratch = [0; 8 * BLOCK];
        self.remaining += std::mem::take(&mut self.padding);
        while self.read_content(&mut scratch)? > 0 {}
        Ok(())
    }

    /// Sets the length of the content that follows a header.
    fn set_content_length(&mut self, bytes: u64) {
        let block = BLOCK as u64;
        self.remaining = bytes;
        self.padding = (block - bytes % block) % block;
    }

    fn read_block(&mut self) -> Result<[u8; BLOCK], TreeError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if !self.has_started => return Err(TreeError::Missing),
                Ok(0) => return Err(TreeError::Truncated),
                Ok(count) => {
                    self.has_started = true;
                    filled += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::Input(error)),
            }
        }
        Ok(block)
    }

    /// Reads and checks the next header; `None` at the end of the archive.
    fn read_header(&mut self) -> Result<Option<Header>, TreeError> {
        let block = self.read_block()?;
        if block == [0; BLOCK] {
            return if self.read_block()? == [0; BLOCK] {
                Ok(None)
            } else {
                Err(TreeError::Damaged("data after half of an end marker"))
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        // The checksum is the sum of all bytes, with its own field as spaces.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        if header.cksum().ok() != Some(expected) {
            return Err(TreeError::Damaged("a header has a wrong checksum"));
        }
        if header.as_gnu().is_none() && header.as_ustar().is_none() {
            return Err(TreeError::Damaged("a header has an unknown format"));
        }
        Ok(Some(header))
    }

    /// Reads the content of a long name entry.
    fn read_long_name(&mut self, header: &Header) -> Result<Vec<u8>, TreeError> {
        let bytes = check_number(header.entry_size())?;
        if bytes > MAX_PATH_LENGTH as u64 + 1 {
            return Err(TreeError::LimitExceeded {
                what: "bytes in a name",
                limit: MAX_PATH_LENGTH as u64,
            });
        }
        self.set_content_length(bytes);
        // The length was checked above.
        let mut text = vec![0; usize::try_from(bytes).unwrap_or_default()];
        let mut filled = 0;
        while filled < text.len() {
            filled += self.read_content(&mut text[filled..])?;
        }
        self.skip_content()?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn parse_entry(&mut self, header: &Header, long: LongNames) -> Result<ArchiveEntry, TreeError> {
        let path = long.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let rejected = |why| TreeError::rejected(&path, why);
        let name = TreePath::parse(&path).map_err(rejected)?;
        let target = long.target.or_else(|| header.link_name_bytes().map(Into::into));
        let target = target.unwrap_or_default();
        let bytes = check_number(header.entry_size())?;
        let kind = match header.entry_type() {
            EntryType::Regular => {
                let whole = (bytes > 0).then_some(DataRange { offset: 0, length: bytes });
                EntryKind::File { size: bytes, ranges: whole.into_iter().collect() }
            }
            EntryType::GNUSparse => self.read_sparse_map(header, bytes)?,
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink if target.is_empty() || target.contains(&0) => {
                return Err(rejected("is a link without a target"));
            }
            EntryType::Symlink if target.len() > MAX_PATH_LENGTH => {
                return Err(rejected("is a link with a target that is too long"));
            }
            EntryType::Symlink => EntryKind::Symlink(target),
            EntryType::Link => {
                let target = TreePath::parse(&target);
                EntryKind::HardLink(
                    target.map_err(|_| rejected("is a link that leads out of the tree"))?,
                )
            }
            EntryType::Fifo => EntryKind::Pipe { socket: target == SOCKET },
            EntryType::Char | EntryType::Block => EntryKind::Device,
            EntryType::XHeader | EntryType::XGlobalHeader => {
                return Err(rejected("uses an unsupported extension"));
            }
            _ => return Err(rejected("has an unknown type")),
        };
        match &kind {
            EntryKind::File { size, .. } if *size > MAX_FILE_SIZE => {
                return Err(TreeError::LimitExceeded {
                    what: "bytes in a file",
                    limit: MAX_FILE_SIZE,
                });
            }
            EntryKind::File { .. } => self.set_content_length(bytes),
            _ if bytes > 0 => return Err(rejected("has content, which its type does not allow")),
            _ => {}
        }
        // An invalid number counts as zero.
        let mode = header.mode().unwrap_or_default() & 0o7777;
        Ok(ArchiveEntry { name, kind, mode, modified: header.mtime().unwrap_or_default() })
    }

    /// Reads the map of a sparse file, in its header and in the blocks before its content.
    fn read_sparse_map(&mut self, header: &Header, bytes: u64) -> Result<EntryKind, TreeError> {
        let gnu = header.as_gnu().ok_or(TreeError::Damaged("a sparse file without a map"))?;
        let size = check_number(gnu.real_size())?;
        let mut ranges = Vec::new();
        add_data_ranges(&mut ranges, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            *block.as_mut_bytes() = self.read_block()?;
            add_data_ranges(&mut ranges, block.sparse())?;
            more = block.is_extended();
        }
        let mut end = 0;
        let mut held = 0_u64;
        for DataRange { offset, length } in &ranges {
            let next = offset.checked_add(*length).filter(|next| *next <= size);
            end = next
                .filter(|_| *offset >= end)
                .ok_or(TreeError::Damaged("a sparse map out of order"))?;
            held = held.saturating_add(*length);
        }
        if held != bytes {
            return Err(TreeError::Damaged("a sparse map that does not match its file"));
        }
        Ok(EntryKind::File { size, ranges })
    }
}

/// The link target in a pipe's header that stands for a socket, for which tar has no type.
pub(crate) const SOCKET: &[u8] = b"socket";

fn check_number(read: io::Result<u64>) -> Result<u64, TreeError> {
    read.map_err(|_| TreeError::Damaged("an invalid number"))
}

fn add_data_ranges(to: &mut Vec<DataRange>, from: &[GnuSparseHeader]) -> Result<(), TreeError> {
    for part in from.iter().filter(|part| !part.is_empty()) {
        let (offset, length) = (check_number(part.offset())?, check_number(part.length())?);
        // An empty range is how GNU's tar marks the end of a file that ends with a hole.
        if length > 0 {
            to.push(DataRange { offset, length });
        }
        if to.len() > MAX_DATA_RANGES {
            return Err(TreeError::LimitExceeded {
                what: "holes in a file",
                limit: MAX_DATA_RANGES as u64,
            });
        }
    }
    Ok(())
}
