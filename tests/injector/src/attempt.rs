//! One attempt: its method and its outcome.

use crate::Parameters;
use crate::inject::{CallError, TracedProcess};

/// The outcome of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The kernel performs the call.
    Allowed,
    /// The call fails.
    Refused,
    /// The kernel ends the process that makes the call (`SIGSYS`).
    Ended,
}

impl Outcome {
    /// Returns the word in the table.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
            Self::Ended => "ended",
        }
    }
}

#[allow(clippy::large_enum_variant, reason = "a table of constants can't contain a `Box`")]
/// The method of an attempt.
pub(crate) enum Method {
    /// Opens a path with these flags.
    Open(Path, libc::c_int),
    /// Creates a socket and connects it.
    Connect(Peer),
    /// Makes a call with invalid arguments, so that it does no harm if it is allowed. It counts as
    /// refused if the kernel fails it before it checks the arguments.
    InvalidCall(libc::c_long, [Argument; 6]),
    /// Makes a call with valid arguments. It counts as refused if it fails.
    ValidCall(libc::c_long, [Argument; 6]),
}

pub(crate) enum Path {
    Literal(&'static str),
    /// The path of a parameter, by key.
    Parameter(&'static str),
    /// A name in the directory of a parameter.
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
    /// The number of a parameter, by key.
    Parameter(&'static str),
    Text(Path),
    Memory,
    /// A directory that is open in the process.
    Directory,
}

impl Path {
    fn text(&self, parameters: &Parameters) -> String {
        match self {
            Self::Literal(path) => (*path).to_owned(),
            Self::Parameter(key) => parameters[*key].clone(),
            Self::In(key, name) => format!("{}/{name}", parameters[*key]),
        }
    }
}

impl Argument {
    fn value(
        &self,
        process: &mut TracedProcess,
        parameters: &Parameters,
    ) -> Result<u64, CallError> {
        match self {
            Self::Number(number) => Ok(*number),
            Self::Parameter(key) => Ok(parameters[*key].parse().unwrap_or(u64::MAX)),
            Self::Text(path) => process.text(&path.text(parameters)),
            Self::Memory => process.put(&[0; 256]),
            // Without an open directory an invalid descriptor does as well.
            Self::Directory => Ok(process.directory()?.unwrap_or(u64::from(u32::MAX))),
        }
    }
}

impl Method {
    /// Returns the reason why this host can't run the attempt.
    pub(crate) fn skip_reason(&self, parameters: &Parameters) -> Option<&'static str> {
        let inet6 = matches!(self, Self::Connect(Peer::Inet6));
        (inet6 && !parameters.contains_key("port6")).then_some("this host has no IPv6")
    }

    /// Runs the attempt in a fork of a process. Returns the outcome and the call's result.
    pub(crate) fn run(
        &self,
        process: &mut TracedProcess,
        parameters: &Parameters,
    ) -> Result<(Outcome, i64), CallError> {
        match process.fork(|fork| self.run_in(fork, parameters)) {
            Ok(result) => Ok((self.classify(result), result)),
            Err(CallError::Killed(nix::sys::signal::Signal::SIGSYS)) => Ok((Outcome::Ended, 0)),
            Err(error) => Err(error),
        }
    }

    fn run_in(&self, fork: &mut TracedProcess, parameters: &Parameters) -> Result<i64, CallError> {
        match self {
            Self::Open(path, flags) => {
                let path = fork.text(&path.text(parameters))?;
                let (flags, mode) = (u64::from(flags.cast_unsigned()), 0o600);
                let at = i64::from(libc::AT_FDCWD).cast_unsigned();
                fork.call(libc::SYS_openat, [at, path, flags, mode, 0, 0])
            }
            Self::Connect(peer) => {
                let (family, kind, address) = peer.address(parameters);
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
            Self::InvalidCall(number, arguments) | Self::ValidCall(number, arguments) => {
                let mut values = [0; 6];
                for (value, argument) in values.iter_mut().zip(arguments) {
                    *value = argument.value(fork, parameters)?;
                }
                fork.call(*number, values)
            }
        }
    }

    fn classify(&self, result: i64) -> Outcome {
        let error = i32::try_from(-result).unwrap_or(0);
        let refused = match self {
            Self::Open(..) | Self::Connect(_) | Self::ValidCall(..) => result < 0,
            Self::InvalidCall(..) => matches!(error, libc::EPERM | libc::EACCES | libc::ENOSYS),
        };
        if refused { Outcome::Refused } else { Outcome::Allowed }
    }
}

impl Peer {
    /// Returns the family, type, and address.
    fn address(&self, parameters: &Parameters) -> (libc::c_int, libc::c_int, Vec<u8>) {
        let port = |key: &str| parameters[key].parse::<u16>().unwrap_or(0).to_be_bytes();
        let native = |family: libc::c_int| u16::try_from(family).unwrap_or(0).to_ne_bytes();
        let unix = |name: &[u8]| [&native(libc::AF_UNIX), name].concat();
        match self {
            Self::Path(path) => {
                let name = [path.text(parameters).as_bytes(), b"\0"].concat();
                (libc::AF_UNIX, libc::SOCK_STREAM, unix(&name))
            }
            Self::Abstract => {
                let name = [b"\0", parameters["abstract"].as_bytes()].concat();
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
                // Port 1024 of the host.
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
