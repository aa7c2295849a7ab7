//! The sockets in a microVM's network namespace.
//!
//! They are created on a thread that has entered the namespace and can be served from any other: a
//! socket stays in the namespace of its creation. Every address in the namespace is local, so a
//! listener on all addresses accepts connections to any.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::buffers;
use super::packets::filter;
use super::packets::{ListeningPorts, PacketWatch};
use super::pending::PendingSockets;
use super::policy::Policy;
use mayfly_failure::{Code, Failure};

/// The port of the DNS stub on the gateway.
pub const DNS_PORT: u16 = 53;

/// The port of the forward proxy on the gateway: squid's.
pub const PROXY_PORT: u16 = 3128;

/// The port to which one nftables rule redirects connections to all ports, where the policy
/// intercepts them all. Its value is arbitrary: accepted connections keep their own destination.
const CATCH_ALL_PORT: u16 = 3129;

/// Accept backlog of each port, in the kernel.
const BACKLOG: i32 = 512;

/// An error in creating the listeners.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A socket can't be created.
    #[error("can't listen on {address} in the microVM's network namespace")]
    Socket {
        /// The address.
        address: SocketAddrV4,
        /// The I/O error.
        #[source]
        source: io::Error,
    },
    /// The packet socket can't be created.
    #[error("can't open a packet socket in the microVM's network namespace")]
    Packets(#[source] io::Error),
    /// The nft program can't be run.
    #[error("can't run nft")]
    Nft(#[source] io::Error),
    /// The nft program could not set the rule; the text is its output.
    #[error("nft failed to set the rule in the microVM's network namespace: {0}")]
    Rule(String),
}

impl Failure for ListenError {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Socket { .. } | Self::Packets(_) => None,
            Self::Nft(_) | Self::Rule(_) => Some(
                "Policies with mode open or audit need the program nft (package nftables) and a \
                 kernel with nft_tproxy; enforce and none don't."
                    .into(),
            ),
        }
    }
}

/// The sockets of one microVM.
#[derive(Debug)]
pub struct Listeners {
    pub(super) dns: UdpSocket,
    pub(super) tcp: Vec<TcpListener>,
    pub(super) packets: PacketWatch,
    pub(super) pending: PendingSockets,
}

/// Creates the sockets that a policy needs, in the network namespace of the calling thread, which
/// must be the microVM's own, with `gateway` on an interface in it.
pub fn listen(policy: &Policy, gateway: Ipv4Addr) -> Result<Listeners, ListenError> {
    let every_port = policy.intercepts_every_port();
    let ports = (!every_port).then(|| policy.ports());
    let listening = ListeningPorts { ports, gateway };
    let packets = PacketWatch::new(listening.clone()).map_err(ListenError::Packets)?;
    let pending = PendingSockets::new(listening).map_err(ListenError::Packets)?;
    let at = SocketAddrV4::new;
    let dns = bind(at(gateway, DNS_PORT), Type::DGRAM, gateway)?.into();
    let mut addresses = Vec::new();
    if every_port {
        addresses.push(at(Ipv4Addr::UNSPECIFIED, CATCH_ALL_PORT));
    } else {
        let ports = policy.ports();
        let own = [DNS_PORT, PROXY_PORT].into_iter().filter(|port| !ports.contains(port));
        addresses.extend(own.map(|port| at(gateway, port)));
        addresses.extend(ports.iter().map(|port| at(Ipv4Addr::UNSPECIFIED, *port)));
    }
    let tcp = addresses
        .into_iter()
        .map(|address| bind(address, Type::STREAM, gateway).map(TcpListener::from))
        .collect::<Result<_, _>>()?;
    if every_port {
        catch_all()?;
    }
    Ok(Listeners { dns, tcp, packets, pending })
}

fn bind(address: SocketAddrV4, kind: Type, gateway: Ipv4Addr) -> Result<Socket, ListenError> {
    let make = || {
        let protocol = if kind == Type::STREAM { Protocol::TCP } else { Protocol::UDP };
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        if address.port() == CATCH_ALL_PORT && kind == Type::STREAM {
            // Only a transparent socket may receive connections to other addresses and ports.
            socket.set_ip_transparent_v4(true)?;
        }
        socket.bind(&SockAddr::from(address))?;
        if kind == Type::STREAM {
            buffers::limit_listener_buffers(&socket)?;
            socket.attach_filter(&filter::listener_filter(gateway))?;
            socket.listen(BACKLOG)?;
        }
        Ok(socket)
    };
    make().map_err(|source| ListenError::Socket { address, source })
}

/// Redirects all TCP connections in the namespace, to any port, to one listener.
fn catch_all() -> Result<(), ListenError> {
    let rules = format!(
        "table ip mayfly {{\n\
         chain egress {{\n\
         type filter hook prerouting priority mangle\n\
         meta l4proto tcp tproxy to :{CATCH_ALL_PORT} accept\n\
         }}\n\
         }}\n"
    );
    // Unprivileged users often have no sbin directory in their PATH.
    let program = ["/usr/sbin/nft", "/sbin/nft"].into_iter().find(|path| Path::new(path).exists());
    let mut child = Command::new(program.unwrap_or("nft"))
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(ListenError::Nft)?;
    if let Some(mut stdin) = child.stdin.take() {
        io::Write::write_all(&mut stdin, rules.as_bytes()).map_err(ListenError::Nft)?;
    }
    let output = child.wait_with_output().map_err(ListenError::Nft)?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(ListenError::Rule(stderr.lines().next().unwrap_or("no reason given").to_owned()))
}
