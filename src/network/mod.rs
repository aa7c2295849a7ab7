//! The network of one microVM: a namespace with nothing in it.
//!
//! The namespace has a loopback device, a tap device with the gateway's address, and one route:
//! every address is local. So whatever the guest addresses ends in the namespace, at a listener if
//! there is one and with an immediate refusal if not; there is no way out, no bridge, no address
//! pool, and nothing in the host's own network changes. No name refers to the namespace: it lives
//! as long as the descriptors that [`Namespace`] holds.
//!
//! Every microVM has the same addresses, because no two ever share a network.
//!
//! Owns the namespace and the tap. Knows nothing of QEMU, of policies, or of the channel.

mod tap;

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::failure::{Code, Failure};
use crate::host::check::Check;

/// The gateway's address: the host's end of the tap.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// Length of the prefix that both are in, in bits. Nothing else is in it: a guest sends what is for
/// any other address to the gateway, which refuses it at once, instead of asking for a neighbour.
pub const PREFIX: u8 = 30;
/// Largest packet on the tap, in bytes.
pub const MTU: u16 = 1500;
/// The guest's hardware address: locally administered, the same in every microVM.
pub const GUEST_MAC: &str = "02:00:00:00:00:02";

/// `RT_TABLE_LOCAL` of `rtnetlink(7)`: the table of addresses that end here.
const LOCAL_TABLE: u32 = 255;

/// The namespace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No new network namespace.
    #[error("can't make a network namespace")]
    Namespace(#[source] io::Error),
    /// `/dev/net/tun` does not open.
    #[error("can't open /dev/net/tun")]
    TunDevice(#[source] io::Error),
    /// The tap device was refused.
    #[error("can't make a tap device")]
    Tap(#[source] io::Error),
    /// An address, link or route was refused.
    #[error("can't set up {0} in the network namespace")]
    Setup(&'static str, #[source] rtnetlink::Error),
    /// The thread that enters the namespace did not start, or its tools did not.
    #[error("can't work in the network namespace")]
    Thread(#[source] io::Error),
}

impl Failure for NetworkError {
    fn code(&self) -> Code {
        match self {
            Self::TunDevice(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Code::Forbidden
            }
            _ => Code::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::TunDevice(error) => Some(tun_remedy(error).to_owned()),
            Self::Namespace(_) => Some("run mayfly doctor".to_owned()),
            _ => None,
        }
    }
}

fn tun_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "let users open it: sudo chmod 0666 /dev/net/tun",
        _ => "load the driver: sudo modprobe tun",
    }
}

/// Whether a tap device can be made, for `mayfly doctor`.
pub fn check_tun() -> Check {
    match tap::open_device() {
        Ok(_) => Check::good(tap::DEVICE, "opens"),
        Err(error) => Check::bad(tap::DEVICE, &error, tun_remedy(&error)),
    }
}

/// The same, as a condition.
pub fn require_tun() -> Result<(), NetworkError> {
    tap::open_device().map(drop).map_err(NetworkError::TunDevice)
}

/// A microVM's network namespace and its tap device.
#[derive(Debug)]
pub struct Namespace {
    // Keeps the namespace alive after the thread that made it has ended.
    _namespace: File,
    tap: OwnedFd,
}

impl Namespace {
    /// Makes it, and does what is to be done `inside` it: a socket stays in the namespace where
    /// it was made. Needs the capability to administer networks in the current user namespace.
    ///
    /// A namespace belongs to a thread, so a thread of its own enters it, sets it up, and ends.
    pub async fn create<T, E>(
        inside: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<(Self, T), E>
    where
        T: Send + 'static,
        E: From<NetworkError> + Send + 'static,
    {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("network".to_owned())
            .spawn(move || {
                let made = set_up().map_err(E::from).and_then(|made| Ok((made, inside()?)));
                // The receiver is gone only where the whole microVM is being given up.
                let _ = sender.send(made);
            })
            .map_err(NetworkError::Thread)?;
        let made = receiver.await;
        let joined = thread.join();
        match (made, joined) {
            (Ok(made), Ok(())) => made,
            _ => Err(NetworkError::Thread(io::Error::other("the thread panicked")).into()),
        }
    }

    /// The tap device, for QEMU.
    pub fn tap(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// Switches of the namespace, off or on before anything is in it: no IPv6, no answer to a ping
/// (every address is local, so each would have one), and no limit on how fast refusals are told.
const SWITCHES: [(&str, &str); 4] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/icmp_echo_ignore_all", "1"),
    ("ipv4/icmp_ratelimit", "0"),
];

fn flip_switches() {
    for (name, value) in SWITCHES {
        // In a container `/proc/sys` is often read-only. Nothing gets out without them either:
        // there is no way out; refusals are only told more slowly.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}

/// On the thread that then is in the namespace.
fn set_up() -> Result<Namespace, NetworkError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Namespace(error.into()))?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(NetworkError::Namespace)?;
    flip_switches();
    let device = tap::open_device().map_err(NetworkError::TunDevice)?;
    let (tap, name) = tap::attach(device).map_err(NetworkError::Tap)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(NetworkError::Thread)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetworkError::Thread)?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(connection);
        let done = configure(&handle, &name).await;
        tasks.shutdown().await;
        done
    })?;
    Ok(Namespace { _namespace: namespace, tap })
}

async fn configure(netlink: &Handle, tap: &str) -> Result<(), NetworkError> {
    let refused = |what| move |error| NetworkError::Setup(what, error);
    let loopback = link_index(netlink, "lo").await.map_err(refused("the loopback device"))?;
    let tap = link_index(netlink, tap).await.map_err(refused("the tap device"))?;
    let up = |index| netlink.link().set(LinkUnspec::new_with_index(index).up().build()).execute();
    up(loopback).await.map_err(refused("the loopback device"))?;
    let address = netlink.address().add(tap, GATEWAY.into(), PREFIX).execute();
    address.await.map_err(refused("the gateway's address"))?;
    let mtu = LinkUnspec::new_with_index(tap).mtu(MTU.into()).up().build();
    netlink.link().set(mtu).execute().await.map_err(refused("the tap device"))?;
    let everything_is_local = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
        .output_interface(loopback)
        .table_id(LOCAL_TABLE)
        .kind(RouteType::Local)
        .scope(RouteScope::Host)
        .build();
    netlink.route().add(everything_is_local).execute().await.map_err(refused("the local route"))
}

async fn link_index(netlink: &Handle, name: &str) -> Result<u32, rtnetlink::Error> {
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?.ok_or(rtnetlink::Error::RequestFailed)?;
    Ok(link.header.index)
}
