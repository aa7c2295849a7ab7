//! Writes an archive, in the format that [`crate::TreeReader`] accepts and GNU's tar understands.

use std::io::{BufWriter, Write};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::holes::DataRange;
use crate::tree_path::TreePath;
use crate::{BLOCK, BUFFER_SIZE, TreeError};

/// Writes an archive to `W`. If it is dropped, the archive has no end.
pub(crate) struct Writer<W: Write> {
    output: BufWriter<W>,
}

/// The metadata of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EntryMetadata {
    pub(crate) mode: u32,
    pub(crate) modified: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output: BufWriter::with_capacity(BUFFER_SIZE, output) }
    }

    /// Writes an entry without content.
    pub(crate) fn write_entry(
        &mut self,
        kind: EntryType,
        name: &TreePath,
        target: &[u8],
        metadata: EntryMetadata,
    ) -> Result<(), TreeError> {
        let mut header = new_header(kind, 0, metadata);
        self.write_names(&mut header, name, target)?;
        self.write_header(&mut header)
    }

    /// Writes the header of a file; its content must follow.
    pub(crate) fn write_file_header(
        &mut self,
        name: &TreePath,
        size: u64,
        metadata: EntryMetadata,
    ) -> Result<(), TreeError> {
        let mut header = new_header(EntryType::Regular, size, metadata);
        self.write_names(&mut header, name, b"")?;
        self.write_header(&mut header)
    }

    /// Writes the header and the map of a sparse file; the contents of its data ranges must follow.
    pub(crate) fn write_sparse_header(
        &mut self,
        name: &TreePath,
        size: u64,
        ranges: &[DataRange],
        metadata: EntryMetadata,
    ) -> Result<(), TreeError> {
        let held = ranges.iter().map(|range| range.length).sum();
        let mut header = new_header(EntryType::GNUSparse, held, metadata);
        self.write_names(&mut header, name, b"")?;
        let mut rest = ranges.iter();
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.set_real_size(size);
            for (slot, range) in gnu.sparse.iter_mut().zip(rest.by_ref()) {
                slot.set_offset(range.offset);
                slot.set_length(range.length);
            }
            gnu.set_is_extended(rest.len() > 0);
        }
        self.write_header(&mut header)?;
        while rest.len() > 0 {
            let mut block = GnuExtSparseHeader::new();
            for (slot, range) in block.sparse_mut().iter_mut().zip(rest.by_ref()) {
                slot.set_offset(range.offset);
                slot.set_length(range.length);
            }
            block.set_is_extended(rest.len() > 0);
            self.write_content(block.as_bytes())?;
        }
        Ok(())
    }

    /// Writes a part of a file's content.
    pub(crate) fn write_content(&mut self, bytes: &[u8]) -> Result<(), TreeError> {
        self.output.write_all(bytes).map_err(TreeError::Output)
    }

    /// Pads the last block of a content of this length.
    pub(crate) fn write_padding(&mut self, bytes: u64) -> Result<(), TreeError> {
        let block = BLOCK as u64;
        // Less than a block.
        let padding = usize::try_from((block - bytes % block) % block).unwrap_or_default();
        self.write_content(&[0; BLOCK][..padding])
    }

    /// Writes the end of the archive.
    pub(crate) fn finish(mut self) -> Result<(), TreeError> {
        self.write_content(&[0; 2 * BLOCK])?;
        self.output.flush().map_err(TreeError::Output)
    }

    fn write_header(&mut self, header: &mut Header) -> Result<(), TreeError> {
        header.set_cksum();
        self.write_content(header.as_bytes())
    }

    /// Writes names into a header, or before it if they are too long.
    fn write_names(
        &mut self,
        header: &mut Header,
        name: &TreePath,
        target: &[u8],
    ) -> Result<(), TreeError> {
        let path = if name.is_root() { b"." } else { name.as_bytes() };
        let fields = header.as_old_mut();
        let long = [copy_prefix(&mut fields.name, path), copy_prefix(&mut fields.linkname, target)];
        if !long[0] {
            self.write_long_name(EntryType::GNULongName, path)?;
        }
        if !long[1] {
            self.write_long_name(EntryType::GNULongLink, target)?;
        }
        Ok(())
    }

    fn write_long_name(&mut self, kind: EntryType, text: &[u8]) -> Result<(), TreeError> {
        let bytes = text.len() as u64 + 1;
        let mut header = new_header(kind, bytes, EntryMetadata { mode: 0o644, modified: 0 });
        copy_prefix(&mut header.as_old_mut().name, b"././@LongLink");
        self.write_header(&mut header)?;
        self.write_content(text)?;
        self.write_content(&[0])?;
        self.write_padding(bytes)
    }
}

/// Writes as much of a text as fits a field. Returns whether all of it fit.
fn copy_prefix(field: &mut [u8], text: &[u8]) -> bool {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    length == text.len()
}

fn new_header(kind: EntryType, bytes: u64, metadata: EntryMetadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(metadata.mode & 0o7777);
    header.set_mtime(metadata.modified);
    // The archive does not reveal the owner.
    header.set_uid(0);
    header.set_gid(0);
    header
}
