//! What `Prepare` asks for: randomness, clock, identity and network.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use mayfly_protocol::message::Prepare;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::error::{During, StepError};
use crate::network;

/// Where programs look for what this machine is, and no other.
const MACHINE_ID: &str = "/etc/machine-id";

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
    set_clock(prepare.wall_clock)?;
    name_machine(&prepare.hostname)?;
    identify_machine(Path::new(MACHINE_ID))?;
    match &prepare.network {
        Some(network) => network::set_up(network),
        None => Ok(()),
    }
}

/// Sets the clock to the host's: nanoseconds since the Unix epoch.
pub fn set_clock(wall_clock: u64) -> Result<(), StepError> {
    let now = TimeSpec::from_duration(Duration::from_nanos(wall_clock));
    clock_settime(ClockId::CLOCK_REALTIME, now).during(|| "set the clock")
}

/// Writes a machine id of this microVM's own, unless the image has one: D-Bus, systemd's programs
/// and what builds on them don't start without (`machine-id(5)`).
fn identify_machine(path: &Path) -> Result<(), StepError> {
    let step = || format!("write {}", path.display());
    let known = fs::read_to_string(path).unwrap_or_default();
    if !matches!(known.trim(), "" | "uninitialized") {
        return Ok(());
    }
    let mut id = [0; 16];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut id)).during(step)?;
    fs::write(path, machine_id(id)).during(step)
}

/// The text of a machine id: a random UUID (version 4, RFC 9562), as `machine-id(5)` wants it.
fn machine_id(random: [u8; 16]) -> String {
    let mut number = u128::from_be_bytes(random);
    number = number & !(0xf << 76) | 4 << 76;
    number = number & !(0b11 << 62) | 0b10 << 62;
    format!("{number:032x}\n")
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
    fn a_name_in_a_comment_or_as_an_address_is_no_entry() {
        assert!(with_host(b"10.0.0.1 other # vm\n", "vm").is_some());
        assert!(with_host(b"vm other\n", "vm").is_some());
    }
}
