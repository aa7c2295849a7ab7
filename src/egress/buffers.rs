//! Socket buffer sizes: a bound on the kernel memory of all connections of a microVM together.
//!
//! A guest whose destination does not read, or that does not read itself, fills the buffers of both
//! sockets. The kernel would let each grow to several MiB. Here the n-th open connection gets the
//! n-th part of a budget: few connections get all that they can use, and the maximum number of
//! connections still has a common bound (a harmonic sum). Only the first few connections to
//! destinations keep the kernel's automatic sizes, because long routes need larger buffers.

use socket2::SockRef;
use tokio::net::TcpStream;

/// The budget of the first connection, in each direction, before clamping.
const BUDGET: usize = 4 << 20;
/// Maximum and minimum buffer size. The kernel doubles it for bookkeeping.
const MAX_BUFFER: usize = 256 << 10;
const MIN_BUFFER: usize = 8 << 10;
/// Number of connections to destinations that keep the kernel's automatic buffer sizes.
const AUTO_SIZED: usize = 8;
/// Maximum unsent bytes for a destination that does not read.
const UNSENT: u32 = 128 << 10;

/// Returns the size of each buffer of a connection when `open` connections are open.
fn size(open: usize) -> usize {
    (BUDGET / open.max(1)).clamp(MIN_BUFFER, MAX_BUFFER)
}

/// Limits the buffers of a connection from the guest, which is near.
pub(super) fn limit_guest_buffers(guest: &TcpStream, open: usize) {
    set(&SockRef::from(guest), size(open));
}

/// Limits the buffers of a connection to a destination.
pub(super) fn limit_destination_buffers(destination: &TcpStream, open: usize) {
    let socket = SockRef::from(destination);
    _ = socket.set_tcp_notsent_lowat(UNSENT);
    if open > AUTO_SIZED {
        set(&socket, size(open));
    }
}

/// Limits the buffers of the connections that a listener accepts, from their first packet.
pub(super) fn limit_listener_buffers(listener: &socket2::Socket) -> std::io::Result<()> {
    listener.set_recv_buffer_size(MAX_BUFFER)?;
    listener.set_send_buffer_size(MAX_BUFFER)
}

/// Setting fails only on a descriptor that is not a socket.
fn set(socket: &SockRef<'_>, size: usize) {
    _ = socket.set_recv_buffer_size(size);
    _ = socket.set_send_buffer_size(size);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bound on all buffers of one kind with 1,024 connections.
    const BOUND: usize = 28 << 20;

    proptest! {
        /// For any order of opening and closing, including closing small ones to get large ones.
        #[test]
        fn all_buffers_together_have_a_bound(
            steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 0..5000),
        ) {
            let mut open: Vec<usize> = (1..=1024).map(size).collect();
            for (close, which) in steps {
                if close && !open.is_empty() {
                    open.remove(which.index(open.len()));
                } else if open.len() < 1024 {
                    open.push(size(open.len() + 1));
                }
                prop_assert!(open.iter().sum::<usize>() <= BOUND);
            }
        }
    }

    #[test]
    fn few_connections_get_the_maximum_size() {
        assert_eq!([1, 16, 32, 1024].map(size), [MAX_BUFFER, MAX_BUFFER, 128 << 10, MIN_BUFFER]);
    }
}
