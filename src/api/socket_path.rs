//! Short paths of sockets: the kernel takes 107 bytes (`sun_path`, unix(7)), and a state directory
//! may have a longer path.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A short path to a directory through `/proc/self/fd`, valid as long as this lives, and a file
/// name in it.
pub(super) struct ShortPath {
    pub(super) directory: PathBuf,
    pub(super) name: String,
    _open: File,
}

impl ShortPath {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }
}

/// Returns a path to a socket that fits, however long its own path is.
pub(super) fn shorten(socket: &Path) -> io::Result<ShortPath> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "not a file path");
    let name = socket.file_name().and_then(|name| name.to_str()).ok_or_else(invalid)?;
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let open = File::open(parent.unwrap_or(Path::new(".")))?;
    let directory = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok(ShortPath { directory, name: name.to_owned(), _open: open })
}
