//! Grows the mounted root file system to the size of its disk.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::error::{Context, StepError};

/// The offset of the ext4 superblock, and the number of bytes read from it.
const SUPERBLOCK: (u64, usize) = (1024, 0x154);

mod request {
    nix::ioctl_read! {
        /// `BLKGETSIZE64` of `linux/fs.h`: size of a block device in bytes.
        device_size, 0x12, 114, u64
    }
    nix::ioctl_write_ptr! {
        /// `EXT4_IOC_RESIZE_FS` of `uapi/linux/ext4.h`: grows to a number of blocks.
        resize, b'f', 16, u64
    }
}

/// Grows the ext4 file system mounted at `root` to the size of its `device`. Does nothing if it
/// already has that size.
pub(crate) fn to_device(device: &Path, root: &Path) -> Result<(), StepError> {
    let disk = File::open(device).context(|| format!("open {}", device.display()))?;
    let mut size = 0;
    // SAFETY: the descriptor is open and the kernel writes one u64.
    unsafe { request::device_size(disk.as_raw_fd(), &raw mut size) }
        .context(|| format!("get the size of {}", device.display()))?;
    let mut superblock = [0; SUPERBLOCK.1];
    disk.read_exact_at(&mut superblock, SUPERBLOCK.0)
        .context(|| format!("read the superblock of {}", device.display()))?;
    let (blocks, block_size) = geometry(&superblock);
    let target = size / block_size;
    if target <= blocks {
        return Ok(());
    }
    let root = File::open(root).context(|| format!("open {}", root.display()))?;
    // SAFETY: the descriptor is open and the kernel reads one u64.
    unsafe { request::resize(root.as_raw_fd(), &raw const target) }
        .map(drop)
        .context(|| format!("grow the root file system from {blocks} to {target} blocks"))
}

/// Returns the number of blocks and their size in bytes, from an ext4 superblock.
fn geometry(superblock: &[u8; SUPERBLOCK.1]) -> (u64, u64) {
    let field = |at: usize| {
        let bytes = superblock.iter().skip(at).take(4).rev();
        bytes.fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (low, size, high) = (field(4), field(0x18), field(0x150));
    (high << 32 | low, 1024 << size.min(6))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_geometry_is_read_from_the_superblock() {
        let mut superblock = [0; SUPERBLOCK.1];
        superblock[4..8].copy_from_slice(&524_288_u32.to_le_bytes());
        superblock[0x18] = 2;
        assert_eq!(geometry(&superblock), (524_288, 4096));
        superblock[0x150] = 1;
        assert_eq!(geometry(&superblock), ((1 << 32) + 524_288, 4096));
    }
}
