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

/// Bytes that are moved at once, and what a pipe is asked to hold. Four times what a pipe holds by
/// default takes half the processor time for each byte; sixteen times takes little less, but the
/// user's allowance of pipe pages (`pipe-user-pages-soft`) would be used up by few tunnels.
const CHUNK: i32 = 256 << 10;

/// Pipes that a thread keeps while no tunnel needs them.
const SPARE: usize = 16;

/// How many pipes there may be: what stands still in them is as much as that. Beyond, bytes are copied.
const PIPES_AT_MOST: usize = 64;

static COUNT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Tunnels of a thread share its pipes: what goes into one comes out in the same breath, and
    /// only a tunnel whose receiver doesn't take it yet holds on to its own.
    static PIPES: RefCell<Vec<Pipe>> = const { RefCell::new(Vec::new()) };
}

struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
    _counted: Counted,
}

/// One of the pipes that there may be.
struct Counted;

impl Counted {
    fn take() -> Option<Self> {
        let more = |count| (count < PIPES_AT_MOST).then_some(count + 1);
        COUNT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        COUNT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// An empty pipe.
    fn take() -> io::Result<Self> {
        if let Some(pipe) = PIPES.with_borrow_mut(Vec::pop) {
            return Ok(pipe);
        }
        let counted = Counted::take().ok_or(io::ErrorKind::QuotaExceeded)?;
        let (out, into) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        // Where the user has too many pages in pipes it stays as small as it is.
        _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(CHUNK));
        Ok(Self { out, into, _counted: counted })
    }

    /// To be called when it is empty.
    fn give_back(self) {
        PIPES.with_borrow_mut(|pipes| {
            if pipes.len() < SPARE {
                pipes.push(self);
            }
        });
    }
}

/// Bytes on their way.
pub(super) struct Filled {
    pipe: Pipe,
    /// How many; 0 is the end.
    pub(super) count: usize,
}

/// Moves what is there from a socket into a pipe, and waits where nothing is. `None` where there
/// can be no pipe (too many descriptors or pipes): copying does as well, only slower.
pub(super) async fn fill(from: &TcpStream) -> io::Result<Option<Filled>> {
    from.async_io(Interest::READABLE, || {
        let Ok(pipe) = Pipe::take() else { return Ok(None) };
        match once(from, &pipe.into, CHUNK.cast_unsigned() as usize) {
            Ok(count) => Ok(Some(Filled { pipe, count })),
            Err(error) => {
                pipe.give_back();
                Err(error)
            }
        }
    })
    .await
}

impl Filled {
    /// Moves the bytes to a socket.
    pub(super) async fn drain(self, to: &TcpStream) -> io::Result<()> {
        let Self { pipe, mut count } = self;
        while count > 0 {
            match to.async_io(Interest::WRITABLE, || once(&pipe.out, to, count)).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                moved => count -= moved,
            }
        }
        pipe.give_back();
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
