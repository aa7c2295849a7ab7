//! Writes an archive, in the format that [`crate::Reader`] takes and GNU's tar understands.

use std::io::{BufWriter, Write};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::holes::Segment;
use crate::name::Name;
use crate::{BLOCK, PIECE, TreeError};

/// An archive that is written to `W`. One that is dropped has no end.
pub(crate) struct Writer<W: Write> {
    output: BufWriter<W>,
}

/// What all entries have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) modified: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output: BufWriter::with_capacity(PIECE, output) }
    }

    /// An entry without content.
    pub(crate) fn entry(
        &mut self,
        kind: EntryType,
        name: &Name,
        target: &[u8],
        facts: Facts,
    ) -> Result<(), TreeError> {
        let mut header = header(kind, 0, facts);
        self.names(&mut header, name, target)?;
        self.header(&mut header)
    }

    /// The header of a file; its content has to follow.
    pub(crate) fn file(&mut self, name: &Name, size: u64, facts: Facts) -> Result<(), TreeError> {
        let mut header = header(EntryType::Regular, size, facts);
        self.names(&mut header, name, b"")?;
        self.header(&mut header)
    }

    /// The header and the map of a file with holes; what is in its parts has to follow.
    pub(crate) fn sparse(
        &mut self,
        name: &Name,
        size: u64,
        segments: &[Segment],
        facts: Facts,
    ) -> Result<(), TreeError> {
        let held = segments.iter().map(|segment| segment.length).sum();
        let mut header = header(EntryType::GNUSparse, held, facts);
        self.names(&mut header, name, b"")?;
        let mut rest = segments.iter();
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(size);
            for (place, segment) in gnu.sparse.iter_mut().zip(rest.by_ref()) {
                place.set_offset(segment.offset);
                place.set_length(segment.length);
            }
            gnu.set_is_extended(rest.len() > 0);
        }
        self.header(&mut header)?;
        while rest.len() > 0 {
            let mut block = GnuExtSparseHeader::new();
            for (place, segment) in block.sparse_mut().iter_mut().zip(rest.by_ref()) {
                place.set_offset(segment.offset);
                place.set_length(segment.length);
            }
            block.set_is_extended(rest.len() > 0);
            self.content(block.as_bytes())?;
        }
        Ok(())
    }

    /// Some of a file's content.
    pub(crate) fn content(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.output.write_all(bytes).map_err(TreeError::Output)
    }

    /// Fills up the last block of a content of this length.
    pub(crate) fn fill_up(&mut self, bytes: u64) -> Result<(), TreeError> {
        let block = BLOCK as u64;
        // Less than a block.
        let padding = usize::try_from((block - bytes % block) % block).unwrap_or_default();
        self.content(&[0; BLOCK][..padding])
    }

    /// The end, without which it is no archive.
    pub(crate) fn end(mut self) -> Result<(), TreeError> {
        self.content(&[0; 2 * BLOCK])?;
        self.output.flush().map_err(TreeError::Output)
    }

    fn header(&mut self, header: &mut Header) -> Result<(), TreeError> {
        header.set_cksum();
        self.content(header.as_bytes())
    }

    /// Puts names into a header, or before it where they are too long.
    fn names(&mut self, header: &mut Header, name: &Name, target: &[u8]) -> Result<(), TreeError> {
        let path = if name.is_root() { b"." } else { name.as_bytes() };
        let fields = header.as_old_mut();
        let long = [put(&mut fields.name, path), put(&mut fields.linkname, target)];
        if !long[0] {
            self.long(EntryType::GNULongName, path)?;
        }
        if !long[1] {
            self.long(EntryType::GNULongLink, target)?;
        }
        Ok(())
    }

    fn long(&mut self, kind: EntryType, text: &[u8]) -> Result<(), TreeError> {
        let bytes = text.len() as u64 + 1;
        let mut header = header(kind, bytes, Facts { mode: 0o644, modified: 0 });
        put(&mut header.as_old_mut().name, b"././@LongLink");
        self.header(&mut header)?;
        self.content(text)?;
        self.content(&[0])?;
        self.fill_up(bytes)
    }
}

/// Writes as much of a text as a field takes; tells whether that was all.
fn put(field: &mut [u8], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    length == text.len()
}

fn header(kind: EntryType, bytes: u64, facts: Facts) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(facts.mode & 0o7777);
    header.set_mtime(facts.modified);
    // Whose it was is nobody's business there.
    header.set_uid(0);
    header.set_gid(0);
    header
}
