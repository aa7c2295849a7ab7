//! What `Prepare` asks for: randomness, clock, name and network.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::time::Duration;

use mayfly_protocol::message::Prepare;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{During, StepError};
use crate::network;

/// The most random bytes that are taken, which is more than the kernel's pool can hold.
const MOST_ENTROPY: usize = 512;

/// `struct rand_pool_info` of `random(4)`, with room for the bytes in it.
#[repr(C)]
struct PoolInfo {
    /// Bits of entropy that the bytes are worth.
    entropy: libc::c_int,
    /// Number of the bytes.
    size: libc::c_int,
    bytes: [u8; MOST_ENTROPY],
}

mod request {
    nix::ioctl_write_ptr! {
        /// `RNDADDENTROPY` of `random(4)`. Its number is that of a two-integer argument.
        add_entropy, b'R', 0x03, [libc::c_int; 2]
    }
    nix::ioctl_none! {
        /// `RNDRESEEDCRNG` of `random(4)`: what is read from now on comes from the new pool.
        reseed, b'R', 0x07
    }
}

/// Makes a booted machine usable. Randomness first: everything else may use it.
pub fn carry_out(prepare: &Prepare) -> Result<(), StepError> {
    add_entropy(&prepare.entropy)?;
    let now = TimeSpec::from_duration(Duration::from_nanos(prepare.wall_clock));
    clock_settime(ClockId::CLOCK_REALTIME, now).during(|| "set the clock")?;
    name_machine(&prepare.hostname)?;
    match &prepare.network {
        Some(network) => network::set_up(network),
        None => Ok(()),
    }
}

/// Stirs bytes into the kernel's pool, credits them, and lets its generator start anew from it.
fn add_entropy(bytes: &[u8]) -> Result<(), StepError> {
    let mut info = PoolInfo { entropy: 0, size: 0, bytes: [0; MOST_ENTROPY] };
    for (to, from) in info.bytes.iter_mut().zip(bytes) {
        *to = *from;
        info.size += 1;
    }
    info.entropy = info.size * 8;
    let random = File::open("/dev/urandom").during(|| "open /dev/urandom")?;
    let pointer = (&raw const info).cast();
    // SAFETY: the kernel reads the two integers and then as many bytes as the second says, all
    // within `info`.
    unsafe { request::add_entropy(random.as_raw_fd(), pointer) }
        .during(|| "add to the kernel's entropy")?;
    // SAFETY: the descriptor is open; the request has no argument.
    unsafe { request::reseed(random.as_raw_fd()) }
        .map(drop)
        .during(|| "reseed the kernel's random number generator")
}

/// Sets the host name and lets it be resolved without a name server.
fn name_machine(name: &str) -> Result<(), StepError> {
    const HOSTS: &str = "/etc/hosts";
    nix::unistd::sethostname(name).during(|| format!("set the host name {name}"))?;
    fs::write("/etc/hostname", format!("{name}\n")).during(|| "write /etc/hostname")?;
    // Not there is as good as empty.
    let hosts = fs::read(HOSTS).unwrap_or_default();
    match with_host(&hosts, name) {
        Some(hosts) => fs::write(HOSTS, hosts).during(|| format!("write {HOSTS}")),
        None => Ok(()),
    }
}

/// The hosts file with a line for this machine added, unless it has one; an empty one gets
/// `localhost`, too.
fn with_host(hosts: &[u8], name: &str) -> Option<Vec<u8>> {
    let known = hosts.split(|byte| *byte == b'\n').any(|line| {
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        words.take_while(|word| !word.starts_with(b"#")).skip(1).any(|word| word == name.as_bytes())
    });
    if known {
        return None;
    }
    let mut hosts = hosts.to_vec();
    if hosts.is_empty() {
        hosts.extend_from_slice(b"127.0.0.1\tlocalhost\n::1\tlocalhost\n");
    } else if !hosts.ends_with(b"\n") {
        hosts.push(b'\n');
    }
    hosts.extend_from_slice(format!("127.0.1.1\t{name}\n").as_bytes());
    Some(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_file_gets_the_machines_name_once() {
        let hosts = with_host(b"127.0.0.1 localhost", "vm").unwrap();
        assert_eq!(hosts, b"127.0.0.1 localhost\n127.0.1.1\tvm\n");
        assert_eq!(with_host(&hosts, "vm"), None);
    }

    #[test]
    fn an_empty_hosts_file_gets_localhost_too() {
        let hosts = with_host(b"", "vm").unwrap();
        assert_eq!(hosts, b"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tvm\n");
    }

    #[test]
    fn a_name_in_a_comment_or_as_an_address_is_no_entry() {
        assert!(with_host(b"10.0.0.1 other # vm\n", "vm").is_some());
        assert!(with_host(b"vm other\n", "vm").is_some());
    }
}
