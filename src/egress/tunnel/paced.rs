//! One direction of a tunnel whose rate is bounded.

use std::io;

use super::pump::{Direction, write_all};
use super::{Bounds, Broken, Bytes};
use crate::egress::pace::Pace;

/// The most bytes that are held while they wait for their turn.
const MOST: usize = 16 << 10;

impl Direction<'_> {
    /// Copies bytes until the sender is done, each only when it may pass: a rate is nothing that
    /// `splice(2)` would make faster.
    pub(super) async fn pump_at(
        &self,
        pace: &Pace,
        all: &Bytes,
        bounds: &Bounds,
    ) -> Result<(), Broken> {
        let mut buffer = vec![0; pace.share(MOST)];
        loop {
            self.from.readable().await.map_err(|error| self.reading(error))?;
            let count = match self.from.try_read(&mut buffer) {
                Ok(0) => return self.end(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(self.reading(error)),
            };
            self.counted(count, all, bounds)?;
            pace.pass(count).await;
            write_all(self.to, &buffer[..count]).await.map_err(|error| self.writing(error))?;
        }
    }
}
