//! What unpacking may cost: bytes on the disk and inodes, against a limit and against what is free.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::statvfs::fstatvfs;

use crate::TreeError;

/// What an entry takes on the disk beside its content, and what contents are rounded up to.
const PAGE: u64 = 4096;

/// After so many bytes or entries the disk is looked at again.
const LOOK_BYTES: u64 = 16 << 20;
const LOOK_ENTRIES: u64 = 256;

/// What is kept free: a fiftieth of the disk, but not more than this.
const KEPT_BYTES: u64 = 256 << 20;
const KEPT_INODES: u64 = 10_000;

/// The room that there is for a tree.
pub(crate) struct Room {
    disk: OwnedFd,
    limit: u64,
    spent: u64,
    /// Since the disk was looked at.
    bytes: u64,
    entries: u64,
}

impl Room {
    /// On the file system of an open file; `limit` is in bytes.
    pub(crate) fn on(disk: &impl AsFd, limit: u64) -> Result<Self, TreeError> {
        let disk = disk.as_fd().try_clone_to_owned().map_err(TreeError::failed("look at", b""))?;
        let room = Self { disk, limit, spent: 0, bytes: 0, entries: 0 };
        room.look(0)?;
        Ok(room)
    }

    /// Takes room for an entry whose content takes `bytes`, before anything is written.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), TreeError> {
        let cost = bytes.div_ceil(PAGE).saturating_add(1).saturating_mul(PAGE);
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit {
            return Err(TreeError::TooMuch { what: "bytes", most: self.limit });
        }
        self.entries += 1;
        // What is not small is looked at with its whole size, and while it is written.
        if bytes >= LOOK_BYTES || self.entries >= LOOK_ENTRIES {
            self.entries = 0;
            self.look(bytes)?;
        }
        Ok(())
    }

    /// Notes that so much was written.
    pub(crate) fn wrote(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes < LOOK_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        self.look(0)
    }

    fn look(&self, needed: u64) -> Result<(), TreeError> {
        let disk = fstatvfs(&self.disk).map_err(TreeError::failed("look at the disk of", b""))?;
        let (size, free) = (disk.fragment_size(), disk.blocks_available());
        let kept = (disk.blocks().saturating_mul(size) / 50).min(KEPT_BYTES);
        let free = free.saturating_mul(size);
        if free < kept.saturating_add(needed) {
            return Err(TreeError::NoRoom { what: "bytes", free, kept });
        }
        // File systems without a table of inodes tell of none.
        let kept = (disk.files() / 50).min(KEPT_INODES);
        let free = disk.files_available();
        if disk.files() > 0 && free < kept.saturating_add(LOOK_ENTRIES) {
            return Err(TreeError::NoRoom { what: "inodes", free, kept });
        }
        Ok(())
    }
}
