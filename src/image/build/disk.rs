//! The root file system's image: raw ext4, made without mounting anything.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::enclosure::{Enclosure, outside};
use super::process::Runner;
use crate::host::size::Size;
use crate::image::error::ImageError;

/// The file system's UUID and the seed of its directories' hashes: fixed, so that the same files
/// give the same image. No guest has two of these.
const UUID: &str = "6d617966-6c79-4000-8000-726f6f746673";

/// Blocks up to which the file system can grow while it is mounted: 1 TiB. The room that is set
/// aside for its group descriptors costs half a megabyte.
const LARGEST_BLOCKS: u64 = (1 << 40) / 4096;

/// The first inode that is not the file system's own (`EXT4_GOOD_OLD_FIRST_INO`).
const FIRST_INODE: u32 = 11;

/// Bytes of disk for each inode, where the recipe doesn't say: what mke2fs itself takes for a disk
/// of this size, and what GitHub's hosted runners have. A million files fit on 16 GiB.
const BYTES_PER_INODE: Size = Size(16 << 10);

/// What a file system is made like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Its length.
    pub(super) size: Size,
    /// Bytes of disk for each inode; none takes the usual number.
    pub(super) inodes: Option<Size>,
}

/// Makes `image` with everything below `root` in it. Every time in it that is not
/// a file's own is `date`, in seconds since 1970.
pub(super) fn make(
    root: &Path,
    image: &Path,
    shape: Shape,
    date: u64,
    enclosure: Enclosure,
    runner: &Runner<'_>,
) -> Result<(), ImageError> {
    let file = File::create_new(image).map_err(ImageError::write(image))?;
    // All holes: what mke2fs does not write takes no room.
    file.set_len(shape.size.0).map_err(ImageError::write(image))?;
    let mut command = enclosure.command("mke2fs");
    command.args(arguments(root, image, shape.inodes.unwrap_or(BYTES_PER_INODE)));
    runner.run_as("mke2fs", at(date, &mut command))?;
    fix_times(image, date, runner)
}

/// Sets the inodes' times that mke2fs copies from the build's directory and that tell when that
/// was made and read, which no program can set there.
fn fix_times(image: &Path, date: u64, runner: &Runner<'_>) -> Result<(), ImageError> {
    let debugfs = || {
        let mut command = outside("debugfs");
        at(date, &mut command);
        command
    };
    let statistics = runner.run(debugfs().args(["-R", "stats -h"]).arg(image))?;
    let used = used_inodes(&String::from_utf8_lossy(&statistics)).ok_or_else(|| {
        ImageError::read(image)(std::io::Error::other(
            "debugfs does not say how many inodes it has",
        ))
    })?;
    let script = image.with_extension("times");
    fs::write(&script, times_script(used, date)).map_err(ImageError::write(&script))?;
    runner.run(debugfs().args(["-w", "-f"]).arg(&script).arg(image))?;
    fs::remove_file(&script).map_err(ImageError::write(script))
}

/// How many inodes are in use, from what debugfs says of the superblock. In a file system that
/// was only ever filled they are the first ones.
fn used_inodes(statistics: &str) -> Option<u32> {
    let number = |key: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u32>().ok()
    };
    number("Inode count:")?.checked_sub(number("Free inodes:")?)
}

/// Commands for debugfs that set all times of the files but that of their last modification.
fn times_script(used: u32, date: u64) -> String {
    let commands = |inode: u32| {
        ["atime", "ctime", "crtime"]
            .map(|field| format!("set_inode_field <{inode}> {field} @{date}\n"))
            .concat()
    };
    (FIRST_INODE..=used).map(commands).collect()
}

/// Lets a program of e2fsprogs take `date` for now: by the name that its newer versions know and
/// by the one that older ones do.
fn at(date: u64, command: &mut Command) -> &mut Command {
    let date = date.to_string();
    command.env("SOURCE_DATE_EPOCH", &date).env("E2FSPROGS_FAKE_TIME", date)
}

fn arguments(root: &Path, image: &Path, bytes_per_inode: Size) -> Vec<OsString> {
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
        .chain(["-i", &bytes_per_inode.0.to_string()])
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inodes_in_use_are_those_that_are_not_free() {
        let statistics = "Inode count:              32768\nFree inodes:              26320\n";
        assert_eq!(used_inodes(statistics), Some(6448));
        assert_eq!(used_inodes("Inode count: 3\n"), None);
        assert_eq!(used_inodes("Inode count: 3\nFree inodes: 4\n"), None);
    }

    #[test]
    fn every_file_gets_the_date_but_the_file_systems_own_inodes() {
        let script = times_script(12, 7);
        assert_eq!(script.lines().count(), 2 * 3);
        assert!(script.starts_with("set_inode_field <11> atime @7\n"), "{script}");
        assert!(script.ends_with("set_inode_field <12> crtime @7\n"), "{script}");
    }
}
