//! Configures the loopback interface and `eth0`, with the ioctls of `netdevice(7)`.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use mayfly_protocol::message::Network;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::error::{Context, StepError};

/// The machine's only network interface besides loopback.
const INTERFACE: &str = "eth0";

mod request {
    use libc::{ifreq, rtentry};
    nix::ioctl_write_ptr_bad! {
        /// Sets the address of an interface.
        set_address, libc::SIOCSIFADDR, ifreq
    }
    nix::ioctl_write_ptr_bad! {
        /// Sets the network mask of an interface.
        set_mask, libc::SIOCSIFNETMASK, ifreq
    }
    nix::ioctl_write_ptr_bad! {
        /// Sets the MTU of an interface.
        set_mtu, libc::SIOCSIFMTU, ifreq
    }
    nix::ioctl_write_ptr_bad! {
        /// Sets the flags of an interface.
        set_flags, libc::SIOCSIFFLAGS, ifreq
    }
    nix::ioctl_write_ptr_bad! {
        /// Adds a route.
        add_route, libc::SIOCADDRT, rtentry
    }
}

/// Brings the loopback interface up. The kernel then assigns 127.0.0.1 to it.
pub(crate) fn bring_loopback_up() -> Result<(), StepError> {
    bring_up(&control_socket()?, "lo")
}

/// Configures `eth0`, the default route, and the name server.
pub(crate) fn configure(network: &Network) -> Result<(), StepError> {
    let control = control_socket()?;
    // Must come before the interface is up, or it gets a link-local address. Loopback keeps ::1.
    for interface in ["default", INTERFACE] {
        let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
        match fs::write(&switch, "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.context(|| format!("disable IPv6 on {interface}"))?,
        }
    }
    let mut mtu = interface_request(INTERFACE);
    mtu.ifr_ifru.ifru_mtu = i32::from(network.mtu);
    // SAFETY: the socket is open and the kernel reads one ifreq.
    unsafe { request::set_mtu(control.as_raw_fd(), &raw const mtu) }
        .context(|| format!("set the MTU of {INTERFACE} to {}", network.mtu))?;
    let mut address = interface_request(INTERFACE);
    address.ifr_ifru.ifru_addr = socket_address(Ipv4Addr::from(network.address));
    // SAFETY: as above.
    unsafe { request::set_address(control.as_raw_fd(), &raw const address) }
        .context(|| format!("set the address of {INTERFACE}"))?;
    let mut netmask = interface_request(INTERFACE);
    netmask.ifr_ifru.ifru_netmask = socket_address(mask(network.prefix));
    // SAFETY: as above.
    unsafe { request::set_mask(control.as_raw_fd(), &raw const netmask) }
        .context(|| format!("set the network mask of {INTERFACE}"))?;
    bring_up(&control, INTERFACE)?;
    let gateway = Ipv4Addr::from(network.gateway);
    add_default_route(&control, gateway)?;
    set_name_server(gateway)
}

/// Opens a socket for the ioctls.
fn control_socket() -> Result<OwnedFd, StepError> {
    socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context(|| "open a socket")
}

fn bring_up(control: &OwnedFd, interface: &'static str) -> Result<(), StepError> {
    let mut flags = interface_request(interface);
    // Both are small constants of the kernel.
    #[expect(clippy::cast_possible_truncation, reason = "IFF_UP and IFF_RUNNING fit 16 bits")]
    let up = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    flags.ifr_ifru.ifru_flags = up;
    // SAFETY: the socket is open and the kernel reads one ifreq.
    unsafe { request::set_flags(control.as_raw_fd(), &raw const flags) }
        .map(drop)
        .context(|| format!("bring {interface} up"))
}

fn add_default_route(control: &OwnedFd, gateway: Ipv4Addr) -> Result<(), StepError> {
    // SAFETY: all of rtentry's fields, pointers included, may be zero.
    let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
    route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
    route.rt_gateway = socket_address(gateway);
    route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
    // SAFETY: the socket is open and the kernel reads one rtentry, which names no device.
    unsafe { request::add_route(control.as_raw_fd(), &raw const route) }
        .map(drop)
        .context(|| format!("add the default route via {gateway}"))
}

fn set_name_server(address: Ipv4Addr) -> Result<(), StepError> {
    const PATH: &str = "/etc/resolv.conf";
    // An image may have a link here, to a file of a resolver that does not run in the guest.
    let _not_there = fs::remove_file(PATH);
    fs::write(PATH, format!("nameserver {address}\n")).context(|| format!("write {PATH}"))
}

/// Returns an ioctl request for an interface.
fn interface_request(interface: &str) -> libc::ifreq {
    // SAFETY: an ifreq is an array and a union of integers, which may be zero.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // All but the last byte, so that the name is NUL-terminated.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// Returns the network mask of a prefix length.
fn mask(prefix: u8) -> Ipv4Addr {
    let host_bits = 32_u32.saturating_sub(u32::from(prefix));
    Ipv4Addr::from(u32::MAX.checked_shl(host_bits).unwrap_or(0))
}

/// Returns a `sockaddr_in` as the generic `sockaddr` of the ioctls.
fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut data = [0; 14];
    // Two bytes of port, four of address (`ip(7)`).
    for (to, from) in data.iter_mut().skip(2).zip(address.octets()) {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "AF_INET is 2")]
    let family = libc::AF_INET as libc::sa_family_t;
    libc::sockaddr { sa_family: family, sa_data: data }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_becomes_a_mask() {
        assert_eq!(mask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(mask(24), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(mask(30), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!(mask(32), Ipv4Addr::BROADCAST);
        assert_eq!(mask(200), Ipv4Addr::BROADCAST);
    }

    #[test]
    fn an_address_follows_the_port() {
        let address = socket_address(Ipv4Addr::new(172, 31, 0, 2));
        assert_eq!(address.sa_family, 2);
        assert_eq!(address.sa_data[..6], [0, 0, -84, 31, 0, 2]);
    }

    #[test]
    fn loopback_can_be_named() {
        let request = interface_request("lo");
        assert_eq!(request.ifr_name[..3], [108, 111, 0]);
    }
}
