//! What a process that was taken over would try, and what is to come of it.

use std::fmt::Write as _;
use std::io;

use crate::Given;
use crate::inject::Tracee;

/// The processes, by name and as the page calls them.
pub(crate) const PROCESSES: [(&str, &str); 3] =
    [("qemu", "QEMU"), ("vsock", "`vhost-device-vsock`"), ("shepherd", "shepherd")];

/// What differs between hosts: files, directories, sockets, a name of an abstract socket, ports of
/// loopback with a listener.
pub(crate) const KEYS: [&str; 11] = [
    "ledger", "token", "other", "own", "image", "daemon", "shepherd", "socket", "abstract",
    "port4", "port6",
];

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Allowed,
    Refused,
}

/// One row.
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    pub(crate) how: How,
    /// Who may.
    allowed: &'static [&'static str],
}

impl Attempt {
    pub(crate) fn expected(&self, column: usize) -> Outcome {
        let may = self.allowed.contains(&PROCESSES[column].0);
        if may { Outcome::Allowed } else { Outcome::Refused }
    }
}

#[allow(clippy::large_enum_variant, reason = "a table of constants, which can hold no box")]
/// How it is tried.
pub(crate) enum How {
    /// Opens a path, with these flags.
    Open(Path, libc::c_int),
    /// Makes a socket and connects it.
    Connect(Peer),
    /// Makes a call that does no harm where it is allowed: its arguments are wrong. It counts as
    /// refused if the kernel does not even look at them.
    Call(libc::c_long, [Argument; 6]),
}

pub(crate) enum Path {
    Is(&'static str),
    /// Given by key.
    Given(&'static str),
    /// A name in a directory that is given.
    In(&'static str, &'static str),
}

pub(crate) enum Peer {
    Path(Path),
    Abstract,
    Inet4,
    Inet6,
    Vsock,
    Netlink,
}

pub(crate) enum Argument {
    Number(u64),
    Text(Path),
    Memory,
}

use Argument::{Memory, Number, Text};

const ZERO: Argument = Number(0);
const BAD: Argument = Number(u32::MAX as u64);

const fn number(number: libc::c_int) -> Argument {
    Number(number.cast_unsigned() as u64)
}

const fn row(what: &'static str, how: How, allowed: &'static [&'static str]) -> Attempt {
    Attempt { what, how, allowed }
}

const fn read(what: &'static str, path: Path, allowed: &'static [&'static str]) -> Attempt {
    row(what, How::Open(path, libc::O_RDONLY), allowed)
}

const fn connect(what: &'static str, peer: Peer, allowed: &'static [&'static str]) -> Attempt {
    row(what, How::Connect(peer), allowed)
}

const fn call(what: &'static str, call: libc::c_long, arguments: [Argument; 6]) -> Attempt {
    row(what, How::Call(call, arguments), &[])
}

const NOBODY: &[&str] = &[];
const SHEPHERD: &[&str] = &["shepherd"];

/// All rows.
pub(crate) const ALL: &[Attempt] = &[
    read("read `/etc/shadow`", Path::Is("/etc/shadow"), NOBODY),
    read("read `/etc/passwd`", Path::Is("/etc/passwd"), NOBODY),
    read("read the resolver's `/etc/resolv.conf`", Path::Is("/etc/resolv.conf"), SHEPHERD),
    read("read the ledger", Path::Given("ledger"), NOBODY),
    read("read a token's file", Path::Given("token"), NOBODY),
    read("read the image's root file system by its name", Path::Given("image"), NOBODY),
    read("read another microVM's directory", Path::Given("other"), NOBODY),
    read("read its own microVM's directory", Path::Given("own"), SHEPHERD),
    row(
        "make a file in its own microVM's directory",
        How::Open(Path::In("own", "injected"), libc::O_CREAT | libc::O_WRONLY),
        SHEPHERD,
    ),
    row("make a file in `/`", How::Open(Path::Is("/new"), libc::O_CREAT | libc::O_WRONLY), NOBODY),
    read("list `/home`", Path::Is("/home"), NOBODY),
    read("read `/proc/self/environ`", Path::Is("/proc/self/environ"), NOBODY),
    read("read `/proc/1/root/etc/shadow`", Path::Is("/proc/1/root/etc/shadow"), NOBODY),
    read("read `/sys/kernel`", Path::Is("/sys/kernel"), NOBODY),
    row("open `/dev/net/tun`", How::Open(Path::Is("/dev/net/tun"), libc::O_RDWR), NOBODY),
    row("open `/dev/kmsg`", How::Open(Path::Is("/dev/kmsg"), libc::O_WRONLY), NOBODY),
    connect("connect to the daemon's socket", Peer::Path(Path::Given("daemon")), NOBODY),
    connect("connect to a shepherd's socket", Peer::Path(Path::Given("shepherd")), NOBODY),
    connect("connect to another socket with a path", Peer::Path(Path::Given("socket")), NOBODY),
    connect("connect to an abstract socket", Peer::Abstract, NOBODY),
    connect("connect to 127.0.0.1", Peer::Inet4, SHEPHERD),
    connect("connect to ::1", Peer::Inet6, SHEPHERD),
    connect("connect by `AF_VSOCK`", Peer::Vsock, NOBODY),
    connect("connect by `AF_NETLINK`", Peer::Netlink, NOBODY),
    call("make a raw socket", libc::SYS_socket, socket(libc::AF_INET, libc::SOCK_RAW, 1)),
    call("make a packet socket", libc::SYS_socket, socket(libc::AF_PACKET, libc::SOCK_RAW, 3)),
    call("`ptrace`", libc::SYS_ptrace, [Number(3), Number(1), ZERO, Memory, ZERO, ZERO]),
    call(
        "`process_vm_readv`",
        libc::SYS_process_vm_readv,
        [Number(1), Memory, Number(0), Memory, Number(0), Number(1)],
    ),
    call(
        "`process_vm_writev`",
        libc::SYS_process_vm_writev,
        [Number(1), Memory, Number(0), Memory, Number(0), Number(1)],
    ),
    call("`pidfd_open`", libc::SYS_pidfd_open, [Number(1), Number(1), ZERO, ZERO, ZERO, ZERO]),
    call("`pidfd_getfd`", libc::SYS_pidfd_getfd, [BAD, ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`kcmp`", libc::SYS_kcmp, [Number(1), Number(1), Number(99), ZERO, ZERO, ZERO]),
    row(
        "signal the first process of its namespace",
        How::Call(libc::SYS_kill, [Number(1), ZERO, ZERO, ZERO, ZERO, ZERO]),
        SHEPHERD,
    ),
    call(
        "signal a thread of another process",
        libc::SYS_tgkill,
        [Number(99), Number(99), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`execve`", libc::SYS_execve, [Text(Path::Is("/")), BAD, BAD, ZERO, ZERO, ZERO]),
    call(
        "`execveat` of a descriptor",
        libc::SYS_execveat,
        [BAD, Text(Path::Is("")), BAD, BAD, Number(0x1000), ZERO],
    ),
    // Threads must share memory, so that this is no process that could be made.
    call("fork", libc::SYS_clone, [number(libc::CLONE_SIGHAND), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`mount`",
        libc::SYS_mount,
        [
            Text(Path::Is("none")),
            Text(Path::Is("/none")),
            Text(Path::Is("tmpfs")),
            ZERO,
            ZERO,
            ZERO,
        ],
    ),
    call("`fsopen`", libc::SYS_fsopen, [Text(Path::Is("none")), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`pivot_root`",
        libc::SYS_pivot_root,
        [Text(Path::Is("/none")), Text(Path::Is("/none")), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`chroot`", libc::SYS_chroot, [Text(Path::Is("/none")), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`unshare` of a user namespace",
        libc::SYS_unshare,
        [number(libc::CLONE_NEWUSER), ZERO, ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "`unshare` of a network namespace",
        libc::SYS_unshare,
        [number(libc::CLONE_NEWNET), ZERO, ZERO, ZERO, ZERO, ZERO],
    ),
    call("`setns`", libc::SYS_setns, [BAD, ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`io_uring_setup`", libc::SYS_io_uring_setup, [Number(1), BAD, ZERO, ZERO, ZERO, ZERO]),
    call("`userfaultfd`", libc::SYS_userfaultfd, [Number(1), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`bpf`", libc::SYS_bpf, [ZERO, BAD, Number(64), ZERO, ZERO, ZERO]),
    call("`perf_event_open`", libc::SYS_perf_event_open, [BAD, ZERO, ZERO, BAD, ZERO, ZERO]),
    call(
        "`keyctl`",
        libc::SYS_keyctl,
        [ZERO, Number((-3_i64).cast_unsigned()), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`add_key`", libc::SYS_add_key, [BAD, BAD, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`name_to_handle_at`",
        libc::SYS_name_to_handle_at,
        [BAD, Text(Path::Is("x")), BAD, BAD, ZERO, ZERO],
    ),
    call("`open_by_handle_at`", libc::SYS_open_by_handle_at, [BAD, BAD, ZERO, ZERO, ZERO, ZERO]),
    call(
        "make a symbolic link in its directory",
        libc::SYS_symlink,
        [
            Text(Path::Is("/etc/shadow")),
            Text(Path::In("own", "injected-link")),
            ZERO,
            ZERO,
            ZERO,
            ZERO,
        ],
    ),
    call(
        "make a hard link in its directory",
        libc::SYS_link,
        [
            Text(Path::In("own", "events.jsonl")),
            Text(Path::In("own", "injected-link")),
            ZERO,
            ZERO,
            ZERO,
            ZERO,
        ],
    ),
    call(
        "make a named pipe in its directory",
        libc::SYS_mknod,
        [Text(Path::In("own", "injected-pipe")), Number(0o010_600), ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "inject a key into a terminal (`TIOCSTI`)",
        libc::SYS_ioctl,
        [BAD, Number(0x5412), BAD, ZERO, ZERO, ZERO],
    ),
    call("raise its limits", libc::SYS_prlimit64, [ZERO, Number(7), BAD, ZERO, ZERO, ZERO]),
];

/// Where QEMU's own filter, which lies on top of ours, begins to end the process instead of refusing
/// the call: the rows from here on are not tried in it.
const QEMU_ENDS_AT: &str = "`execveat` of a descriptor";

/// The rows that are tried in a process.
pub(crate) fn tried_in(process: &str) -> impl Iterator<Item = &'static Attempt> {
    let all = process != "qemu";
    ALL.iter().take_while(move |attempt| all || attempt.what != QEMU_ENDS_AT)
}

const fn socket(family: libc::c_int, kind: libc::c_int, protocol: u64) -> [Argument; 6] {
    [number(family), number(kind), Number(protocol), ZERO, ZERO, ZERO]
}

impl Path {
    fn text(&self, given: &Given) -> String {
        match self {
            Self::Is(path) => (*path).to_owned(),
            Self::Given(key) => given[*key].clone(),
            Self::In(key, name) => format!("{}/{name}", given[*key]),
        }
    }
}

impl How {
    /// Tries it; the result is that of the kernel.
    pub(crate) fn try_in(&self, tracee: &mut Tracee, given: &Given) -> io::Result<i64> {
        tracee.forget();
        match self {
            Self::Open(path, flags) => {
                let path = tracee.text(&path.text(given))?;
                let (flags, mode) = (u64::from(flags.cast_unsigned()), 0o600);
                let at = i64::from(libc::AT_FDCWD).cast_unsigned();
                let opened = tracee.call(libc::SYS_openat, [at, path, flags, mode, 0, 0])?;
                close(tracee, opened)
            }
            Self::Connect(peer) => {
                let (family, kind, address) = peer.address(given);
                let kind = u64::from((kind | libc::SOCK_CLOEXEC).cast_unsigned());
                let family = u64::from(family.cast_unsigned());
                let socket = tracee.call(libc::SYS_socket, [family, kind, 0, 0, 0, 0])?;
                if socket < 0 {
                    return Ok(socket);
                }
                let length = address.len() as u64;
                let address = tracee.put(&address)?;
                let number = socket.cast_unsigned();
                let connected =
                    tracee.call(libc::SYS_connect, [number, address, length, 0, 0, 0])?;
                close(tracee, socket)?;
                Ok(connected)
            }
            Self::Call(number, arguments) => {
                let mut values = [0; 6];
                for (value, argument) in values.iter_mut().zip(arguments) {
                    *value = match argument {
                        Number(number) => *number,
                        Text(path) => tracee.text(&path.text(given))?,
                        Memory => tracee.put(&[0; 256])?,
                    };
                }
                tracee.call(*number, values)
            }
        }
    }

    pub(crate) fn outcome(&self, result: i64) -> Outcome {
        let error = i32::try_from(-result).unwrap_or(0);
        let refused = match self {
            Self::Open(..) | Self::Connect(_) => result < 0,
            Self::Call(..) => matches!(error, libc::EPERM | libc::EACCES | libc::ENOSYS),
        };
        if refused { Outcome::Refused } else { Outcome::Allowed }
    }
}

fn close(tracee: &mut Tracee, descriptor: i64) -> io::Result<i64> {
    if descriptor >= 0 {
        tracee.call(libc::SYS_close, [descriptor.cast_unsigned(), 0, 0, 0, 0, 0])?;
    }
    Ok(descriptor)
}

impl Peer {
    /// Family, type and address.
    fn address(&self, given: &Given) -> (libc::c_int, libc::c_int, Vec<u8>) {
        let port = |key: &str| given[key].parse::<u16>().unwrap_or(0).to_be_bytes();
        let native = |family: libc::c_int| u16::try_from(family).unwrap_or(0).to_ne_bytes();
        let unix = |name: &[u8]| [&native(libc::AF_UNIX), name].concat();
        match self {
            Self::Path(path) => {
                let name = [path.text(given).as_bytes(), b"\0"].concat();
                (libc::AF_UNIX, libc::SOCK_STREAM, unix(&name))
            }
            Self::Abstract => {
                let name = [b"\0", given["abstract"].as_bytes()].concat();
                (libc::AF_UNIX, libc::SOCK_STREAM, unix(&name))
            }
            Self::Inet4 => {
                let address = [&native(libc::AF_INET)[..], &port("port4"), &[127, 0, 0, 1]];
                let address = [address.concat(), vec![0; 8]].concat();
                (libc::AF_INET, libc::SOCK_STREAM, address)
            }
            Self::Inet6 => {
                let mut loopback = [0; 16];
                loopback[15] = 1;
                let parts = [&native(libc::AF_INET6)[..], &port("port6"), &[0; 4], &loopback];
                (libc::AF_INET6, libc::SOCK_STREAM, [parts.concat(), vec![0; 4]].concat())
            }
            Self::Vsock => {
                // The host, port 1024.
                let numbers = [1024_u32.to_ne_bytes(), 2_u32.to_ne_bytes(), [0; 4]].concat();
                let address = [&native(libc::AF_VSOCK)[..], &[0; 2], &numbers].concat();
                (libc::AF_VSOCK, libc::SOCK_STREAM, address)
            }
            Self::Netlink => {
                let address = [&native(libc::AF_NETLINK)[..], &[0; 10]].concat();
                (libc::AF_NETLINK, libc::SOCK_RAW, address)
            }
        }
    }
}

/// The table of the security page.
pub(crate) fn table() -> String {
    let heading: Vec<_> = PROCESSES.iter().map(|(_, title)| *title).collect();
    let mut table = format!("| it tries to | {} |\n|---|---|---|---|\n", heading.join(" | "));
    for attempt in ALL {
        let cell = |column| match attempt.expected(column) {
            Outcome::Allowed => "allowed",
            Outcome::Refused => "refused",
        };
        let cells: Vec<_> = (0..PROCESSES.len()).map(cell).collect();
        // A string takes every line.
        let _ = writeln!(table, "| {} | {} |", attempt.what, cells.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_told_once_and_can_be_told_apart() {
        let mut names: Vec<_> = ALL.iter().map(|attempt| attempt.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
