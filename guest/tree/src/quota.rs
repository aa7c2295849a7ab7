//! Limits the disk space and the inodes that unpacking uses, by a fixed limit and by the free
//! space.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::statvfs::fstatvfs;

use crate::TreeError;

/// The cost of an entry besides its content, and the unit that contents are rounded up to, in
/// bytes.
const PAGE: u64 = 4096;

/// The free space is checked again after this many bytes, or half of the free space if that is
/// less, and after this many entries.
const CHECK_BYTES: u64 = 16 << 20;
const CHECK_ENTRIES: u64 = 256;

/// The reserve that stays free: a fiftieth of the disk, but at most this.
const RESERVED_BYTES: u64 = 256 << 20;
const RESERVED_INODES: u64 = 10_000;

/// Returns the disk space that `length` bytes at `offset` of a file take: whole pages, however few
/// bytes of each are written.
pub(crate) fn disk_size(offset: u64, length: u64) -> u64 {
    if length == 0 {
        return 0;
    }
    let end = offset.saturating_add(length).div_ceil(PAGE);
    (end - offset / PAGE).saturating_mul(PAGE)
}

/// The disk space that a tree may use.
pub struct DiskQuota {
    disk: OwnedFd,
    limit: u64,
    spent: u64,
    /// The bytes that may be written before the free space is checked again.
    allowed: u64,
    /// The entries since the last check.
    entries: u64,
}

impl DiskQuota {
    /// Creates a quota of `limit` bytes on the file system of an open file, and checks its free
    /// space.
    ///
    /// # Errors
    ///
    /// If the file system has no free space.
    pub fn new(disk: &impl AsFd, limit: u64) -> Result<Self, TreeError> {
        let disk = disk
            .as_fd()
            .try_clone_to_owned()
            .map_err(TreeError::failed("open the disk of", b""))?;
        let mut quota = Self { disk, limit, spent: 0, allowed: 0, entries: 0 };
        quota.allowed = quota.check_disk(0)?;
        Ok(quota)
    }

    /// Reserves space for an entry with `bytes` of content, before anything is written.
    pub fn reserve_entry(&mut self, bytes: u64) -> Result<(), TreeError> {
        let cost = bytes.div_ceil(PAGE).saturating_add(1).saturating_mul(PAGE);
        self.spent = self.spent.saturating_add(cost);
        if self.spent > self.limit {
            return Err(TreeError::LimitExceeded { what: "bytes", limit: self.limit });
        }
        self.entries += 1;
        // A large file is checked with its whole size, and again while it is written.
        if bytes >= CHECK_BYTES || self.entries >= CHECK_ENTRIES {
            self.entries = 0;
            self.allowed = self.check_disk(bytes)?;
        }
        Ok(())
    }

    /// Reserves `bytes` of content, before they are written.
    pub fn reserve_bytes(&mut self, bytes: u64) -> Result<(), TreeError> {
        if self.allowed < bytes {
            self.allowed = self.check_disk(bytes)?;
        }
        self.allowed -= bytes;
        Ok(())
    }

    /// Checks the free space. Returns the bytes that may be written now, at least `needed`.
    fn check_disk(&self, needed: u64) -> Result<u64, TreeError> {
        let disk =
            fstatvfs(&self.disk).map_err(TreeError::failed("read the free space at", b""))?;
        let size = disk.fragment_size();
        Disk {
            bytes: disk.blocks().saturating_mul(size),
            free_bytes: disk.blocks_available().saturating_mul(size),
            inodes: disk.files(),
            free_inodes: disk.files_available(),
        }
        .allowance_for(needed)
    }
}

/// The size and free space of a file system.
#[derive(Debug, Clone, Copy)]
struct Disk {
    bytes: u64,
    free_bytes: u64,
    /// Zero for a file system without an inode table.
    inodes: u64,
    free_inodes: u64,
}

impl Disk {
    fn allowance_for(self, needed: u64) -> Result<u64, TreeError> {
        let reserved = (self.bytes / 50).min(RESERVED_BYTES);
        let Some(spare) = self.free_bytes.checked_sub(reserved.saturating_add(needed)) else {
            return Err(TreeError::NoSpace { what: "bytes", free: self.free_bytes, reserved });
        };
        let reserved = (self.inodes / 50).min(RESERVED_INODES);
        if self.inodes > 0 && self.free_inodes < reserved.saturating_add(CHECK_ENTRIES) {
            return Err(TreeError::NoSpace { what: "inodes", free: self.free_inodes, reserved });
        }
        // Other processes write to the disk, too.
        Ok(needed.saturating_add((spare / 2).min(CHECK_BYTES)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_disk_is_reserved() {
        let disk = |bytes, free_bytes, inodes, free_inodes| Disk {
            bytes,
            free_bytes,
            inodes,
            free_inodes,
        };
        for (disk, needed, has_space) in [
            (disk(1 << 40, 1 << 30, 0, 0), 0, true),
            (disk(1 << 40, 1 << 30, 0, 0), 768 << 20, true),
            (disk(1 << 40, 1 << 30, 0, 0), (768 << 20) + 1, false),
            (disk(1 << 40, RESERVED_BYTES - 1, 0, 0), 0, false),
            (disk(10 << 20, 1 << 20, 0, 0), 512 << 10, true),
            (disk(10 << 20, 1 << 20, 0, 0), 1 << 20, false),
            (disk(1 << 40, 1 << 40, 1000, 20 + CHECK_ENTRIES), 0, true),
            (disk(1 << 40, 1 << 40, 1000, 19 + CHECK_ENTRIES), 0, false),
            (disk(1 << 40, 1 << 40, 1 << 30, RESERVED_INODES), 0, false),
            (disk(0, 0, 0, 0), u64::MAX, false),
        ] {
            assert_eq!(disk.allowance_for(needed).is_ok(), has_space, "{disk:?} {needed}");
        }
    }

    #[test]
    fn the_less_is_free_the_sooner_the_disk_is_checked_again() {
        let disk = |free_bytes| Disk { bytes: 50 << 20, free_bytes, inodes: 0, free_inodes: 0 };
        let allowed = |free, needed| disk(free).allowance_for(needed).ok();
        assert_eq!(allowed(50 << 20, 0), Some(CHECK_BYTES));
        assert_eq!(allowed(9 << 20, 0), Some(4 << 20));
        assert_eq!(allowed(9 << 20, 4 << 20), Some(6 << 20));
        assert_eq!(allowed(9 << 20, 8 << 20), Some(8 << 20));
        assert_eq!(allowed(9 << 20, 9 << 20), None);
    }

    #[test]
    fn a_byte_takes_the_page_that_it_is_in() {
        for (offset, length, pages) in [
            (0, 0, 0_u64),
            (5, 1, 1),
            (0, PAGE, 1),
            (PAGE - 1, 2, 2),
            (1, PAGE, 2),
            (u64::MAX - 1, 1, 1),
        ] {
            assert_eq!(disk_size(offset, length), pages * PAGE, "{length} at {offset}");
        }
    }

    #[test]
    fn every_entry_has_a_cost_and_the_limit_is_enforced() {
        let disk = tempfile::tempfile().unwrap();
        let mut quota = DiskQuota::new(&disk, 5 * PAGE).unwrap();
        // An empty entry, and one of a little more than a page.
        quota.reserve_entry(0).unwrap();
        quota.reserve_entry(PAGE + 1).unwrap();
        quota.reserve_entry(0).unwrap();
        let error = quota.reserve_entry(0).unwrap_err();
        assert!(
            matches!(error, TreeError::LimitExceeded { what: "bytes", limit } if limit == 5 * PAGE)
        );
    }
}
