//! Packet sockets: packets as they arrive in the namespace, read in batches that leave time for
//! other tasks.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Duration, sleep};

use super::filter::SNAP_LENGTH;

/// Every protocol, in network byte order as `socket(2)` takes it (`ETH_P_ALL` of
/// `linux/if_ether.h`).
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;

/// Packets per batch. A full batch is followed by a pause for other tasks; packets that arrive
/// meanwhile wait in the socket, and those without room there are counted as dropped.
const BATCH: usize = 128;
const BATCH_PAUSE: Duration = Duration::from_millis(5);

/// A packet socket before it is registered with the runtime.
#[derive(Debug)]
pub(in super::super) struct PacketSocket(OwnedFd);

/// A packet socket that is being read.
pub(in super::super) struct PacketReader(AsyncFd<OwnedFd>);

impl PacketSocket {
    /// Creates the socket in the network namespace of the calling thread. There should be no guest
    /// in it yet: packets that arrive before the filter is set are not filtered.
    pub(in super::super) fn new(filter: &[SockFilter]) -> io::Result<Self> {
        let protocol = Protocol::from(ALL_PROTOCOLS);
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
        socket.attach_filter(filter)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket.into()))
    }

    pub(in super::super) fn into_reader(self) -> io::Result<PacketReader> {
        // SAFETY: an `OwnedFd` is the same open descriptor from here until it is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        Ok(PacketReader(socket))
    }
}

impl PacketReader {
    /// Waits for packets and passes each packet of a batch to `take`: its `EtherType`, and its
    /// first bytes after the link header.
    pub(in super::super) async fn read_batch(
        &self,
        mut take: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let mut ready = self.0.readable().await?;
        for _ in 0..BATCH {
            let mut buffer = [0; SNAP_LENGTH as usize];
            let receive = |socket: &AsyncFd<OwnedFd>| receive(socket.get_ref(), &mut buffer);
            let Ok(received) = ready.try_io(receive) else { return Ok(()) };
            // An error concerns an earlier packet.
            if let Ok((length, ether_type)) = received {
                take(ether_type, &buffer[..length]);
            }
        }
        sleep(BATCH_PAUSE).await;
        Ok(())
    }

    /// Returns the number of packets that the kernel dropped since the last call.
    pub(super) fn take_dropped(&self) -> io::Result<u64> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&statistics)).unwrap_or(0);
        // SAFETY: the kernel writes at most `length` bytes, which is the size of `statistics`, and
        // both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.get_ref().as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result == 0 { Ok(statistics.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Receives the next packet. Returns its length and `EtherType`.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, u16)> {
    let (length, from) = recvfrom::<LinkAddr>(socket.as_raw_fd(), buffer)?;
    let ether_type = from.map_or(0, |from| u16::from_be(from.protocol()));
    Ok((length.min(buffer.len()), ether_type))
}
