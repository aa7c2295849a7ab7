//! Relays bytes between a guest and a destination until both are done.
//!
//! Bytes are copied through one buffer per thread, and moved by `splice(2)` without a copy to user
//! space once a direction has carried [`SPLICE_AFTER`] bytes: short exchanges gain nothing by it.
//! Each side's end of stream is forwarded separately (half-close).

mod pump;
mod rate_limited;
mod splice;

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::idle::wait_until_idle;
use super::rate_limiter::RateLimiter;
use super::record::ByteCounters;
use super::verdict::RefusalCause;
use pump::Direction;

pub(super) use pump::{count_bytes, write_all};

/// Number of bytes that a direction copies before it splices.
const SPLICE_AFTER: u64 = 64 << 10;

/// Why a tunnel ended other than by both sides closing it.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    /// One side's connection failed.
    #[error("the connection to the {side} failed: {source}")]
    Io {
        /// The side, as named in messages.
        side: &'static str,
        /// The I/O error.
        source: std::io::Error,
    },
    /// No bytes passed in either direction for too long.
    #[error("the connection was idle for {} s", .0.as_secs())]
    Idle(Duration),
    /// The rule's byte limit is exceeded.
    #[error("the connection exceeded the {0} bytes that the rule allows")]
    TooManyBytes(u64),
    /// The microVM is stopping.
    #[error("the microVM stopped")]
    Canceled,
    /// The guest's first bytes are not allowed.
    #[error(transparent)]
    Refused(#[from] RefusalCause),
}

/// The limits of a tunnel.
#[derive(Debug, Clone)]
pub(super) struct TunnelLimits {
    /// Idle timeout.
    pub idle: Duration,
    /// Maximum bytes, both directions together.
    pub max_bytes: Option<u64>,
    /// The rate limiter, if the rule has a maximum rate.
    pub rate_limiter: Option<Arc<RateLimiter>>,
    /// Cancels the tunnel when the microVM stops.
    pub cancel: CancellationToken,
}

/// A relay between two connections.
pub(super) struct Relay<'a> {
    /// The guest's connection.
    pub guest: &'a TcpStream,
    /// The destination's connection.
    pub destination: &'a TcpStream,
    /// The byte counters.
    pub bytes: &'a ByteCounters,
    /// The limits.
    pub limits: &'a TunnelLimits,
}

impl Relay<'_> {
    /// Relays bytes until both sides are done. A future handles the first bytes of each direction,
    /// concurrently with the other direction: in many protocols the server speaks first.
    pub(super) async fn run(
        self,
        from_guest: impl Future<Output = Result<(), TunnelError>>,
        from_destination: impl Future<Output = Result<(), TunnelError>>,
    ) -> Result<(), TunnelError> {
        let Self { guest, destination, bytes, limits } = self;
        let up = Direction { from: guest, to: destination, count: &bytes.up, names: UP_NAMES };
        let down =
            Direction { from: destination, to: guest, count: &bytes.down, names: DOWN_NAMES };
        let up = async {
            from_guest.await?;
            up.pump(bytes, limits).await
        };
        let down = async {
            from_destination.await?;
            down.pump(bytes, limits).await
        };
        let result = tokio::select! {
            result = async { tokio::try_join!(up, down) } => result.map(|_| ()),
            error = watch(bytes, limits) => Err(error),
        };
        if result.is_err() {
            reset(guest);
            reset(destination);
        }
        result
    }
}

const UP_NAMES: [&str; 2] = ["guest", "destination"];
const DOWN_NAMES: [&str; 2] = ["destination", "guest"];

/// Waits until the tunnel is idle for too long or the microVM stops.
async fn watch(bytes: &ByteCounters, limits: &TunnelLimits) -> TunnelError {
    tokio::select! {
        () = limits.cancel.cancelled() => TunnelError::Canceled,
        () = wait_until_idle(|| bytes.total(), limits.idle) => TunnelError::Idle(limits.idle),
    }
}

/// Makes the close of a connection a reset, so that the peer sees an abnormal end.
pub(super) fn reset(stream: &TcpStream) {
    // Fails only on a descriptor that is not a socket.
    _ = stream.set_zero_linger();
}

/// Shuts down the sending direction.
fn finish(stream: &TcpStream) -> std::io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        // It is closed already.
        Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
