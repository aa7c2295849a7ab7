//! Who connects to a unix socket: a process of this one's own namespaces, or another.
//!
//! A user id says little: QEMU of each microVM has that of the daemon. What it has not is the
//! daemon's process-id, user and network namespaces. The kernel tells the first two of the very
//! process that connected (`SO_PEERPIDFD`, Linux 6.5, and the controls of a process descriptor,
//! Linux 6.11); an older one tells the number of that process, and `/proc` the namespaces. The third
//! is that of the connection itself (`SO_NETNS_COOKIE`, Linux 5.14): a unix socket is in the network
//! namespace of whoever connected it, and to ask for it takes no right over that process.

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

/// A peer is not to be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It lives elsewhere, as whatever runs in a microVM's sandbox does.
    #[error("process {0} is in other namespaces than those that are served")]
    Foreign(i32),
    /// It is of another user.
    #[error("it is of user {0}")]
    User(u32),
    /// Nothing could be found out about it.
    #[error("can't find out who connected")]
    Unknown(#[source] io::Error),
}

/// What decides: the process-id and the user namespace of a process, each by device and inode.
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

    /// Those of a process by its descriptor.
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

/// Who is served.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Welcome {
    // None where this process may not look at those that it serves.
    namespaces: Option<Namespaces>,
    network: Option<u64>,
}

impl Welcome {
    /// Those of this process's own namespaces.
    pub(crate) fn own() -> io::Result<Self> {
        let (socket, _other) = UnixStream::pair()?;
        let namespaces = Some(Namespaces::of("self")?);
        Ok(Self { namespaces, network: network(socket.as_fd())? })
    }

    /// Those of the same user that are where `peer`'s maker is, in namespaces above this process's
    /// own. Such a process has a number that is none here, and may not be looked at.
    pub(crate) fn above(peer: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { namespaces: None, network: network(peer)? })
    }

    /// Checks that whoever connected `socket` is one of them.
    pub(crate) fn check(self, socket: BorrowedFd<'_>) -> Result<(), Refused> {
        let unknown = |error: nix::Error| Refused::Unknown(error.into());
        let credentials = getsockopt(&socket, PeerCredentials).map_err(unknown)?;
        let number = credentials.pid();
        if network(socket).map_err(Refused::Unknown)? != self.network {
            return Err(Refused::Foreign(number));
        }
        match self.namespaces {
            Some(own) => check_namespaces(socket, number, own),
            None if credentials.uid() != nix::unistd::geteuid().as_raw() => {
                Err(Refused::User(credentials.uid()))
            }
            // Every process of this namespace and of those below it has a number here.
            None if number > 0 && !is_this(number) => Err(Refused::Foreign(number)),
            None => Ok(()),
        }
    }
}

fn is_this(number: i32) -> bool {
    u32::try_from(number).is_ok_and(|number| number == std::process::id())
}

/// A process that this one may not look at has rights that this one has not, or another user: no
/// process of a microVM's. It is served as far as it can be seen from here, that is, not from a
/// container beside.
fn check_namespaces(socket: BorrowedFd<'_>, number: i32, own: Namespaces) -> Result<(), Refused> {
    let found = match process(socket) {
        Ok(process) => match Namespaces::of_process(&process) {
            Err(error) if is_not_known(&error) => Namespaces::of(&number.to_string()),
            found => found,
        },
        Err(error) if is_not_known(&error) => Namespaces::of(&number.to_string()),
        Err(error) => Err(error),
    };
    match found {
        Ok(namespaces) if namespaces == own => Ok(()),
        Ok(_) => Err(Refused::Foreign(number)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && number > 0 => Ok(()),
        Err(error) => Err(Refused::Unknown(error)),
    }
}

/// Whether an older kernel does not know what it was asked.
fn is_not_known(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOPROTOOPT | libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP)
    )
}

/// A descriptor of the process that connected.
fn process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    owned(option::<RawFd>(socket, PEER_PROCESS)?)
}

/// The network namespace of whoever connected; None where the kernel does not tell.
fn network(socket: BorrowedFd<'_>) -> io::Result<Option<u64>> {
    match option::<u64>(socket, NETWORK_NAMESPACE) {
        Err(error) if is_not_known(&error) => Ok(None),
        cookie => cookie.map(Some),
    }
}

/// An option of a socket that is a plain number.
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
    // SAFETY: the kernel just made it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    /// What becomes of a process that connects by `wrapper`.
    fn connect(wrapper: &[&str], welcome: Welcome) -> Result<(), Refused> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); \
                      s.connect(sys.argv[1]); s.recv(1)";
        let words = [wrapper, &["python3", "-c", script]].concat();
        let mut client = Command::new(words[0]).args(&words[1..]).arg(&path).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let checked = welcome.check(stream.as_fd());
        drop(stream);
        client.wait().unwrap();
        checked
    }

    #[test]
    fn a_process_of_the_same_namespaces_is_served_and_one_of_others_is_not() {
        let own = Welcome::own().unwrap();
        connect(&["env"], own).unwrap();
        // Another namespace that is of no account.
        connect(&["unshare", "--mount"], own).unwrap();
        for wrapper in [
            &["unshare", "--user", "--map-root-user"][..],
            &["unshare", "--pid", "--fork"],
            &["unshare", "--net"],
            &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
        ] {
            let refused = connect(wrapper, own).unwrap_err();
            assert!(matches!(refused, Refused::Foreign(1..)), "{wrapper:?}: {refused}");
        }
    }

    #[test]
    fn one_that_serves_those_above_it_tells_them_by_network_user_and_number() {
        let (maker, _other) = UnixStream::pair().unwrap();
        let above = Welcome::above(maker.as_fd()).unwrap();
        above.check(maker.as_fd()).unwrap();
        // They have numbers here, as a shepherd's own children have; what is above has none.
        for wrapper in [&["env"][..], &["unshare", "--user", "--pid", "--fork"]] {
            let refused = connect(wrapper, above).unwrap_err();
            assert!(matches!(refused, Refused::Foreign(1..)), "{wrapper:?}: {refused}");
        }
        let elsewhere = Welcome { network: above.network.map(|cookie| cookie + 1), ..above };
        assert!(matches!(elsewhere.check(maker.as_fd()), Err(Refused::Foreign(_))));
    }

    #[test]
    fn both_ways_of_asking_give_the_same_answer() {
        let (one, _other) = UnixStream::pair().unwrap();
        let own = Namespaces::of("self").unwrap();
        Welcome::own().unwrap().check(one.as_fd()).unwrap();
        assert_eq!(Namespaces::of(&std::process::id().to_string()).unwrap(), own);
        match process(one.as_fd()).and_then(|process| Namespaces::of_process(&process)) {
            Ok(found) => assert_eq!(found, own),
            Err(error) => assert!(is_not_known(&error), "{error}"),
        }
    }
}
