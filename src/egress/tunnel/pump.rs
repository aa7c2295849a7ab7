//! One direction of a tunnel.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::TcpStream;

use super::{ByteCounters, SPLICE_AFTER, TunnelError, TunnelLimits, finish, splice};

/// Read size while copying.
const BUFFER: usize = 32 << 10;

thread_local! {
    /// One buffer for all tunnels of a thread: data is written right after it is read, and only
    /// what the receiver does not accept yet is stored with the tunnel.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; BUFFER].into());
}

/// One direction: bytes from one connection to another.
pub(super) struct Direction<'a> {
    pub(super) from: &'a TcpStream,
    pub(super) to: &'a TcpStream,
    pub(super) count: &'a AtomicU64,
    /// The names of the two sides in errors.
    pub(super) names: [&'static str; 2],
}

/// The result of one round of copying.
enum Round {
    /// The sender has closed its side.
    End,
    /// The number of bytes read, and those not yet written.
    Moved(usize, Vec<u8>),
}

impl Direction<'_> {
    /// Moves bytes until the sender is done, and closes the receiver's side.
    pub(super) async fn pump(
        &self,
        all: &ByteCounters,
        limits: &TunnelLimits,
    ) -> Result<(), TunnelError> {
        if let Some(rate_limiter) = &limits.rate_limiter {
            return self.pump_limited(rate_limiter, all, limits).await;
        }
        let mut carried = 0;
        while carried < SPLICE_AFTER {
            match self.copy().await? {
                0 => return self.end(),
                moved => carried += self.count_bytes(moved, all, limits)?,
            }
        }
        loop {
            let filled = splice::fill(self.from).await.map_err(|error| self.read_error(error))?;
            let moved = match &filled {
                Some(filled) => filled.count,
                None => self.copy().await?,
            };
            // Counted before they are written: a receiver that does not read must not leave the
            // sender's bytes uncounted.
            self.count_bytes(moved, all, limits)?;
            if let Some(filled) = filled {
                filled.drain(self.to).await.map_err(|error| self.write_error(error))?;
            }
            if moved == 0 {
                return self.end();
            }
        }
    }

    pub(super) fn count_bytes(
        &self,
        moved: usize,
        all: &ByteCounters,
        limits: &TunnelLimits,
    ) -> Result<u64, TunnelError> {
        count_bytes(self.count, moved, all, limits.max_bytes)
    }

    pub(super) fn end(&self) -> Result<(), TunnelError> {
        finish(self.to).map_err(|error| self.write_error(error))
    }

    /// Copies available bytes. Returns their number, 0 at the end.
    async fn copy(&self) -> Result<usize, TunnelError> {
        loop {
            self.from.readable().await.map_err(|error| self.read_error(error))?;
            let round = SCRATCH.with_borrow_mut(|buffer| self.round(buffer))?;
            match round {
                None => {}
                Some(Round::End) => return Ok(0),
                Some(Round::Moved(count, remaining)) => {
                    write_all(self.to, &remaining)
                        .await
                        .map_err(|error| self.write_error(error))?;
                    return Ok(count);
                }
            }
        }
    }

    /// Reads and writes once, without waiting. Returns `None` if no data is available yet.
    fn round(&self, buffer: &mut [u8]) -> Result<Option<Round>, TunnelError> {
        let count = match self.from.try_read(buffer) {
            Ok(0) => return Ok(Some(Round::End)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(self.read_error(error)),
        };
        let written = match self.to.try_write(&buffer[..count]) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(self.write_error(error)),
        };
        Ok(Some(Round::Moved(count, buffer[written..count].to_vec())))
    }

    pub(super) fn read_error(&self, source: io::Error) -> TunnelError {
        TunnelError::Io { side: self.names[0], source }
    }

    pub(super) fn write_error(&self, source: io::Error) -> TunnelError {
        TunnelError::Io { side: self.names[1], source }
    }
}

/// Counts bytes of one direction. Fails if both directions together exceed the limit.
pub(crate) fn count_bytes(
    direction: &AtomicU64,
    moved: usize,
    all: &ByteCounters,
    max_bytes: Option<u64>,
) -> Result<u64, TunnelError> {
    let moved = moved as u64;
    direction.fetch_add(moved, Ordering::Relaxed);
    match max_bytes {
        Some(most) if all.total() > most => Err(TunnelError::TooManyBytes(most)),
        _ => Ok(moved),
    }
}

/// Writes all bytes.
pub(crate) async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
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
