//! `splice(2)` through a pipe: from socket to socket without a copy to user space.

use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes per splice, and the requested pipe size. Four times the default pipe size takes half the
/// processor time per byte; sixteen times takes little less, but a few tunnels would exhaust the
/// user's quota of pipe pages (`pipe-user-pages-soft`).
const CHUNK: i32 = 256 << 10;

/// Maximum idle pipes that a thread keeps.
const MAX_IDLE: usize = 16;

/// Maximum number of pipes, which bounds the data that stalls in them. Beyond it, bytes are copied.
const MAX_PIPES: usize = 64;

static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The idle pipes of a thread, shared by its tunnels: a pipe is drained right after it is
    /// filled, and only a tunnel whose receiver does not read keeps its own.
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    _counted: PipePermit,
}

/// A permit for one pipe.
struct PipePermit;

impl PipePermit {
    fn take() -> Option<Self> {
        let more = |count| (count < MAX_PIPES).then_some(count + 1);
        COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for PipePermit {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// Takes an idle pipe or creates one.
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let counted = PipePermit::take().ok_or(io::ErrorKind::QuotaExceeded)?;
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // If the user's quota of pipe pages is exhausted, the pipe keeps its default size.
        _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(CHUNK));
        Ok(Self { out, into, _counted: counted })
    }

    /// Returns an empty pipe to the pool.
    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < MAX_IDLE {
                pipes.push(self);
            }
        });
    }
}

/// A pipe with bytes in transit.
pub(super) struct FilledPipe {
    pipe: Pipe,
    /// Number of bytes; 0 is the end.
    pub(super) count: usize,
}

/// Moves available bytes from a socket into a pipe, or waits for some. Returns `None` if no pipe is
/// available (too many descriptors or pipes): copying works as well, but slower.
pub(super) async fn fill(from: &TcpStream) -> io::Result<Option<FilledPipe>> {
    from.async_io(Interest::READABLE, || {
        let Ok(pipe) = Pipe::take() else { return Ok(None) };
        match splice_once(from, &pipe.into, CHUNK.cast_unsigned() as usize) {
            Ok(count) => Ok(Some(FilledPipe { pipe, count })),
            Err(error) => {
                pipe.give_back();
                Err(error)
            }
        }
    })
    .await
}

impl FilledPipe {
    /// Moves the bytes to a socket.
    pub(super) async fn drain(self, to: &TcpStream) -> io::Result<()> {
        let Self { pipe, mut count } = self;
        while count > 0 {
            match to.async_io(Interest::WRITABLE, || splice_once(&pipe.out, to, count)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => count -= moved,
            }
        }
        pipe.give_back();
        Ok(())
    }
}

fn splice_once(
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
