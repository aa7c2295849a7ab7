//! One attempt: how it is made, and what came of it.

use crate::Given;
use crate::inject::{Failed, Process};

/// What came of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The kernel does it.
    Allowed,
    /// The call fails.
    Refused,
    /// The kernel ends the process that makes the call (`SIGSYS`).
    Ended,
}

impl Outcome {
    /// As the table says it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

#[allow(clippy::large_enum_variant, reason = "a table of constants, which can hold no box")]
/// How it is tried.
pub(crate) enum How {
    /// Opens a path, with these flags.
    Open(Path, libc::c_int),
    /// Makes a socket and connects it.
    Connect(Peer),
    /// Makes a call whose arguments are wrong, so that it does no harm where it is allowed. It
    /// counts as refused if the kernel does not even look at them.
    Call(libc::c_long, [Argument; 6]),
    /// Makes a call whose arguments are right: it is refused if it fails.
    Done(libc::c_long, [Argument; 6]),
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
    /// A number that is given by key.
    Given(&'static str),
    Text(Path),
    Memory,
    /// A directory that the process has open.
    Directory,
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

impl Argument {
    fn value(&self, process: &mut Process, given: &Given) -> Result<u64, Failed> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Given(key) => Ok(given[*key].parse().unwrap_or(u64::MAX)),
            Self::Text(path) => process.text(&path.text(given)),
            Self::Memory => process.put(&[0; 256]),
            // None is as good as a wrong one.
            Self::Directory => Ok(process.directory()?.unwrap_or(u64::from(u32::MAX))),
        }
    }
}

impl How {
    /// Why it can't be tried here.
    pub(crate) fn lacks(&self, given: &Given) -> Option<&'static str> {
        let inet6 = matches!(self, Self::Connect(Peer::Inet6));
        (inet6 && !given.contains_key("port6")).then_some("there is no IPv6 here")
    }

    /// Tries it in a fork of a process; what came of it, and the result that the kernel gave.
    pub(crate) fn outcome(
        &self,
        process: &mut Process,
        given: &Given,
    ) -> Result<(Outcome, i64), Failed> {
        match process.fork(|fork| self.try_in(fork, given)) {
            Ok(result) => Ok((self.judge(result), result)),
            Err(Failed::Ended(nix::sys::signal::Signal::SIGSYS)) => Ok((Outcome::Ended, 0)),
            Err(failed) => Err(failed),
        }
    }

    fn try_in(&self, fork: &mut Process, given: &Given) -> Result<i64, Failed> {
        match self {
            Self::Open(path, flags) => {
                let path = fork.text(&path.text(given))?;
                let (flags, mode) = (u64::from(flags.cast_unsigned()), 0o600);
                let at = i64::from(libc::AT_FDCWD).cast_unsigned();
                fork.call(libc::SYS_openat, [at, path, flags, mode, 0, 0])
            }
            Self::Connect(peer) => {
                let (family, kind, address) = peer.address(given);
                let kind = u64::from((kind | libc::SOCK_CLOEXEC).cast_unsigned());
                let family = u64::from(family.cast_unsigned());
                let socket = fork.call(libc::SYS_socket, [family, kind, 0, 0, 0, 0])?;
                if socket < 0 {
                    return Ok(socket);
                }
                let length = address.len() as u64;
                let address = fork.put(&address)?;
                fork.call(libc::SYS_connect, [socket.cast_unsigned(), address, length, 0, 0, 0])
            }
            Self::Call(number, arguments) | Self::Done(number, arguments) => {
                let mut values = [0; 6];
                for (value, argument) in values.iter_mut().zip(arguments) {
                    *value = argument.value(fork, given)?;
                }
                fork.call(*number, values)
            }
        }
    }

    fn judge(&self, result: i64) -> Outcome {
        let error = i32::try_from(-result).unwrap_or(0);
        let refused = match self {
            Self::Open(..) | Self::Connect(_) | Self::Done(..) => result < 0,
            Self::Call(..) => matches!(error, libc::EPERM | libc::EACCES | libc::ENOSYS),
        };
        if refused { Outcome::Refused } else { Outcome::Allowed }
    }
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
