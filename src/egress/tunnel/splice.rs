//! `splice(2)` through a pipe: from socket to socket without a copy to user space.

use std::io;
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes that are moved at once: what a pipe holds by default, so that nothing of the user's
/// allowance of pipe pages (`pipe-user-pages-soft`) is asked for.
const CHUNK: usize = 64 << 10;

/// A pipe that is empty whenever nobody waits on it.
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        Ok(Self { out, into })
    }

    /// Moves what is there from a socket into the empty pipe. 0 is the end.
    pub(super) async fn fill(&mut self, from: &TcpStream) -> io::Result<usize> {
        from.async_io(Interest::READABLE, || once(from, &self.into, CHUNK)).await
    }

    /// Moves the `count` bytes in the pipe to a socket.
    pub(super) async fn drain(&mut self, to: &TcpStream, mut count: usize) -> io::Result<()> {
        while count > 0 {
            match to.async_io(Interest::WRITABLE, || once(&self.out, to, count)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => count -= moved,
            }
        }
        Ok(())
    }
}

fn once(
    from: impl std::os::fd::AsFd,
    to: impl std::os::fd::AsFd,
    count: usize,
) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(&from, None, &to, None, count, flags) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}
