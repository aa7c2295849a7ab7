//! The backend of the guest's virtio-vsock device: one `vhost-device-vsock` per microVM.
//!
//! It needs no kernel module and no host-wide context ids: a connection from the guest to the host
//! (context id 2) becomes a connection to a unix socket in the shepherd's private directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::process::Child;

use super::MachineError;
use super::roots::{self, SOCKETS_IN_ROOT};
use mayfly_isolation::confinement::Confinement;
use mayfly_isolation::syscalls;

/// The guest's context id. No other process sees it, so it is the same in every microVM.
const GUEST_CID: u32 = 3;

/// Interval of attempts to connect to the program's socket.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The running program, and the connection to it that QEMU inherits.
#[derive(Debug)]
pub(super) struct VsockDevice {
    pub(super) child: Child,
    pub(super) connection: UnixStream,
}

/// The directory of sockets that the program shares with the shepherd, below the private directory.
/// The private directory is the working directory, so that socket paths are short.
const SOCKETS_DIRECTORY: &str = "sockets";

/// Listens at the socket to which the program connects when the guest connects to `port`. The
/// private directory must be the working directory.
pub fn listen(port: u32) -> io::Result<UnixListener> {
    fs::create_dir_all(SOCKETS_DIRECTORY)?;
    UnixListener::bind(Path::new(SOCKETS_DIRECTORY).join(format!("guest.vsock_{port}")))
}

/// Starts the program and connects to it. The caller sets a deadline.
pub(super) async fn start(program: &Path, private: &Path) -> Result<VsockDevice, MachineError> {
    fs::create_dir_all(SOCKETS_DIRECTORY).map_err(MachineError::Socket)?;
    let rooted = roots::for_vsock(program, private, Path::new(SOCKETS_DIRECTORY)).await?;
    let program = rooted.program.clone();
    let socket = format!("guest-cid={GUEST_CID},socket=vhost.sock,uds-path=guest.vsock");
    let mut child = rooted.spawn(["--vm", &socket], |root| Confinement {
        root,
        directory: CString::new(SOCKETS_IN_ROOT).unwrap_or_default(),
        largest_file: 0,
        inherited: Vec::new(),
        syscalls: syscalls::vsock,
    })?;
    let socket = Path::new(SOCKETS_DIRECTORY).join("vhost.sock");
    loop {
        // Relative, because a socket address holds only 107 bytes and the directory's path may be
        // longer.
        match UnixStream::connect(&socket) {
            Ok(connection) => return Ok(VsockDevice { child, connection }),
            Err(error) if is_not_ready(&error) => {}
            Err(error) => return Err(MachineError::Socket(error)),
        }
        if let Some(status) =
            child.try_wait().map_err(|error| MachineError::Start(program.clone(), error))?
        {
            return Err(MachineError::VsockNotStarted(status));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

fn is_not_ready(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
