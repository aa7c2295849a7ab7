//! The copy-on-write overlay: a qcow2 file without a name.
//!
//! The file is made with `O_TMPFILE`, so there is no moment at which a killed process could leave
//! it behind: it is gone with the last descriptor. Which image lies under it is said to QEMU, not
//! in the file.
//!
//! The options were chosen by measurement (`scripts/bench overlay`, `docs/decisions/`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::host::size::Size;

/// Creation options: clusters of 64 KiB, allocated by subclusters of 2 KiB, so that a small write
/// copies nothing from the image below.
const FORMAT_OPTIONS: &str = "cluster_size=64k,extended_l2=on";

/// Bytes of a cluster.
const CLUSTER: u64 = 64 << 10;

/// Bytes that a table holds for each cluster, where subclusters are on.
const TABLE_ENTRY: u64 = 16;

/// The tool takes names only; this one leads to the file that it inherits as its input.
const STANDARD_INPUT: &str = "/proc/self/fd/0";

/// Bytes of QEMU's cache for the overlay's second-level tables that cover `disk` whole, and at
/// least one table.
pub fn table_cache(disk: Size) -> u64 {
    (disk.0.div_ceil(CLUSTER) * TABLE_ENTRY).max(CLUSTER)
}

/// The overlay could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The file itself.
    #[error("can't make the overlay in {0}")]
    File(PathBuf, #[source] io::Error),
    /// `qemu-img` did not start.
    #[error("can't run {0}")]
    NotRun(PathBuf, #[source] io::Error),
    /// `qemu-img` refused.
    #[error("qemu-img can't make the overlay: {0}")]
    Refused(String),
}

/// Makes an empty overlay for a disk of the given size, on the file system of `directory`.
pub async fn create(qemu_img: &Path, directory: &Path, disk: Size) -> Result<File, OverlayError> {
    let overlay = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_TMPFILE)
        .open(directory)
        .map_err(|error| OverlayError::File(directory.to_owned(), error))?;
    let inherited =
        overlay.try_clone().map_err(|error| OverlayError::File(directory.to_owned(), error))?;
    let output = Command::new(qemu_img)
        .args(["create", "-q", "-f", "qcow2", "-o", FORMAT_OPTIONS, STANDARD_INPUT])
        .arg(disk.0.to_string())
        .env_clear()
        .stdin(inherited)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| OverlayError::NotRun(qemu_img.to_owned(), error))?;
    if output.status.success() {
        Ok(overlay)
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(OverlayError::Refused(said.trim().replace(STANDARD_INPUT, "the overlay")))
    }
}
