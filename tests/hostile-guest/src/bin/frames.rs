//! Sends raw Ethernet frames on eth0 and prints the received ones, as root in a guest can do.
//!
//! Reads lines with a name and a frame in hexadecimal. For each line, it sends the frame, listens
//! for the milliseconds of its argument, and prints `heard`, the name, and the frame for every
//! received frame. The tests create the frames.

#![allow(clippy::print_stdout, reason = "received frames are its output")]

use std::io::{self, BufRead};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvfrom, send,
    socket,
};

/// `PACKET_OUTGOING` of `packet(7)`: a frame that this host sent.
const OUTGOING: u8 = 4;

fn main() -> io::Result<()> {
    let wait = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(50);
    let socket = open()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (name, frame) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        if let Err(error) = send(socket.as_raw_fd(), &bytes(frame)?, MsgFlags::empty()) {
            println!("failed {name} {error}");
        }
        listen(&socket, name, Duration::from_millis(wait))?;
    }
    Ok(())
}

/// Opens a socket for Ethernet frames on eth0.
fn open() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK;
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, all)?;
    let device = getifaddrs()?.find_map(|interface| {
        let is_device = interface.interface_name == "eth0";
        interface.address?.as_link_addr().copied().filter(|_| is_device)
    });
    bind(socket.as_raw_fd(), &device.ok_or(io::ErrorKind::NotFound)?)?;
    Ok(socket)
}

fn listen(socket: &OwnedFd, name: &str, wait: Duration) -> io::Result<()> {
    let start = Instant::now();
    let mut buffer = [0; 2048];
    while start.elapsed() < wait {
        match recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            Ok((_, Some(from))) if packet_type(&from) == OUTGOING => {}
            Ok((length, _)) => println!("heard {name} {}", text(&buffer[..length])),
            Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(2)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Returns the packet type: the destination of a frame relative to this host.
fn packet_type(address: &LinkAddr) -> u8 {
    let raw: &nix::libc::sockaddr_ll = address.as_ref();
    raw.sll_pkttype
}

fn bytes(text: &str) -> io::Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    digits.collect::<Option<_>>().ok_or(io::ErrorKind::InvalidData.into())
}

fn text(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}
