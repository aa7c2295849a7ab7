//! What unpacking may cost: bytes on the disk and inodes, against a limit and against what is free.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::statvfs::fstatvfs;

use crate::TreeError;

/// What an entry takes on the disk beside its content, and what contents are rounded up to.
const PAGE: u64 = 4096;

/// After so many bytes, or half of what is free if that is less, or after so many entries the disk is
/// looked at again.
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
    /// What may be written before the disk is looked at again.
    allowed: u64,
    /// Since it was.
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
        let mut room = Self { disk, limit, spent: 0, allowed: 0, entries: 0 };
        room.allowed = room.look(0)?;
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
            self.allowed = self.look(bytes)?;
        }
        Ok(())
    }

    /// Takes room for so much of a content, before it is written.
    pub fn write(&mut self, bytes: u64) -> Result<(), TreeError> {
        if self.allowed < bytes {
            self.allowed = self.look(bytes)?;
        }
        self.allowed -= bytes;
        Ok(())
    }

    /// What may be written now, which is at least what is needed.
    fn look(&self, needed: u64) -> Result<u64, TreeError> {
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
    fn has_room_for(self, needed: u64) -> Result<u64, TreeError> {
        let kept = (self.bytes / 50).min(KEPT_BYTES);
        let Some(spare) = self.free_bytes.checked_sub(kept.saturating_add(needed)) else {
            return Err(TreeError::NoRoom { what: "bytes", free: self.free_bytes, kept });
        };
        let kept = (self.inodes / 50).min(KEPT_INODES);
        if self.inodes > 0 && self.free_inodes < kept.saturating_add(LOOK_ENTRIES) {
            return Err(TreeError::NoRoom { what: "inodes", free: self.free_inodes, kept });
        }
        // Others write, too.
        Ok(needed.saturating_add((spare / 2).min(LOOK_BYTES)))
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
    fn the_less_is_free_the_sooner_the_disk_is_looked_at_again() {
        let disk = |free_bytes| Disk { bytes: 50 << 20, free_bytes, inodes: 0, free_inodes: 0 };
        let allowed = |free, needed| disk(free).has_room_for(needed).ok();
        assert_eq!(allowed(50 << 20, 0), Some(LOOK_BYTES));
        assert_eq!(allowed(9 << 20, 0), Some(4 << 20));
        assert_eq!(allowed(9 << 20, 4 << 20), Some(6 << 20));
        assert_eq!(allowed(9 << 20, 8 << 20), Some(8 << 20));
        assert_eq!(allowed(9 << 20, 9 << 20), None);
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
