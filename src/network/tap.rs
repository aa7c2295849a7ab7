//! The tap device: `tuntap` ioctls of `linux/if_tun.h`.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

/// The device that creates taps.
pub(super) const DEVICE: &str = "/dev/net/tun";

mod ioctl {
    // `TUNSETIFF`: _IOW('T', 202, int), though it takes a `struct ifreq`.
    nix::ioctl_write_ptr_bad!(set_interface, nix::request_code_write!(b'T', 202, 4), libc::ifreq);
}

pub(super) fn open_device() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// Creates a tap device in the current network namespace. Returns it and its name.
///
/// Packets carry the virtio-net header, so that QEMU can pass on segmentation and checksum offload
/// instead of computing them.
pub(super) fn attach(device: File) -> io::Result<(OwnedFd, String)> {
    // SAFETY: `ifreq` is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    // The flags are defined as 16-bit values.
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and `request` is a valid `ifreq` with a terminated name.
    unsafe { ioctl::set_interface(device.as_raw_fd(), &raw const request) }?;
    let name: Vec<u8> = request.ifr_name.iter().map(|byte| byte.cast_unsigned()).collect();
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok((device.into(), name.to_string_lossy().into_owned()))
}
