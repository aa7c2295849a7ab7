//! Moves bytes between a guest and a destination until both are done.
//!
//! Bytes are copied through one buffer per thread, and moved by `splice(2)` without coming to user
//! space once a direction has carried [`SPLICE_AFTER`] bytes: short exchanges gain nothing by it.
//! Each side's end of sending is passed on by itself (half-close).

mod paced;
mod pump;
mod splice;

use std::net::Shutdown;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::idle::nothing_passes;
use super::pace::Pace;
use super::record::Bytes;
use super::verdict::Cause;
use pump::Direction;

pub(super) use pump::write_all;

/// How many bytes a direction carries by copying before it splices.
const SPLICE_AFTER: u64 = 64 << 10;

/// Why a tunnel ended otherwise than by both sides having sent all they had.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// One side's connection failed.
    #[error("the connection to the {side} failed: {source}")]
    Io {
        /// Whose.
        side: &'static str,
        /// How.
        source: std::io::Error,
    },
    /// Nothing passed in either direction for too long.
    #[error("nothing passed for {} s", .0.as_secs())]
    Idle(Duration),
    /// The rule's bound on bytes is reached.
    #[error("more than the {0} bytes that the rule allows")]
    TooManyBytes(u64),
    /// The microVM is going away.
    #[error("the microVM ended")]
    Cancelled,
    /// What the guest said first is not what may pass.
    #[error(transparent)]
    Refused(#[from] Cause),
}

/// What bounds a tunnel.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// The longest time in which nothing passes.
    pub idle: Duration,
    /// The most bytes, both directions together.
    pub max_bytes: Option<u64>,
    /// How fast, where a rule bounds that.
    pub pace: Option<Arc<Pace>>,
    /// Ends it when the microVM goes away.
    pub cancel: CancellationToken,
}

/// What bytes are moved between.
pub struct Relay<'a> {
    /// The guest's connection.
    pub guest: &'a TcpStream,
    /// The destination's.
    pub destination: &'a TcpStream,
    /// Counts them.
    pub bytes: &'a Bytes,
    /// What bounds them.
    pub bounds: &'a Bounds,
}

impl Relay<'_> {
    /// Moves bytes until both sides are done. The first bytes of each direction are moved by an
    /// entrance, each while the other goes on: in many protocols the destination speaks first.
    pub async fn run(
        self,
        from_guest: impl Future<Output = Result<(), Broken>>,
        from_destination: impl Future<Output = Result<(), Broken>>,
    ) -> Result<(), Broken> {
        let Self { guest, destination, bytes, bounds } = self;
        let up = Direction { from: guest, to: destination, count: &bytes.up, names: GUEST_FIRST };
        let down =
            Direction { from: destination, to: guest, count: &bytes.down, names: GUEST_LAST };
        let up = async {
            from_guest.await?;
            up.pump(bytes, bounds).await
        };
        let down = async {
            from_destination.await?;
            down.pump(bytes, bounds).await
        };
        let result = tokio::select! {
            result = async { tokio::try_join!(up, down) } => result.map(|_| ()),
            broken = watch(bytes, bounds) => Err(broken),
        };
        if result.is_err() {
            reset(guest);
            reset(destination);
        }
        result
    }
}

const GUEST_FIRST: [&str; 2] = ["guest", "destination"];
const GUEST_LAST: [&str; 2] = ["destination", "guest"];

/// Waits until nothing has passed for too long or the microVM goes away.
async fn watch(bytes: &Bytes, bounds: &Bounds) -> Broken {
    tokio::select! {
        () = bounds.cancel.cancelled() => Broken::Cancelled,
        () = nothing_passes(|| bytes.total(), bounds.idle) => Broken::Idle(bounds.idle),
    }
}

/// Makes the close of a connection a reset, so that the other side sees that it didn't end well.
pub fn reset(stream: &TcpStream) {
    // Fails only on what is no socket.
    _ = stream.set_zero_linger();
}

/// Tells the other side that no more will be sent.
fn finish(stream: &TcpStream) -> std::io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        // It has gone already.
        Err(error) if error.kind() == std::io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}

#[cfg(test)]
#[path = "tunnel_tests.rs"]
mod tests;
