//! The other end of the guest's virtio-vsock device: one `vhost-device-vsock` per microVM.
//!
//! It needs no kernel module and no host-wide numbers: whatever the guest connects to on the host
//! (context id 2) becomes a connection to a unix socket in the shepherd's private directory.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::MachineError;
use super::confine::Confinement;

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

/// Where the program connects to when the guest connects to `port`.
pub fn guest_socket(directory: &Path, port: u32) -> PathBuf {
    directory.join(format!("guest.vsock_{port}"))
}

/// Starts the program in `directory`, which is the caller's working directory, and connects to it.
/// Whoever waits sets the deadline.
pub(super) async fn start(program: &Path, directory: &Path) -> Result<VsockDevice, MachineError> {
    let not_run = |error| MachineError::NotRun(program.to_owned(), error);
    let mut command = Command::new(program);
    command
        .arg("--vm")
        .arg(format!("guest-cid={GUEST_CID},socket=vhost.sock,uds-path=guest.vsock"))
        .current_dir(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Confinement {
        readable: vec![program.to_owned()],
        writable: vec![directory.to_owned()],
        ..Confinement::default()
    }
    .apply(&mut command)
    .map_err(not_run)?;
    let mut child = command.spawn().map_err(not_run)?;
    loop {
        // Relative: the address of a socket has room for 107 bytes, the directory's path may be
        // longer.
        match UnixStream::connect("vhost.sock") {
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
