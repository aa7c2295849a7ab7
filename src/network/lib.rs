//! The network of one microVM: an isolated namespace.
//!
//! The namespace has a loopback device, a tap device with the gateway's address, and one route that
//! makes every address local. So every packet of the guest ends in the namespace: at a listener, or
//! with an immediate refusal. There is no route out, no bridge and no address pool, and the host's
//! own network does not change. The namespace has no name: it exists as long as the descriptors in
//! [`Namespace`].
//!
//! Every microVM has the same addresses, because no two share a network.
//!
//! Owns the namespace and the tap. Does not depend on QEMU, policies or the channel.

mod tap;

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use futures_util::TryStreamExt;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use mayfly_failure::{Code, Failure};
use mayfly_host::check::HostCheck;

/// The gateway's address: the host's end of the tap.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// The guest's address.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// Length of the common prefix in bits. It contains no other host, so a guest sends packets for all
/// other addresses to the gateway, which refuses them at once, instead of resolving neighbors.
pub const PREFIX: u8 = 30;
/// Maximum packet size on the tap, in bytes.
pub const MTU: u16 = 1500;
/// The guest's hardware address: locally administered, the same in every microVM.
pub const GUEST_MAC: &str = "02:00:00:00:00:02";

/// `RT_TABLE_LOCAL` of `rtnetlink(7)`: the table of local addresses.
const LOCAL_TABLE: u32 = 255;

/// An error of creating the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace could not be created.
    #[error("can't create a network namespace")]
    Namespace(#[source] io::Error),
    /// `/dev/net/tun` can't be opened.
    #[error("can't open /dev/net/tun")]
    TunDevice(#[source] io::Error),
    /// The tap device could not be created.
    #[error("can't create a tap device")]
    Tap(#[source] io::Error),
    /// An address, link or route could not be set up.
    #[error("can't set up {0} in the network namespace")]
    Setup(&'static str, #[source] rtnetlink::Error),
    /// The thread in the namespace, or its runtime, could not be started.
    #[error("can't start a thread in the network namespace")]
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
            Self::TunDevice(error) => Some(tun_fix_hint(error).to_owned()),
            Self::Namespace(_) => Some("run mayfly doctor: it checks user namespaces".to_owned()),
            _ => None,
        }
    }
}

fn tun_fix_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "let users open it: sudo chmod 0666 /dev/net/tun",
        _ => "load the driver: sudo modprobe tun",
    }
}

/// Checks for `mayfly doctor` that the tun device can be opened.
pub fn check_tun() -> HostCheck {
    match tap::open_device() {
        Ok(_) => HostCheck::good(tap::DEVICE, "can be opened"),
        Err(error) => HostCheck::bad(tap::DEVICE, &error, tun_fix_hint(&error)),
    }
}

/// Fails if the tun device can't be opened.
pub fn require_tun() -> Result<(), NetworkError> {
    tap::open_device().map(drop).map_err(NetworkError::TunDevice)
}

/// A microVM's network namespace and its tap device.
#[derive(Debug)]
pub struct Namespace {
    // Keeps the namespace alive after its thread has ended.
    _namespace: File,
    tap: OwnedFd,
}

impl Namespace {
    /// Creates the namespace and calls `inside` in it; sockets stay in the namespace in which they
    /// are created. Requires `CAP_NET_ADMIN` in the current user namespace.
    ///
    /// A namespace belongs to a thread, so a new thread creates it, sets it up and ends.
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
                let created =
                    set_up().map_err(E::from).and_then(|namespace| Ok((namespace, inside()?)));
                // The receiver is gone only if the whole microVM is being abandoned.
                let _ = sender.send(created);
            })
            .map_err(NetworkError::Thread)?;
        let created = receiver.await;
        let joined = thread.join();
        match (created, joined) {
            (Ok(created), Ok(())) => created,
            _ => Err(NetworkError::Thread(io::Error::other("the thread panicked")).into()),
        }
    }

    /// Returns the tap device, for QEMU.
    pub fn tap(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

/// Settings of the namespace: no IPv6, no response to pings (every address is local, so all would
/// respond), and no rate limit for refusals.
const SYSCTLS: [(&str, &str); 4] = [
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/icmp_echo_ignore_all", "1"),
    ("ipv4/icmp_ratelimit", "0"),
];

fn set_sysctls() {
    for (name, value) in SYSCTLS {
        // In a container `/proc/sys` is often read-only. The network is isolated anyway; only
        // refusals are slower.
        let _ = std::fs::write(format!("/proc/sys/net/{name}"), value);
    }
}

/// Moves the calling thread into a new namespace and sets it up.
fn set_up() -> Result<Namespace, NetworkError> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| NetworkError::Namespace(error.into()))?;
    let namespace = File::open("/proc/thread-self/ns/net").map_err(NetworkError::Namespace)?;
    set_sysctls();
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
        let result = configure(&handle, &name).await;
        tasks.shutdown().await;
        result
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
