//! One direction of a rate-limited tunnel.

use std::io;

use super::pump::{Direction, write_all};
use super::{ByteCounters, TunnelError, TunnelLimits};
use crate::rate_limiter::RateLimiter;

/// Maximum bytes that are buffered while they wait.
const MAX_CHUNK: usize = 16 << 10;

impl Direction<'_> {
    /// Copies bytes at the limited rate until the sender is done. `splice(2)` would gain nothing
    /// here.
    pub(super) async fn pump_limited(
        &self,
        rate_limiter: &RateLimiter,
        all: &ByteCounters,
        limits: &TunnelLimits,
    ) -> Result<(), TunnelError> {
        let mut buffer = vec![0; rate_limiter.chunk_size(MAX_CHUNK)];
        loop {
            self.from.readable().await.map_err(|error| self.read_error(error))?;
            let count = match self.from.try_read(&mut buffer) {
                Ok(0) => return self.end(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(self.read_error(error)),
            };
            self.count_bytes(count, all, limits)?;
            rate_limiter.wait(count).await;
            write_all(self.to, &buffer[..count]).await.map_err(|error| self.write_error(error))?;
        }
    }
}
