//! Makes the root file system's image: raw ext4, without mounting anything.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use super::enclosure::{Enclosure, host_command};
use super::process::ProcessRunner;
use crate::error::ImageError;
use mayfly_host::size::Size;

/// The file system's UUID and the seed of its directory hashes: fixed, so that the same files give
/// the same image. No guest has two of these file systems.
const UUID: &str = "6d617966-6c79-4000-8000-726f6f746673";

/// The most blocks that the file system can grow to while mounted: 1 TiB. The space reserved for
/// its group descriptors is half a megabyte.
const MAX_BLOCKS: u64 = (1 << 40) / 4096;

/// The first inode that is not reserved (`EXT4_GOOD_OLD_FIRST_INO`).
const FIRST_INODE: u32 = 11;

/// The default bytes of disk per inode: the default of mke2fs for a disk of this size, as on
/// GitHub's hosted runners. A million files fit on 16 GiB.
const BYTES_PER_INODE: Size = Size(16 << 10);

/// The parameters of a file system.
#[derive(Debug, Clone, Copy)]
pub(super) struct FileSystemOptions {
    /// Its size.
    pub(super) size: Size,
    /// Bytes of disk per inode; `None` for the default.
    pub(super) inodes: Option<Size>,
}

/// Makes `image` from everything below `root`. All times that are not a file's modification time
/// are set to `date`, in seconds since 1970.
pub(super) fn make(
    root: &Path,
    image: &Path,
    options: FileSystemOptions,
    date: u64,
    enclosure: Enclosure,
    runner: &ProcessRunner<'_>,
) -> Result<(), ImageError> {
    let file = File::create_new(image).map_err(ImageError::write(image))?;
    // A sparse file: blocks that mke2fs does not write take no space.
    file.set_len(options.size.0).map_err(ImageError::write(image))?;
    let mut command = enclosure.command("mke2fs");
    command.args(arguments(root, image, options.inodes.unwrap_or(BYTES_PER_INODE)));
    runner.run_as("mke2fs", with_date(date, &mut command))?;
    fix_times(image, date, runner)
}

/// Sets the inode times that mke2fs copies from the build's directory and that depend on when it
/// was created and read, because no program can set them there.
fn fix_times(image: &Path, date: u64, runner: &ProcessRunner<'_>) -> Result<(), ImageError> {
    let debugfs = || {
        let mut command = host_command("debugfs");
        with_date(date, &mut command);
        command
    };
    let statistics = runner.run(debugfs().args(["-R", "stats -h"]).arg(image))?;
    let used = used_inodes(&String::from_utf8_lossy(&statistics)).ok_or_else(|| {
        ImageError::read(image)(std::io::Error::other("debugfs reports no inode count"))
    })?;
    let script = image.with_extension("times");
    fs::write(&script, times_script(used, date)).map_err(ImageError::write(&script))?;
    runner.run(debugfs().args(["-w", "-f"]).arg(&script).arg(image))?;
    fs::remove_file(&script).map_err(ImageError::write(script))
}

/// Returns the number of inodes in use, from debugfs's superblock statistics. In a newly filled
/// file system they are the first ones.
fn used_inodes(statistics: &str) -> Option<u32> {
    let number = |key: &str| {
        let line = statistics.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse::<u32>().ok()
    };
    number("Inode count:")?.checked_sub(number("Free inodes:")?)
}

/// Returns debugfs commands that set all times of the files except the modification time.
fn times_script(used: u32, date: u64) -> String {
    let commands = |inode: u32| {
        ["atime", "ctime", "crtime"]
            .map(|field| format!("set_inode_field <{inode}> {field} @{date}\n"))
            .concat()
    };
    (FIRST_INODE..=used).map(commands).collect()
}

/// Sets the current time of an e2fsprogs program to `date`, with the variables of both newer and
/// older versions.
fn with_date(date: u64, command: &mut Command) -> &mut Command {
    let date = date.to_string();
    command.env("SOURCE_DATE_EPOCH", &date).env("E2FSPROGS_FAKE_TIME", date)
}

fn arguments(root: &Path, image: &Path, bytes_per_inode: Size) -> Vec<OsString> {
    let extended = [
        &format!("hash_seed={UUID}"),
        &format!("resize={MAX_BLOCKS}"),
        "root_owner=0:0",
        // The file is new and therefore zero: no inode table is written now, nor by the guest's
        // kernel in the background, which would fill the overlay.
        "assume_storage_prezeroed=1",
        "nodiscard",
    ]
    .join(",");
    let mut arguments: Vec<OsString> = ["-q", "-F", "-t", "ext4", "-b", "4096"]
        .into_iter()
        .chain(["-i", &bytes_per_inode.0.to_string()])
        // No blocks reserved for root.
        .chain(["-m", "0"])
        // No journal: a throwaway disk is never mounted after a crash.
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
