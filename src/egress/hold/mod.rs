//! Holds a guest's connections until their destinations have answered: a guest that connects is told
//! what the destination says, that it is there, refuses, or can't be reached.
//!
//! The listeners' filter keeps a guest's SYN from them. A packet socket sees it; here it is held, its
//! destination is dialled, and then the SYN is sent again by `lo`, whereupon the listener answers it
//! and the guest comes; or the guest is answered as the destination answered. This folder owns what is
//! held. What a connection may reach, and how, it asks elsewhere.
//!
//! ```text
//! guest ── SYN ──▶ packet socket ─▶ segment ─▶ table ─▶ transparent::reach ─▶ the outside
//!                                                │             │
//! guest ◀── RST, ICMP ── raw socket ◀── answer ◀─┼── failed ◀──┤
//!          listener ◀── SYN by lo ◀─────┘        └── ready ◀───┘
//! ```

mod answer;
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

pub use answer::again;
pub use segment::{Ends, Segment, Syn};
pub use table::{Meeting, Table};

use super::carry::Plan;
use super::listen::{DNS_PORT, PROXY_PORT};
use super::packets::Listening;
use super::packets::filter::{ATTEMPTS, NOTHING};
use super::packets::socket::PacketSocket;
use super::shared::Shared;
use super::transparent::{self, HTTP_PORT, Reached};
use super::verdict::{Cause, Verdict};

/// `EtherType` of IPv4 (IEEE 802 numbers).
const IPV4: u16 = 0x0800;

/// `IPPROTO_RAW` of `raw(7)`: whoever sends writes the IP header.
const RAW: i32 = 255;

/// The sockets, in the namespace.
#[derive(Debug)]
pub(super) struct Sockets {
    packets: PacketSocket,
    raw: Socket,
    listening: Listening,
}

impl Sockets {
    /// Makes them in the network namespace of the calling thread.
    pub(super) fn new(listening: Listening) -> io::Result<Self> {
        let packets = PacketSocket::new(&ATTEMPTS)?;
        let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(RAW)))?;
        raw.attach_filter(&NOTHING)?;
        raw.set_nonblocking(true)?;
        Ok(Self { packets, raw, listening })
    }
}

/// What is held of a connection.
pub(super) struct Held {
    pub(super) plan: Arc<Plan>,
    /// It counts as open.
    pub(super) permit: OwnedSemaphorePermit,
    /// Dropping it ends the dialling.
    _dialling: DropGuard,
}

/// The connections that are held, and how their destinations were reached.
pub(super) type Holds = Table<Held, Reached>;

/// Holds connections until it is dropped.
pub(super) async fn serve(shared: Arc<Shared>, sockets: Sockets) -> io::Result<()> {
    let Sockets { packets, raw, listening } = sockets;
    let packets = packets.begin()?;
    let (guest, gateway) = (shared.recorder.guest(), shared.gateway);
    let holder = Arc::new(Holder { shared, raw });
    let mut dials = JoinSet::new();
    let is_held = |ends: &Ends| {
        let (ip, port) = (*ends.to.ip(), ends.to.port());
        let is_own = ip == gateway && matches!(port, DNS_PORT | PROXY_PORT);
        *ends.guest.ip() == guest && !is_own && listening.accepts(port)
    };
    loop {
        while dials.try_join_next().is_some() {}
        let turn = packets.turn(|ether_type, bytes| {
            if ether_type != IPV4 {
                return;
            }
            match Segment::read(bytes) {
                Some(Segment::Syn(syn)) if is_held(&syn.ends()) => holder.begin(syn, &mut dials),
                Some(Segment::Reset(ends)) => holder.give_up(&ends),
                _ => {}
            }
        });
        turn.await?;
    }
}

struct Holder {
    shared: Arc<Shared>,
    raw: Socket,
}

impl Holder {
    fn begin(self: &Arc<Self>, syn: Syn, dials: &mut JoinSet<()>) {
        let met = self.shared.holds().meet(&syn);
        match met {
            Meeting::New => {}
            Meeting::Waiting => return,
            Meeting::Ready => return self.send(&again(&syn), *syn.ends().to.ip()),
        }
        let plan = Arc::new(transparent::plan(&self.shared, syn.ends().to));
        if let Verdict::Refused(cause) = &plan.verdict
            && plan.port != HTTP_PORT
        {
            return self.refuse(&plan, &syn, cause.clone());
        }
        let Some(permit) = self.room_for(&plan, &syn) else { return };
        let token = CancellationToken::new();
        let dialling = token.clone().drop_guard();
        let held = Held { plan: Arc::clone(&plan), permit, _dialling: dialling };
        let ticket = self.shared.holds().insert(syn, held);
        let holder = Arc::clone(self);
        dials.spawn(async move {
            token.run_until_cancelled(holder.hold(ticket, &plan)).await;
        });
    }

    /// Room for one more. A SYN that has none is left without an answer, as by a stack whose queue is
    /// full: its client sends it again. Only where nothing but open connections are in its way, it is
    /// refused.
    fn room_for(&self, plan: &Plan, syn: &Syn) -> Option<OwnedSemaphorePermit> {
        let mut holds = self.shared.holds();
        if !holds.may_add(*syn.ends().to.ip()) {
            drop(holds);
            plan.refuse(&self.shared, Cause::TooManyConnections);
            return None;
        }
        if !holds.is_full()
            && let Ok(permit) = Arc::clone(&self.shared.open).try_acquire_owned()
        {
            return Some(permit);
        }
        let displaced = holds.displace();
        drop(holds);
        let Some((Held { plan: displaced, permit, .. }, _)) = displaced else {
            self.refuse(plan, syn, Cause::TooManyConnections);
            return None;
        };
        displaced.refuse(&self.shared, Cause::TooManyConnections);
        Some(permit)
    }

    /// Reaches the destination and answers the guest, who then has some time to come.
    async fn hold(&self, ticket: u64, plan: &Plan) {
        match transparent::reach(&self.shared, plan).await {
            Ok(reached) => {
                let syn = self.shared.holds().ready(ticket, reached);
                if let Ok(syn) = syn {
                    self.send(&again(&syn), *syn.ends().to.ip());
                }
                sleep(self.shared.limits.opening).await;
                let left = self.shared.holds().remove(ticket);
                if let Some((_, held, reached)) = left {
                    self.left(&held.plan, reached.as_ref());
                }
            }
            Err(cause) => {
                let failed = self.shared.holds().remove(ticket);
                if let Some((syn, held, _)) = failed {
                    self.refuse(&held.plan, &syn, cause);
                }
            }
        }
    }

    /// The guest has given a connection up.
    fn give_up(&self, ends: &Ends) {
        let left = self.shared.holds().forget(ends);
        if let Some((held, reached)) = left {
            self.left(&held.plan, reached.as_ref());
        }
    }

    /// Records a connection for which its guest did not come.
    fn left(&self, plan: &Plan, reached: Option<&Reached>) {
        match reached.map(Reached::peer) {
            None => plan.refuse(&self.shared, Cause::ClientGone),
            // Recorded as what it is.
            Some(None) => {}
            Some(Some(peer)) => {
                let mut flow = plan.begin(&self.shared);
                flow.connected_to(peer.clone());
                flow.ended_by(Cause::ClientGone);
            }
        }
    }

    /// Records why a connection goes no further, and tells its guest: by a reset where somebody said
    /// no, else as a router that can't reach it.
    fn refuse(&self, plan: &Plan, syn: &Syn, cause: Cause) {
        let is_answer =
            !cause.is_failure() || matches!(cause, Cause::ConnectRefused | Cause::Parent(_));
        plan.refuse(&self.shared, cause);
        let packet = if is_answer {
            answer::refusal(syn)
        } else {
            answer::unreachable(syn, self.shared.gateway)
        };
        self.send(&packet, *syn.ends().guest.ip());
    }

    /// Sends a packet. Where there is no room for it, its guest will send the SYN again.
    fn send(&self, packet: &[u8], to: Ipv4Addr) {
        let to = SockAddr::from(std::net::SocketAddrV4::new(to, 0));
        _ = self.raw.send_to(packet, &to);
    }
}
