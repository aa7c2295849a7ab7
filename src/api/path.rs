//! Paths of sockets: the kernel takes 107 bytes (`sun_path`, unix(7)), a state directory may be
//! longer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// A short way to a directory, open as long as this lives, and a name in it.
pub(super) struct Reachable {
    pub(super) directory: PathBuf,
    pub(super) name: String,
    _open: File,
}

impl Reachable {
    pub(super) fn path(&self) -> PathBuf {
        self.directory.join(&self.name)
    }
}

/// A way to a socket that is short enough however long its path is.
pub(super) fn reachable(socket: &Path) -> io::Result<Reachable> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "it is no path of a file");
    let name = socket.file_name().and_then(|name| name.to_str()).ok_or_else(wrong)?;
    let parent = socket.parent().filter(|parent| !parent.as_os_str().is_empty());
    let open = File::open(parent.unwrap_or(Path::new(".")))?;
    let directory = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok(Reachable { directory, name: name.to_owned(), _open: open })
}
