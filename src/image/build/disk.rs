//! The root file system's image: raw ext4, made without mounting anything.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;

use super::enclosure::Enclosure;
use super::process::Runner;
use crate::image::error::ImageError;
use crate::image::size::Size;

/// The file system's UUID and the seed of its directories' hashes: fixed, so that the same files
/// give the same image. No guest has two of these.
const UUID: &str = "6d617966-6c79-4000-8000-726f6f746673";

/// Blocks up to which the file system can grow while it is mounted: 1 TiB. The room that is set
/// aside for its group descriptors costs half a megabyte.
const LARGEST_BLOCKS: u64 = (1 << 40) / 4096;

/// Makes `image`, `size` long, with everything below `root` in it.
pub(super) fn make(
    root: &Path,
    image: &Path,
    size: Size,
    enclosure: Enclosure,
    runner: &Runner<'_>,
) -> Result<(), ImageError> {
    let file = File::create_new(image).map_err(ImageError::write(image))?;
    // All holes: what mke2fs does not write takes no room.
    file.set_len(size.0).map_err(ImageError::write(image))?;
    let mut command = enclosure.command("mke2fs");
    command.args(arguments(root, image));
    runner.run_as("mke2fs", &mut command).map(drop)
}

fn arguments(root: &Path, image: &Path) -> Vec<OsString> {
    let extended = [
        &format!("hash_seed={UUID}"),
        &format!("resize={LARGEST_BLOCKS}"),
        "root_owner=0:0",
        // The file is new, so it is zero: no inode table is written now, nor by the guest's
        // kernel in the background, where it would fill the overlay.
        "assume_storage_prezeroed=1",
        "nodiscard",
    ]
    .join(",");
    let mut arguments: Vec<OsString> = ["-q", "-F", "-t", "ext4", "-b", "4096"]
        .into_iter()
        // An inode for 32 KiB: half a million on 16 GiB.
        .chain(["-i", "32768"])
        // No blocks are kept for root.
        .chain(["-m", "0"])
        // No journal: a disk that is thrown away is never mounted after a crash.
        .chain(["-O", "^has_journal"])
        .chain(["-U", UUID, "-L", "mayfly", "-E", &extended])
        .map(OsString::from)
        .collect();
    arguments.extend(["-d".into(), root.into(), image.into()]);
    arguments
}
