//! One direction of a tunnel.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;

use super::{Bounds, Broken, Bytes, SPLICE_AFTER, finish, splice};

/// Bytes that are read at once while copying.
const BUFFER: usize = 32 << 10;

thread_local! {
    /// One buffer for all tunnels of a thread: what is read is written in the same breath, and only
    /// what the other side doesn't take yet is kept with the tunnel.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// Bytes from one connection to another.
pub(super) struct Direction<'a> {
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    pub(super) count: &'a AtomicU64,
    /// What the two sides are called in errors.
    pub(super) names: [&'static str; 2],
}

/// What came of one round of copying.
enum Round {
    /// The other side has sent all it had.
    End,
    /// So many bytes were read, these of them not yet written.
    Moved(usize, Vec<u8>),
}

impl Direction<'_> {
    /// Moves bytes until the sender is done, and tells the receiver so.
    pub(super) async fn pump(&self, all: &Bytes, bounds: &Bounds) -> Result<(), Broken> {
        if let Some(pace) = &bounds.pace {
            return self.pump_at(pace, all, bounds).await;
        }
        let mut carried = 0;
        while carried < SPLICE_AFTER {
            match self.copy().await? {
                0 => return self.end(),
                moved => carried += self.counted(moved, all, bounds)?,
            }
        }
        loop {
            let filled = splice::fill(self.from).await.map_err(|error| self.reading(error))?;
            let moved = match &filled {
                Some(filled) => filled.count,
                None => self.copy().await?,
            };
            // Counted before it is written: a receiver that stands still is no reason to let the
            // sender's bytes go uncounted.
            self.counted(moved, all, bounds)?;
            if let Some(filled) = filled {
                filled.drain(self.to).await.map_err(|error| self.writing(error))?;
            }
            if moved == 0 {
                return self.end();
            }
        }
    }

    pub(super) fn counted(
        &self,
        moved: usize,
        all: &Bytes,
        bounds: &Bounds,
    ) -> Result<u64, Broken> {
        let moved = moved as u64;
        self.count.fetch_add(moved, Ordering::Relaxed);
        match bounds.max_bytes {
            Some(most) if all.total() > most => Err(Broken::TooManyBytes(most)),
            _ => Ok(moved),
        }
    }

    pub(super) fn end(&self) -> Result<(), Broken> {
        finish(self.to).map_err(|error| self.writing(error))
    }

    /// Copies what is there. Returns how many bytes, 0 at the end.
    async fn copy(&self) -> Result<usize, Broken> {
        loop {
            self.from.readable().await.map_err(|error| self.reading(error))?;
            let round = SCRATCH.with_borrow_mut(|buffer| self.round(buffer))?;
            match round {
                None => {}
                Some(Round::End) => return Ok(0),
                Some(Round::Moved(count, left)) => {
                    write_all(self.to, &left).await.map_err(|error| self.writing(error))?;
                    return Ok(count);
                }
            }
        }
    }

    /// Reads and writes once, without waiting. `None` where there is nothing to read yet.
    fn round(&self, buffer: &mut [u8]) -> Result<Option<Round>, Broken> {
        let count = match self.from.try_read(buffer) {
            Ok(0) => return Ok(Some(Round::End)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(self.reading(error)),
        };
        let written = match self.to.try_write(&buffer[..count]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(self.writing(error)),
        };
        Ok(Some(Round::Moved(count, buffer[written..count].to_vec())))
    }

    pub(super) fn reading(&self, source: io::Error) -> Broken {
        Broken::Io { side: self.names[0], source }
    }

    pub(super) fn writing(&self, source: io::Error) -> Broken {
        Broken::Io { side: self.names[1], source }
    }
}

/// Writes all of it.
pub(in crate::egress) async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
