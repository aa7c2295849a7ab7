//! The connection to the host: a stream of frames over virtio-vsock.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_protocol::frame::{self, FrameError};
use mayfly_protocol::message::GuestMessage;
use mayfly_protocol::{CONTROL_PORT, HOST_CID};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Shutdown, SockFlag, SockType, VsockAddr, connect, shutdown, socket,
};

use crate::error::{Context, StepError};

/// The time limit for the host to accept. It listens before it starts the machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// The pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(20);

/// The time limit for the host to close the connection after a failure was sent.
const LINGER: Duration = Duration::from_secs(1);

/// The most bytes per write.
///
/// Linux sends each write of up to 64 KiB as one packet. Current kernels (seen with Debian's
/// 6.12.117) split a packet of more than 32 KiB into several buffers, of which vhost-device-vsock
/// 0.3.0 reads only the first: it drops the packet, and the connection hangs.
const PACKET: usize = 16 * 1024;

/// Sends messages from several threads, each without interleaving.
pub struct Sender {
    stream: Mutex<Box<dyn Write + Send>>,
}

impl Sender {
    /// Returns a sender that writes to `stream`.
    pub fn new(stream: impl Write + Send + 'static) -> Self {
        Self { stream: Mutex::new(Box::new(stream)) }
    }

    /// Sends one message. Blocks until the transport has accepted it.
    pub fn send(&self, message: &GuestMessage) -> Result<(), FrameError> {
        let frame = frame::encode(message)?;
        // Ignores poisoning by a panicked thread.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        for packet in frame.chunks(PACKET) {
            stream.write_all(packet)?;
        }
        Ok(stream.flush()?)
    }
}

/// Connects to the shepherd.
pub fn connect_to_host() -> Result<File, StepError> {
    let start = Instant::now();
    loop {
        match try_connect() {
            Ok(socket) => return Ok(File::from(socket)),
            Err(error) if start.elapsed() > CONNECT_DEADLINE => {
                return Err(error).context(|| {
                    format!("connect to the host (vsock {HOST_CID}, port {CONTROL_PORT})")
                });
            }
            Err(_) => std::thread::sleep(CONNECT_PAUSE),
        }
    }
}

fn try_connect() -> Result<OwnedFd, Errno> {
    let socket = socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &VsockAddr::new(HOST_CID, CONTROL_PORT))?;
    Ok(socket)
}

/// Lets a last message reach the host: shuts the connection down for writing and waits, for a
/// limited time, until the host closes it.
pub fn linger(connection: &File) {
    let start = Instant::now();
    let _disconnected = shutdown(connection.as_raw_fd(), Shutdown::Write);
    let mut discarded = [0; 4096];
    while let Some(left) = LINGER.checked_sub(start.elapsed()) {
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let ready = poll(&mut [PollFd::new(connection.as_fd(), PollFlags::POLLIN)], timeout);
        if !matches!(ready, Ok(1..)) || !matches!(read_some(connection, &mut discarded), Ok(1..)) {
            return;
        }
    }
}

fn read_some(mut from: &File, buffer: &mut [u8]) -> io::Result<usize> {
    from.read(buffer)
}
