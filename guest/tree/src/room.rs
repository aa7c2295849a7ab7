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
pub struct Room {
    disk: OwnedFd,
    limit: u64,
    spent: u64,
    /// Since the disk was looked at.
    bytes: u64,
    entries: u64,
}

impl Room {
    /// On the file system of an open file, looked at now; `limit` is in bytes.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn on(disk: &impl AsFd, limit: u64) -> Result<Self, TreeError> {
        let disk = disk.as_fd().try_clone_to_owned().map_err(TreeError::failed("look at", b""))?;
        let room = Self { disk, limit, spent: 0, bytes: 0, entries: 0 };
        room.look(0)?;
        Ok(room)
    }

    /// Takes room for an entry whose content takes `bytes`, before anything is written.
    pub fn take(&mut self, bytes: u64) -> Result<(), TreeError> {
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
    pub fn wrote(&mut self, bytes: u64) -> Result<(), TreeError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes < LOOK_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        self.look(0)
    }

    fn look(&self, needed: u64) -> Result<(), TreeError> {
        let disk = fstatvfs(&self.disk).map_err(TreeError::failed("look at the disk of", b""))?;
        let size = disk.fragment_size();
        Disk {
            bytes: disk.blocks().saturating_mul(size),
            free_bytes: disk.blocks_available().saturating_mul(size),
            inodes: disk.files(),
            free_inodes: disk.files_available(),
        }
        .has_room_for(needed)
    }
}

/// A file system, as it says of itself.
#[derive(Debug, Clone, Copy)]
struct Disk {
    bytes: u64,
    free_bytes: u64,
    /// None of one that has no table of them.
    inodes: u64,
    free_inodes: u64,
}

impl Disk {
    fn has_room_for(self, needed: u64) -> Result<(), TreeError> {
        let kept = (self.bytes / 50).min(KEPT_BYTES);
        if self.free_bytes < kept.saturating_add(needed) {
            return Err(TreeError::NoRoom { what: "bytes", free: self.free_bytes, kept });
        }
        let kept = (self.inodes / 50).min(KEPT_INODES);
        if self.inodes > 0 && self.free_inodes < kept.saturating_add(LOOK_ENTRIES) {
            return Err(TreeError::NoRoom { what: "inodes", free: self.free_inodes, kept });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_of_a_disk_is_kept_free() {
        let disk = |bytes, free_bytes, inodes, free_inodes| Disk {
            bytes,
            free_bytes,
            inodes,
            free_inodes,
        };
        for (disk, needed, room) in [
            (disk(1 << 40, 1 << 30, 0, 0), 0, true),
            (disk(1 << 40, 1 << 30, 0, 0), 768 << 20, true),
            (disk(1 << 40, 1 << 30, 0, 0), (768 << 20) + 1, false),
            (disk(1 << 40, KEPT_BYTES - 1, 0, 0), 0, false),
            (disk(10 << 20, 1 << 20, 0, 0), 512 << 10, true),
            (disk(10 << 20, 1 << 20, 0, 0), 1 << 20, false),
            (disk(1 << 40, 1 << 40, 1000, 20 + LOOK_ENTRIES), 0, true),
            (disk(1 << 40, 1 << 40, 1000, 19 + LOOK_ENTRIES), 0, false),
            (disk(1 << 40, 1 << 40, 1 << 30, KEPT_INODES), 0, false),
            (disk(0, 0, 0, 0), u64::MAX, false),
        ] {
            assert_eq!(disk.has_room_for(needed).is_ok(), room, "{disk:?} {needed}");
        }
    }

    #[test]
    fn every_entry_has_its_cost_and_the_limit_is_one() {
        let disk = tempfile::tempfile().unwrap();
        let mut room = Room::on(&disk, 5 * PAGE).unwrap();
        // An empty one, and one that takes a page and a bit.
        room.take(0).unwrap();
        room.take(PAGE + 1).unwrap();
        room.take(0).unwrap();
        let error = room.take(0).unwrap_err();
        assert!(matches!(error, TreeError::TooMuch { what: "bytes", most } if most == 5 * PAGE));
    }
}
