//! The copy-on-write overlay: an unnamed qcow2 file.
//!
//! The file is created with `O_TMPFILE`, so that no killed process can leave it behind: it vanishes
//! with its last descriptor. QEMU gets the backing image as an option; the file does not name it.
//!
//! The format options were chosen by measurement (`scripts/bench overlay`, `docs/decisions/`).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use mayfly_host::size::Size;

/// Format options: clusters of 64 KiB with subclusters of 2 KiB, so that a small write copies
/// nothing from the image.
const FORMAT_OPTIONS: &str = "cluster_size=64k,extended_l2=on";

/// Size of a cluster in bytes.
const CLUSTER: u64 = 64 << 10;

/// Bytes per cluster in a second-level table with subclusters.
const TABLE_ENTRY: u64 = 16;

/// `qemu-img` only accepts paths; this one leads to the file that it inherits as standard input.
const STANDARD_INPUT: &str = "/proc/self/fd/0";

/// Returns the size, in bytes, of QEMU's cache for the overlay's second-level tables: enough for
/// all of `disk`, and at least one table.
pub(super) fn table_cache(disk: Size) -> u64 {
    (disk.0.div_ceil(CLUSTER) * TABLE_ENTRY).max(CLUSTER)
}

/// An error of creating the overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The file could not be created.
    #[error("can't create the overlay in {0}")]
    File(PathBuf, #[source] io::Error),
    /// `qemu-img` did not start.
    #[error("can't run {0}")]
    Start(PathBuf, #[source] io::Error),
    /// `qemu-img` failed.
    #[error("qemu-img can't create the overlay: {0}")]
    Refused(String),
}

/// Creates an empty overlay for a disk of the given size, on the file system of `directory`.
pub(super) async fn create(
    qemu_img: &Path,
    directory: &Path,
    disk: Size,
) -> Result<File, OverlayError> {
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
        .map_err(|error| OverlayError::Start(qemu_img.to_owned(), error))?;
    if output.status.success() {
        Ok(overlay)
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        Err(OverlayError::Refused(message.trim().replace(STANDARD_INPUT, "the overlay")))
    }
}
