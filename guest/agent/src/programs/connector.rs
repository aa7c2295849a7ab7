//! The kernel's process connector: a netlink socket that reports executed programs
//! (`Documentation/driver-api/connector.rst`, `linux/cn_proc.h`).

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mayfly_protocol::message::{MAX_PROGRAM_PATH, Program};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// `CN_IDX_PROC` and `CN_VAL_PROC`: the connector's number, which is also its group's.
const CONNECTOR: u32 = 1;
/// `PROC_CN_MCAST_LISTEN`.
const LISTEN: u32 = 1;
/// `PROC_EVENT_EXEC`.
const EXECUTED: u32 = 2;

/// The size of `struct nlmsghdr` and `struct cn_msg`, which precede the event, in bytes.
const HEADERS: usize = 16 + 20;
/// The size of an `exec` event, in bytes.
const EVENT: usize = 24;

/// The size of the socket's receive buffer, in bytes: several thousand events.
const BUFFER: libc::c_int = 4 << 20;

/// A socket that receives an event for each executed program.
pub(super) struct Connector(OwnedFd);

/// A received event.
pub(super) enum Received {
    /// A process has executed a program.
    Executed(Executed),
    /// The receive buffer overflowed, and events were lost.
    Overrun,
    /// Another kind of event.
    Other,
    /// No event is available at the moment.
    Empty,
}

/// A process that has executed a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Executed {
    /// The time since boot, by `CLOCK_MONOTONIC`.
    since_start: Duration,
    process: u32,
}

impl Connector {
    /// Opens the socket and subscribes to events. Requires `CAP_NET_ADMIN`.
    pub(super) fn open() -> Result<Self, Errno> {
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: makes a descriptor of its own.
        let socket = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_CONNECTOR) };
        // SAFETY: the kernel just created it, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(Errno::result(socket)?) };
        let connector = Self(socket);
        connector.filter()?;
        connector.set(libc::SO_RCVBUFFORCE, &BUFFER)?;
        connector.join()?;
        connector.subscribe()?;
        Ok(connector)
    }

    /// Makes the kernel drop every other kind of event, of which each process causes several,
    /// before it wakes the reader.
    fn filter(&self) -> Result<(), Errno> {
        // The filter loads words as big-endian. The event's kind is its first word.
        let kind = EXECUTED.to_ne_bytes();
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let compare = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let give = libc::BPF_RET | libc::BPF_K;
        let step = |code: u32, jump_else: u8, value: u32| libc::sock_filter {
            // All of them are below 256.
            code: u16::try_from(code).unwrap_or_default(),
            jt: 0,
            jf: jump_else,
            k: value,
        };
        // `HEADERS` is a small number.
        let offset = u32::try_from(HEADERS).unwrap_or_default();
        let mut steps = [
            step(load, 0, offset),
            step(compare, 1, u32::from_be_bytes(kind)),
            step(give, 0, u32::MAX),
            step(give, 0, 0),
        ];
        let program = libc::sock_fprog { len: 4, filter: steps.as_mut_ptr() };
        self.set(libc::SO_ATTACH_FILTER, &program)
    }

    fn set<T>(&self, option: libc::c_int, value: &T) -> Result<(), Errno> {
        let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default();
        let value: *const T = value;
        // SAFETY: pointer and length are those of one value, which the kernel copies.
        let result = unsafe {
            libc::setsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, option, value.cast(), length)
        };
        Errno::result(result).map(drop)
    }

    /// Joins the connector's group.
    fn join(&self) -> Result<(), Errno> {
        // SAFETY: an address is integers, which may be zero.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK.try_into().unwrap_or_default();
        address.nl_groups = CONNECTOR;
        let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or_default();
        let address = &raw const address;
        // SAFETY: pointer and length are those of one address.
        Errno::result(unsafe { libc::bind(self.0.as_raw_fd(), address.cast(), length) }).map(drop)
    }

    /// Subscribes to events. The kernel generates them while it has a subscriber.
    fn subscribe(&self) -> Result<(), Errno> {
        let message = request();
        let written = nix::unistd::write(&self.0, &message)?;
        if written == message.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
    }

    /// Receives the next event.
    pub(super) fn receive(&self) -> Received {
        let mut buffer = [0; 256];
        loop {
            match nix::unistd::read(&self.0, &mut buffer) {
                Ok(count) => {
                    let executed = parse(&buffer[..count]);
                    return executed.map_or(Received::Other, Received::Executed);
                }
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => return Received::Overrun,
                Err(_) => return Received::Empty,
            }
        }
    }
}

impl AsFd for Connector {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Returns `nlmsghdr`, `cn_msg`, and the operation, in native byte order.
fn request() -> Vec<u8> {
    let operation = LISTEN.to_ne_bytes();
    let length = HEADERS + operation.len();
    let mut message = Vec::with_capacity(length);
    // Length, type NLMSG_DONE, no flags, no sequence, no port.
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(3_u16.to_ne_bytes());
    message.extend([0; 2 + 4 + 4]);
    // Index and value of the connector, no sequence, no acknowledgement, length, no flags.
    message.extend(CONNECTOR.to_ne_bytes());
    message.extend(CONNECTOR.to_ne_bytes());
    message.extend([0; 4 + 4]);
    message.extend(4_u16.to_ne_bytes());
    message.extend([0; 2]);
    message.extend(operation);
    message
}

/// Parses a message. Returns `None` unless it is an `exec` event.
fn parse(message: &[u8]) -> Option<Executed> {
    let event: &[u8; EVENT] = message.get(HEADERS..)?.first_chunk()?;
    let number = |from: usize| event[from..from + 4].try_into().map(u32::from_ne_bytes).ok();
    let nanoseconds = event[8..16].try_into().map(u64::from_ne_bytes).ok()?;
    let executed =
        Executed { since_start: Duration::from_nanos(nanoseconds), process: number(20)? };
    (number(0)? == EXECUTED).then_some(executed)
}

impl Executed {
    /// Looks the program up in `/proc`. Fields of a process that has ended are empty.
    pub(super) fn look_up(self) -> Program {
        let directory = format!("/proc/{}", self.process);
        let path = fs::read_link(format!("{directory}/exe"));
        let mut path = path.map(|path| path.into_os_string().into_vec()).unwrap_or_default();
        path.truncate(MAX_PROGRAM_PATH);
        let status = fs::read_to_string(format!("{directory}/status")).unwrap_or_default();
        Program {
            time: self.time(),
            process: self.process,
            parent: field(&status, "PPid:"),
            user: field(&status, "Uid:"),
            path: path.into(),
        }
    }

    /// Returns the wall-clock time of the event, in nanoseconds since the Unix epoch.
    fn time(self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap_or(TimeSpec::new(0, 0));
        let ago = Duration::from(now).saturating_sub(self.since_start);
        let time = SystemTime::now().checked_sub(ago);
        let time = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Returns the first number after a name.
fn field(status: &str, name: &str) -> u32 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: u32, process: u32) -> Vec<u8> {
        let mut message = vec![0; HEADERS];
        message.extend(kind.to_ne_bytes());
        message.extend(0_u32.to_ne_bytes());
        message.extend(7_u64.to_ne_bytes());
        message.extend((process + 1).to_ne_bytes());
        message.extend(process.to_ne_bytes());
        message
    }

    #[test]
    fn only_exec_events_are_parsed() {
        let expected = Executed { since_start: Duration::from_nanos(7), process: 42 };
        assert_eq!(parse(&event(EXECUTED, 42)), Some(expected));
        assert_eq!(parse(&event(1, 42)), None);
        for cut in 0..HEADERS + EVENT {
            assert_eq!(parse(&event(EXECUTED, 42)[..cut]), None, "cut at {cut}");
        }
    }

    #[test]
    fn the_request_has_its_declared_length() {
        let request = request();
        assert_eq!(request.len(), 40);
        assert_eq!(request[..4], 40_u32.to_ne_bytes());
    }

    #[test]
    fn a_running_process_is_looked_up_and_an_ended_one_is_empty() {
        let own = Executed { since_start: Duration::ZERO, process: std::process::id() };
        let program = own.look_up();
        let own_path = std::env::current_exe().unwrap().into_os_string().into_vec();
        assert_eq!(program.path.as_slice(), own_path);
        assert_eq!(program.user, nix::unistd::getuid().as_raw());
        assert_ne!(program.parent, 0);
        // No process has this ID: it is above every limit.
        let gone = Executed { process: u32::MAX, ..own }.look_up();
        assert_eq!((gone.parent, gone.path.len()), (0, 0));
    }
}
