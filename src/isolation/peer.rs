//! Peers of unix sockets: checks whether the process that connected is in the expected namespaces.
//!
//! A user id is not enough: QEMU of each microVM has the daemon's. But QEMU is not in the daemon's
//! process-id, user and network namespaces. The kernel identifies the first two for exactly the
//! process that connected (`SO_PEERPIDFD`, Linux 6.5, and pidfd ioctls, Linux 6.11). Older kernels
//! only report its process id; `/proc` then shows its namespaces. The third belongs to the
//! connection itself (`SO_NETNS_COOKIE`, Linux 5.14): a unix socket is in the network namespace of
//! the process that connected it. Reading it requires no rights over that process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

/// `SO_PEERPIDFD` of `asm-generic/socket.h`.
const PEER_PROCESS: libc::c_int = 77;
/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`.
const NETWORK_NAMESPACE: libc::c_int = 71;
/// `PIDFD_GET_PID_NAMESPACE` and `PIDFD_GET_USER_NAMESPACE` of `linux/pidfd.h`.
const PROCESS_NAMESPACE: libc::Ioctl = 0xff05;
const USER_NAMESPACE: libc::Ioctl = 0xff09;

/// The reason why a peer is refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is in other namespaces, like every process in a microVM's sandbox.
    #[error("process {0} is not in the namespaces that this socket serves")]
    Foreign(i32),
    /// It belongs to another user.
    #[error("the process belongs to user {0}")]
    User(u32),
    /// It could not be identified.
    #[error("can't identify the process that connected")]
    Unknown(#[source] io::Error),
}

/// The process-id and user namespaces of a process, each by device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Namespaces([(u64, u64); 2]);

impl Namespaces {
    fn of(process: &str) -> io::Result<Self> {
        let one = |kind: &str| {
            let metadata = fs::metadata(format!("/proc/{process}/ns/{kind}"))?;
            Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
        };
        Ok(Self([one("pid")?, one("user")?]))
    }

    /// Reads the namespaces of a process through its pidfd.
    fn of_process(process: &OwnedFd) -> io::Result<Self> {
        let one = |which| {
            // SAFETY: takes an open descriptor and no argument.
            let number = unsafe { libc::ioctl(process.as_raw_fd(), which, 0) };
            let metadata = fs::File::from(owned(number)?).metadata()?;
            Ok::<_, io::Error>((metadata.dev(), metadata.ino()))
        };
        Ok(Self([one(PROCESS_NAMESPACE)?, one(USER_NAMESPACE)?]))
    }
}

/// The policy of which peers are served.
#[derive(Debug, Clone, Copy)]
pub struct PeerPolicy {
    // `None` if this process may not inspect the peers that it serves.
    namespaces: Option<Namespaces>,
    network: Option<u64>,
}

impl PeerPolicy {
    /// Serves processes in this process's own namespaces.
    pub fn same_namespaces() -> io::Result<Self> {
        let (socket, _other) = UnixStream::pair()?;
        let namespaces = Some(Namespaces::of("self")?);
        Ok(Self { namespaces, network: network(socket.as_fd())? })
    }

    /// Serves processes of the same user in the namespaces of the process that created `peer`,
    /// which are parents of this process's. Such a process has no id here and can't be inspected.
    pub fn parent_namespaces(peer: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { namespaces: None, network: network(peer)? })
    }

    /// Checks the process that connected `socket`.
    pub fn check(self, socket: BorrowedFd<'_>) -> Result<(), PeerError> {
        let unknown = |error: nix::Error| PeerError::Unknown(error.into());
        let credentials = getsockopt(&socket, PeerCredentials).map_err(unknown)?;
        let number = credentials.pid();
        if network(socket).map_err(PeerError::Unknown)? != self.network {
            return Err(PeerError::Foreign(number));
        }
        match self.namespaces {
            Some(own) => check_namespaces(socket, number, own),
            None if credentials.uid() != nix::unistd::geteuid().as_raw() => {
                Err(PeerError::User(credentials.uid()))
            }
            // Every process of this namespace and its children has an id here.
            None if number > 0 && !is_this(number) => Err(PeerError::Foreign(number)),
            None => Ok(()),
        }
    }
}

fn is_this(number: i32) -> bool {
    u32::try_from(number).is_ok_and(|number| number == std::process::id())
}

/// Checks the namespaces of a peer that this process can inspect. One that it may not inspect has
/// more rights or another user, so it is not a process of a microVM. It is served if it has an id
/// here, so not from another container.
fn check_namespaces(socket: BorrowedFd<'_>, number: i32, own: Namespaces) -> Result<(), PeerError> {
    let found = match process(socket) {
        Ok(process) => match Namespaces::of_process(&process) {
            Err(error) if is_unsupported(&error) => Namespaces::of(&number.to_string()),
            found => found,
        },
        Err(error) if is_unsupported(&error) => Namespaces::of(&number.to_string()),
        Err(error) => Err(error),
    };
    match found {
        Ok(namespaces) if namespaces == own => Ok(()),
        Ok(_) => Err(PeerError::Foreign(number)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && number > 0 => Ok(()),
        Err(error) => Err(PeerError::Unknown(error)),
    }
}

/// Whether the error means that an older kernel lacks the feature.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOPROTOOPT | libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// Opens a pidfd of the process that connected.
fn process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    owned(option::<RawFd>(socket, PEER_PROCESS)?)
}

/// Returns the network namespace of the peer. `None` if the kernel does not support it.
fn network(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    match option::<u64>(socket, NETWORK_NAMESPACE) {
        Err(error) if is_unsupported(&error) => Ok(None),
        cookie => cookie.map(Some),
    }
}

/// Reads a numeric socket option.
fn option<T: Default>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<T> {
    let mut value = T::default();
    let mut length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: both pointers are valid for the call, and the length is that of the number.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

fn owned(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just created it, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    /// Checks a process that connects from within `wrapper`.
    fn connect(wrapper: &[&str], peers: PeerPolicy) -> Result<(), PeerError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); \
                      s.connect(sys.argv[1]); s.recv(1)";
        let words = [wrapper, &["python3", "-c", script]].concat();
        let mut client = Command::new(words[0]).args(&words[1..]).arg(&path).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let checked = peers.check(stream.as_fd());
        drop(stream);
        client.wait().unwrap();
        checked
    }

    #[test]
    fn only_processes_of_the_same_namespaces_are_served() {
        let own = PeerPolicy::same_namespaces().unwrap();
        connect(&["env"], own).unwrap();
        // Mount namespaces do not matter.
        connect(&["unshare", "--mount"], own).unwrap();
        for wrapper in [
            &["unshare", "--user", "--map-root-user"][..],
            &["unshare", "--pid", "--fork"],
            &["unshare", "--net"],
            &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
        ] {
            let refused = connect(wrapper, own).unwrap_err();
            assert!(matches!(refused, PeerError::Foreign(1..)), "{wrapper:?}: {refused}");
        }
    }

    #[test]
    fn peers_of_parent_namespaces_are_recognized_by_network_user_and_process_id() {
        let (maker, _other) = UnixStream::pair().unwrap();
        let above = PeerPolicy::parent_namespaces(maker.as_fd()).unwrap();
        above.check(maker.as_fd()).unwrap();
        // These have ids here, as a shepherd's children do. Processes of parent namespaces do not.
        for wrapper in [&["env"][..], &["unshare", "--user", "--pid", "--fork"]] {
            let refused = connect(wrapper, above).unwrap_err();
            assert!(matches!(refused, PeerError::Foreign(1..)), "{wrapper:?}: {refused}");
        }
        let elsewhere = PeerPolicy { network: above.network.map(|cookie| cookie + 1), ..above };
        assert!(matches!(elsewhere.check(maker.as_fd()), Err(PeerError::Foreign(_))));
    }

    #[test]
    fn pidfd_and_proc_yield_the_same_namespaces() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own = Namespaces::of("self").unwrap();
        PeerPolicy::same_namespaces().unwrap().check(one.as_fd()).unwrap();
        assert_eq!(Namespaces::of(&std::process::id().to_string()).unwrap(), own);
        match process(one.as_fd()).and_then(|process| Namespaces::of_process(&process)) {
            Ok(found) => assert_eq!(found, own),
            Err(error) => assert!(is_unsupported(&error), "{error}"),
        }
    }
}
