//! Pending connections: holds a guest's connection until its destination has answered, so that the
//! guest gets the destination's result: accepted, refused or unreachable.
//!
//! The listeners' filter drops a guest's SYN. A packet socket receives it; the connection becomes
//! pending and its destination is dialed. Then the SYN is replayed through `lo`, so that the
//! listener accepts the connection; or the guest gets the destination's refusal. This module owns
//! the pending connections. The decision on a connection and its upstream are made elsewhere.
//!
//! ```text
//! guest ── SYN ──▶ packet socket ─▶ segment ─▶ table ─▶ connect_upstream ─▶ destination
//!                                               │             │
//! guest ◀── RST, ICMP ── raw socket ◀── reply ◀─┼── failed ◀──┤
//!        listener ◀── SYN through lo ◀──┘       └── ready ◀───┘
//! ```

mod reply;
mod segment;
mod table;

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use reply::replay_syn;
pub use segment::{Endpoints, Syn, TcpSegment};
pub use table::{PendingTable, SynState};

use super::connection::ConnectionPlan;
use super::listeners::{DNS_PORT, PROXY_PORT};
use super::packets::ListeningPorts;
use super::packets::filter::{ATTEMPT_FILTER, DROP_FILTER};
use super::packets::socket::PacketSocket;
use super::state::GateState;
use super::transparent::{self, HTTP_PORT, Upstream};
use super::verdict::{RefusalCause, Verdict};

/// `EtherType` of IPv4 (IEEE 802 numbers).
const IPV4: u16 = 0x0800;

/// `IPPROTO_RAW` of `raw(7)`: the sender writes the IP header.
const RAW: i32 = 255;

/// The sockets in the namespace.
#[derive(Debug)]
pub(super) struct PendingSockets {
    packets: PacketSocket,
    raw: Socket,
    listening: ListeningPorts,
}

impl PendingSockets {
    /// Creates the sockets in the network namespace of the calling thread.
    pub(super) fn new(listening: ListeningPorts) -> io::Result<Self> {
        let packets = PacketSocket::new(&ATTEMPT_FILTER)?;
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
        raw.attach_filter(&DROP_FILTER)?;
        raw.set_nonblocking(true)?;
        Ok(Self { packets, raw, listening })
    }
}

/// A pending connection.
pub(super) struct PendingConnection {
    pub(super) plan: Arc<ConnectionPlan>,
    /// Pending connections count as open.
    pub(super) permit: OwnedSemaphorePermit,
    /// Dropping it cancels the dialing.
    _cancel_dialing: DropGuard,
}

/// The pending connections with their upstreams.
pub(super) type PendingConnections = PendingTable<PendingConnection, Upstream>;

/// Handles SYNs and resets until it is dropped.
pub(super) async fn serve(shared: Arc<GateState>, sockets: PendingSockets) -> io::Result<()> {
    let PendingSockets { packets, raw, listening } = sockets;
    let packets = packets.into_reader()?;
    let (guest, gateway) = (shared.recorder.guest(), shared.gateway);
    let server = Arc::new(PendingServer { shared, raw });
    let mut dials = JoinSet::new();
    let is_intercepted = |endpoints: &Endpoints| {
        let (ip, port) = (*endpoints.destination.ip(), endpoints.destination.port());
        let is_own = ip == gateway && matches!(port, DNS_PORT | PROXY_PORT);
        *endpoints.guest.ip() == guest && !is_own && listening.accepts(port)
    };
    loop {
        while dials.try_join_next().is_some() {}
        let batch = packets.read_batch(|ether_type, bytes| {
            if ether_type != IPV4 {
                return;
            }
            match TcpSegment::parse(bytes) {
                Some(TcpSegment::Syn(syn)) if is_intercepted(&syn.endpoints()) => {
                    server.handle_syn(syn, &mut dials);
                }
                Some(TcpSegment::Reset(endpoints)) => server.abandon(&endpoints),
                _ => {}
            }
        });
        batch.await?;
    }
}

/// Handles the SYNs and resets of a gate.
struct PendingServer {
    shared: Arc<GateState>,
    raw: Socket,
}

impl PendingServer {
    fn handle_syn(self: &Arc<Self>, syn: Syn, dials: &mut JoinSet<()>) {
        let state = self.shared.pending().observe(&syn);
        match state {
            SynState::New => {}
            SynState::Waiting => return,
            SynState::Ready => {
                return self.send(&replay_syn(&syn), *syn.endpoints().destination.ip());
            }
        }
        let plan =
            Arc::new(transparent::plan_connection(&self.shared, syn.endpoints().destination));
        if let Verdict::Refused(cause) = &plan.verdict
            && plan.port != HTTP_PORT
        {
            return self.refuse(&plan, &syn, cause.clone());
        }
        let Some(permit) = self.reserve(&plan, &syn) else { return };
        let token = CancellationToken::new();
        let dialing = token.clone().drop_guard();
        let connection =
            PendingConnection { plan: Arc::clone(&plan), permit, _cancel_dialing: dialing };
        let ticket = self.shared.pending().insert(syn, connection);
        let server = Arc::clone(self);
        dials.spawn(async move {
            token.run_until_cancelled(server.connect(ticket, &plan)).await;
        });
    }

    /// Reserves a permit. Without room, a SYN gets no reply, as from a stack with a full backlog:
    /// its client sends it again. It is refused only if established connections take all the room.
    fn reserve(&self, plan: &ConnectionPlan, syn: &Syn) -> Option<OwnedSemaphorePermit> {
        let mut pending = self.shared.pending();
        if !pending.has_room_for(*syn.endpoints().destination.ip()) {
            drop(pending);
            plan.refuse(&self.shared, RefusalCause::TooManyConnections);
            return None;
        }
        if !pending.is_full()
            && let Ok(permit) = Arc::clone(&self.shared.open).try_acquire_owned()
        {
            return Some(permit);
        }
        let evicted = pending.evict_oldest();
        drop(pending);
        let Some((PendingConnection { plan: evicted, permit, .. }, _)) = evicted else {
            self.refuse(plan, syn, RefusalCause::TooManyConnections);
            return None;
        };
        evicted.refuse(&self.shared, RefusalCause::TooManyConnections);
        Some(permit)
    }

    /// Connects to the destination and replies to the guest, whose connection must then arrive in
    /// time.
    async fn connect(&self, ticket: u64, plan: &ConnectionPlan) {
        match transparent::connect_upstream(&self.shared, plan).await {
            Ok(upstream) => {
                let syn = self.shared.pending().mark_ready(ticket, upstream);
                if let Ok(syn) = syn {
                    self.send(&replay_syn(&syn), *syn.endpoints().destination.ip());
                }
                sleep(self.shared.limits.opening).await;
                let abandoned = self.shared.pending().remove(ticket);
                if let Some((_, connection, upstream)) = abandoned {
                    self.record_abandoned(&connection.plan, upstream.as_ref());
                }
            }
            Err(cause) => {
                let failed = self.shared.pending().remove(ticket);
                if let Some((syn, connection, _)) = failed {
                    self.refuse(&connection.plan, &syn, cause);
                }
            }
        }
    }

    /// Handles a reset by the guest.
    fn abandon(&self, endpoints: &Endpoints) {
        let abandoned = self.shared.pending().remove_by_endpoints(endpoints);
        if let Some((connection, upstream)) = abandoned {
            self.record_abandoned(&connection.plan, upstream.as_ref());
        }
    }

    /// Records a connection that its guest abandoned.
    fn record_abandoned(&self, plan: &ConnectionPlan, upstream: Option<&Upstream>) {
        match upstream.map(Upstream::peer) {
            None => plan.refuse(&self.shared, RefusalCause::ClientGone),
            // The refusal is recorded already.
            Some(None) => {}
            Some(Some(peer)) => {
                let mut flow = plan.start_flow(&self.shared);
                flow.set_peer(peer.clone());
                flow.set_end_reason(RefusalCause::ClientGone);
            }
        }
    }

    /// Records the refusal of a connection and replies to its guest: with a reset if the policy or
    /// a peer refused it, else with an ICMP error, as from a router.
    fn refuse(&self, plan: &ConnectionPlan, syn: &Syn, cause: RefusalCause) {
        let was_refused = !cause.is_failure()
            || matches!(cause, RefusalCause::ConnectRefused | RefusalCause::Parent(_));
        plan.refuse(&self.shared, cause);
        let packet = if was_refused {
            reply::reset_packet(syn)
        } else {
            reply::unreachable_packet(syn, self.shared.gateway)
        };
        self.send(&packet, *syn.endpoints().guest.ip());
    }

    /// Sends a packet. If the socket's buffer is full, the guest sends the SYN again.
    fn send(&self, packet: &[u8], to: Ipv4Addr) {
        let to = SockAddr::from(std::net::SocketAddrV4::new(to, 0));
        _ = self.raw.send_to(packet, &to);
    }
}
