//! The other end of the guest's virtio-vsock device: one `vhost-device-vsock` per microVM.
//!
//! It needs no kernel module and no host-wide numbers: whatever the guest connects to on the host
//! (context id 2) becomes a connection to a unix socket in the shepherd's private directory.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::process::{Child, Command};

use super::MachineError;
use super::roots::{self, Housed, SOCKETS};
use crate::isolation::calls;
use crate::isolation::confined::Confinement;

/// The guest's own context id. Nobody else sees it, so each has the same.
const GUEST_CID: u32 = 3;

/// How often a socket that is about to appear is looked for.
const POLL: Duration = Duration::from_millis(1);

/// The program, running, and the connection that QEMU is to have to it.
#[derive(Debug)]
pub(super) struct VsockDevice {
    pub(super) child: Child,
    pub(super) connection: UnixStream,
}

/// The directory of sockets that the program shares with its shepherd, in the private directory.
/// That is the working directory, so that the names of sockets are short.
const SHARED: &str = "sockets";

/// Listens at the socket that the program connects to when the guest connects to `port`. The
/// private directory has to be the working directory.
pub fn listen(port: u32) -> io::Result<UnixListener> {
    fs::create_dir_all(SHARED)?;
    UnixListener::bind(Path::new(SHARED).join(format!("guest.vsock_{port}")))
}

/// Starts the program, and connects to it. Whoever waits sets the deadline.
pub(super) async fn start(program: &Path, private: &Path) -> Result<VsockDevice, MachineError> {
    fs::create_dir_all(SHARED).map_err(MachineError::Socket)?;
    let housed = roots::of_vsock(program, private, Path::new(SHARED)).await?;
    let Housed { program, root } = housed;
    let not_run = |error| MachineError::NotRun(program.clone(), error);
    let mut command = Command::new(&program);
    command
        .arg("--vm")
        .arg(format!("guest-cid={GUEST_CID},socket=vhost.sock,uds-path=guest.vsock"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Confinement {
        root,
        directory: CString::new(SOCKETS).unwrap_or_default(),
        largest_file: 0,
        inherited: Vec::new(),
        calls: calls::vsock,
    }
    .apply(&mut command)
    .map_err(not_run)?;
    let mut child = command.spawn().map_err(not_run)?;
    let socket = Path::new(SHARED).join("vhost.sock");
    loop {
        // Relative: the address of a socket has room for 107 bytes, the directory's path may be
        // longer.
        match UnixStream::connect(&socket) {
            Ok(connection) => return Ok(VsockDevice { child, connection }),
            Err(error) if is_not_there_yet(&error) => {}
            Err(error) => return Err(MachineError::Socket(error)),
        }
        if let Some(status) = child.try_wait().map_err(not_run)? {
            return Err(MachineError::VsockNotStarted(status));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn is_not_there_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}
