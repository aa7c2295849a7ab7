//! Reads an archive and believes nothing: what no packer writes is refused, everything has a bound,
//! and nothing is kept but one entry's names and map.

use std::io::{self, Read};

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use crate::holes::Segment;
use crate::name::Name;
use crate::{BLOCK, LARGEST_FILE, LONGEST_PATH, MOST_ENTRIES, MOST_SEGMENTS, TreeError};

/// An entry, whose content is read from the [`Reader`].
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it belongs.
    pub name: Name,
    /// What it is.
    pub kind: Kind,
    /// Its mode: permissions, set-id and sticky bits.
    pub mode: u32,
    /// When it was last changed, in seconds since 1970.
    pub modified: u64,
}

/// What an entry is.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A file.
    File {
        /// Its length, with its holes.
        size: u64,
        /// What of it is in the archive, in order. The rest are holes.
        segments: Vec<Segment>,
    },
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// Another name of a file before it.
    HardLink(Name),
    /// A named pipe, or a socket.
    Pipe {
        /// Which of the two.
        socket: bool,
    },
    /// A device.
    Device,
}

/// An archive that is read from `R`.
pub struct Reader<R> {
    input: R,
    /// Bytes of the entry's content that were not read yet, and those that fill up its last block.
    left: u64,
    padding: u64,
    entries: u64,
    begun: bool,
}

/// The names of an entry that came in entries of their own, before it.
#[derive(Default)]
struct Long {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Begins to read.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, entries: 0, begun: false }
    }

    /// The next entry; none once the archive's end was seen. What was not read of the content of
    /// the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TreeError> {
        self.skip()?;
        let mut long = Long::default();
        loop {
            let Some(header) = self.header()? else {
                return match long {
                    Long { name: None, target: None } => Ok(None),
                    _ => Err(TreeError::Damaged("a name without an entry")),
                };
            };
            let text = match header.entry_type() {
                EntryType::GNULongName => &mut long.name,
                EntryType::GNULongLink => &mut long.target,
                _ => {
                    self.entries += 1;
                    if self.entries > MOST_ENTRIES {
                        return Err(TreeError::TooMuch { what: "entries", most: MOST_ENTRIES });
                    }
                    return self.entry(&header, long).map(Some);
                }
            };
            if text.is_some() {
                return Err(TreeError::Damaged("two names for one entry"));
            }
            *text = Some(self.long_text(&header)?);
        }
    }

    /// Reads on in the entry's content.
    pub fn content(&mut self, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            match self.input.read(&mut buffer[..most]) {
                Ok(0) => return Err(TreeError::Truncated),
                Ok(count) => {
                    self.left -= count as u64;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::Input(error)),
            }
        }
    }

    fn skip(&mut self) -> Result<(), TreeError> {
        let mut scratch = [0; 8 * BLOCK];
        self.left += std::mem::take(&mut self.padding);
        while self.content(&mut scratch)? > 0 {}
        Ok(())
    }

    /// Expects content of this length after a header.
    fn expect(&mut self, bytes: u64) {
        let block = BLOCK as u64;
        self.left = bytes;
        self.padding = (block - bytes % block) % block;
    }

    fn block(&mut self) -> Result<[u8; BLOCK], TreeError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if !self.begun => return Err(TreeError::Nothing),
                Ok(0) => return Err(TreeError::Truncated),
                Ok(count) => {
                    self.begun = true;
                    filled += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(TreeError::Input(error)),
            }
        }
        Ok(block)
    }

    /// The next header, checked as far as all have it in common; none at the end.
    fn header(&mut self) -> Result<Option<Header>, TreeError> {
        let block = self.block()?;
        if block == [0; BLOCK] {
            return if self.block()? == [0; BLOCK] {
                Ok(None)
            } else {
                Err(TreeError::Damaged("something follows half of its end"))
            };
        }
        let header = Header::from_byte_slice(&block).clone();
        // What the checksum is the sum of, with spaces in its own place.
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let expected = sum(&block[..148]) + 8 * u32::from(b' ') + sum(&block[156..]);
        if header.cksum().ok() != Some(expected) {
            return Err(TreeError::Damaged("a header's checksum is wrong"));
        }
        if header.as_gnu().is_none() && header.as_ustar().is_none() {
            return Err(TreeError::Damaged("a header of another format"));
        }
        Ok(Some(header))
    }

    /// The content of an entry that is a name.
    fn long_text(&mut self, header: &Header) -> Result<Vec<u8>, TreeError> {
        let bytes = number(header.entry_size())?;
        if bytes > LONGEST_PATH as u64 + 1 {
            return Err(TreeError::TooMuch { what: "bytes in a name", most: LONGEST_PATH as u64 });
        }
        self.expect(bytes);
        // At most as long as a path.
        let mut text = vec![0; usize::try_from(bytes).unwrap_or_default()];
        let mut filled = 0;
        while filled < text.len() {
            filled += self.content(&mut text[filled..])?;
        }
        self.skip()?;
        if text.last() == Some(&0) {
            text.pop();
        }
        Ok(text)
    }

    fn entry(&mut self, header: &Header, long: Long) -> Result<Entry, TreeError> {
        let path = long.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let refused = |why| TreeError::refused(&path, why);
        let name = Name::parse(&path).map_err(refused)?;
        let target = long.target.or_else(|| header.link_name_bytes().map(Into::into));
        let target = target.unwrap_or_default();
        let bytes = number(header.entry_size())?;
        let kind = match header.entry_type() {
            EntryType::Regular => {
                let whole = (bytes > 0).then_some(Segment { offset: 0, length: bytes });
                Kind::File { size: bytes, segments: whole.into_iter().collect() }
            }
            EntryType::GNUSparse => self.sparse(header, bytes)?,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink if target.is_empty() || target.contains(&0) => {
                return Err(refused("is a link to nothing"));
            }
            EntryType::Symlink if target.len() > LONGEST_PATH => {
                return Err(refused("is a link with too long a target"));
            }
            EntryType::Symlink => Kind::Symlink(target),
            EntryType::Link => {
                let target = Name::parse(&target);
                Kind::HardLink(target.map_err(|_| refused("is a link that leads out of the tree"))?)
            }
            EntryType::Fifo => Kind::Pipe { socket: target == SOCKET },
            EntryType::Char | EntryType::Block => Kind::Device,
            EntryType::XHeader | EntryType::XGlobalHeader => {
                return Err(refused("uses an extension that is not taken"));
            }
            _ => return Err(refused("is of an unknown kind")),
        };
        match &kind {
            Kind::File { size, .. } if *size > LARGEST_FILE => {
                return Err(TreeError::TooMuch { what: "bytes in a file", most: LARGEST_FILE });
            }
            Kind::File { .. } => self.expect(bytes),
            _ if bytes > 0 => return Err(refused("has content, and can't have any")),
            _ => {}
        }
        // What is no number counts as none.
        let mode = header.mode().unwrap_or_default() & 0o7777;
        Ok(Entry { name, kind, mode, modified: header.mtime().unwrap_or_default() })
    }

    /// The map of a file with holes: in its header, and in blocks before its content.
    fn sparse(&mut self, header: &Header, bytes: u64) -> Result<Kind, TreeError> {
        let gnu = header.as_gnu().ok_or(TreeError::Damaged("a map in a header without one"))?;
        let size = number(gnu.real_size())?;
        let mut segments = Vec::new();
        add_segments(&mut segments, &gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut block = GnuExtSparseHeader::new();
            *block.as_mut_bytes() = self.block()?;
            add_segments(&mut segments, block.sparse())?;
            more = block.is_extended();
        }
        let mut end = 0;
        let mut held = 0_u64;
        for Segment { offset, length } in &segments {
            let next = offset.checked_add(*length).filter(|next| *next <= size);
            end =
                next.filter(|_| *offset >= end).ok_or(TreeError::Damaged("a map out of order"))?;
            held = held.saturating_add(*length);
        }
        if held != bytes {
            return Err(TreeError::Damaged("a map that does not fit its file"));
        }
        Ok(Kind::File { size, segments })
    }
}

/// What a pipe's header has as its target where it stands for a socket, which tar has no kind for.
pub(crate) const SOCKET: &[u8] = b"socket";

fn number(read: io::Result<u64>) -> Result<u64, TreeError> {
    read.map_err(|_| TreeError::Damaged("a number that is none"))
}

fn add_segments(to: &mut Vec<Segment>, from: &[GnuSparseHeader]) -> Result<(), TreeError> {
    for part in from.iter().filter(|part| !part.is_empty()) {
        let (offset, length) = (number(part.offset())?, number(part.length())?);
        // How GNU's tar marks the end of a file that ends with a hole.
        if length > 0 {
            to.push(Segment { offset, length });
        }
        if to.len() > MOST_SEGMENTS {
            return Err(TreeError::TooMuch { what: "holes in a file", most: MOST_SEGMENTS as u64 });
        }
    }
    Ok(())
}
