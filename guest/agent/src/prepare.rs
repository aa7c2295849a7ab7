//! Handles `Prepare`: sets randomness, the clock, the identity, and the network.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use mayfly_protocol::message::Prepare;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{Context, StepError};
use crate::network;

/// The file of the machine ID.
const MACHINE_ID: &str = "/etc/machine-id";

/// The most random bytes that are used, which exceeds the size of the kernel's pool.
const MAX_ENTROPY: usize = 512;

/// `struct rand_pool_info` of `random(4)`, including the bytes.
#[repr(C)]
struct PoolInfo {
    /// The entropy of the bytes, in bits.
    entropy: libc::c_int,
    /// The number of bytes.
    size: libc::c_int,
    bytes: [u8; MAX_ENTROPY],
}

mod request {
    nix::ioctl_write_ptr! {
        /// `RNDADDENTROPY` of `random(4)`. Its number encodes a two-integer argument.
        add_entropy, b'R', 0x03, [libc::c_int; 2]
    }
    nix::ioctl_none! {
        /// `RNDRESEEDCRNG` of `random(4)`: further reads use the new pool.
        reseed, b'R', 0x07
    }
}

/// Prepares a booted machine for its job. Entropy comes first, because everything else may use it.
pub fn prepare_machine(prepare: &Prepare) -> Result<(), StepError> {
    add_entropy(&prepare.entropy)?;
    set_clock(prepare.wall_clock)?;
    name_machine(&prepare.hostname)?;
    identify_machine(Path::new(MACHINE_ID))?;
    match &prepare.network {
        Some(network) => network::configure(network),
        None => Ok(()),
    }
}

/// Sets the clock, to nanoseconds since the Unix epoch.
pub fn set_clock(wall_clock: u64) -> Result<(), StepError> {
    let now = TimeSpec::from_duration(Duration::from_nanos(wall_clock));
    clock_settime(ClockId::CLOCK_REALTIME, now).context(|| "set the clock")
}

/// Writes a machine ID for this microVM, unless the image has one: D-Bus and systemd's programs
/// need one to start (`machine-id(5)`).
fn identify_machine(path: &Path) -> Result<(), StepError> {
    let step = || format!("write {}", path.display());
    let known = fs::read_to_string(path).unwrap_or_default();
    if !matches!(known.trim(), "" | "uninitialized") {
        return Ok(());
    }
    let mut id = [0; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut id)).context(step)?;
    fs::write(path, machine_id(id)).context(step)
}

/// Formats a machine ID: a random UUID (version 4, RFC 9562), as `machine-id(5)` requires.
fn machine_id(random: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(random);
    number = number & !(0xf << 76) | 4 << 76;
    number = number & !(0b11 << 62) | 0b10 << 62;
    format!("{number:032x}\n")
}

/// Adds bytes to the kernel's entropy pool, credits them, and reseeds its random number generator.
fn add_entropy(bytes: &[u8]) -> Result<(), StepError> {
    let mut info = PoolInfo { entropy: 0, size: 0, bytes: [0; MAX_ENTROPY] };
    for (to, from) in info.bytes.iter_mut().zip(bytes) {
        *to = *from;
        info.size += 1;
    }
    info.entropy = info.size * 8;
    let random = File::open("/dev/urandom").context(|| "open /dev/urandom")?;
    let pointer = (&raw const info).cast();
    // SAFETY: the kernel reads the two integers and then as many bytes as the second says, all
    // within `info`.
    unsafe { request::add_entropy(random.as_raw_fd(), pointer) }
        .context(|| "add to the kernel's entropy")?;
    // SAFETY: the descriptor is open; the request has no argument.
    unsafe { request::reseed(random.as_raw_fd()) }
        .map(drop)
        .context(|| "reseed the kernel's random number generator")
}

/// Sets the host name and adds it to the hosts file.
fn name_machine(name: &str) -> Result<(), StepError> {
    const HOSTS: &str = "/etc/hosts";
    nix::unistd::sethostname(name).context(|| format!("set the host name {name}"))?;
    fs::write("/etc/hostname", format!("{name}\n")).context(|| "write /etc/hostname")?;
    // A missing file counts as empty.
    let hosts = fs::read(HOSTS).unwrap_or_default();
    match with_host(&hosts, name) {
        Some(hosts) => fs::write(HOSTS, hosts).context(|| format!("write {HOSTS}")),
        None => Ok(()),
    }
}

/// Returns the hosts file with a line for this machine added; `None` if it already has one. An
/// empty file also gets `localhost`.
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
    fn a_machine_gets_an_id_once() {
        assert_eq!(machine_id([0xff; 16]), "ffffffffffff4fffbfffffffffffffff\n");
        assert_eq!(machine_id([0; 16]), "00000000000040008000000000000000\n");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("machine-id");
        let identified = |before: &str| {
            fs::write(&path, before).unwrap();
            identify_machine(&path).unwrap();
            fs::read_to_string(&path).unwrap()
        };
        for before in ["", "\n", "uninitialized\n"] {
            let id = identified(before);
            assert!(id.len() == 33 && id.trim().bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert_eq!(identified(&id), id);
        }
        assert_eq!(identified("of the image\n"), "of the image\n");
    }

    #[test]
    fn an_empty_hosts_file_gets_localhost_too() {
        let hosts = with_host(b"", "vm").unwrap();
        assert_eq!(hosts, b"127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\tvm\n");
    }

    #[test]
    fn a_name_in_a_comment_or_as_an_address_does_not_count() {
        assert!(with_host(b"10.0.0.1 other # vm\n", "vm").is_some());
        assert!(with_host(b"vm other\n", "vm").is_some());
    }
}
