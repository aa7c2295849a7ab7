//! How much the kernel holds of a microVM's connections: a bound on all of them together.
//!
//! A guest that sends what its destination does not take, or asks for what it does not take itself,
//! fills the buffers of both sockets. The kernel would let each grow to several MiB. Here the n-th
//! connection that is open at a time gets the n-th part of a budget, so that few have all that they
//! can use, and as many as may be open still have a bound together: a harmonic sum. Only the first
//! few connections to the outside are left to the kernel's own measure, as far routes need more.

use socket2::SockRef;
use tokio::net::TcpStream;

/// The part of the first connection, in each direction, if it could have all of it.
const BUDGET: usize = 4 << 20;
/// The most and the least of a buffer. The kernel takes twice as much, for its own needs.
const MOST: usize = 256 << 10;
const LEAST: usize = 8 << 10;
/// How many connections to the outside have buffers as the kernel measures them.
const FREE: usize = 8;
/// What may be waiting to be sent to a destination that takes nothing.
const UNSENT: u32 = 128 << 10;

/// The size of each buffer of a connection, where so many are open with it.
fn size(open: usize) -> usize {
    (BUDGET / open.max(1)).clamp(LEAST, MOST)
}

/// Bounds the buffers of a connection from the guest, which is near.
pub(super) fn bound_near(guest: &TcpStream, open: usize) {
    set(&SockRef::from(guest), size(open));
}

/// Bounds the buffers of a connection to the outside.
pub(super) fn bound_far(destination: &TcpStream, open: usize) {
    let socket = SockRef::from(destination);
    _ = socket.set_tcp_notsent_lowat(UNSENT);
    if open > FREE {
        set(&socket, size(open));
    }
}

/// Bounds the buffers of what a listener accepts, from the first packet.
pub(super) fn bound_accepted(listener: &socket2::Socket) -> std::io::Result<()> {
    listener.set_recv_buffer_size(MOST)?;
    listener.set_send_buffer_size(MOST)
}

/// Fails only on what is no socket.
fn set(socket: &SockRef<'_>, size: usize) {
    _ = socket.set_recv_buffer_size(size);
    _ = socket.set_send_buffer_size(size);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What all buffers of one kind may take with 1,024 connections.
    const BOUND: usize = 28 << 20;

    proptest! {
        /// Whatever is opened and closed in whatever order, with small ones closed to get large ones.
        #[test]
        fn all_together_have_a_bound(
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
    fn few_connections_have_all_that_they_can_use() {
        assert_eq!([1, 16, 32, 1024].map(size), [MOST, MOST, 128 << 10, LEAST]);
    }
}
