//! Who connects to a unix socket: a process of this one's own namespaces, or another.
//!
//! A user id says little: QEMU of each microVM has that of the daemon. What it has not is the
//! daemon's process-id and user namespaces. The kernel tells them of the very process that
//! connected (`SO_PEERPIDFD`, Linux 6.5, and the controls of a process descriptor, Linux 6.11);
//! an older one tells the number of that process, and `/proc` the namespaces.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;

/// `SO_PEERPIDFD` of `asm-generic/socket.h`.
const PEER_PROCESS: libc::c_int = 77;
/// `PIDFD_GET_PID_NAMESPACE` and `PIDFD_GET_USER_NAMESPACE` of `linux/pidfd.h`.
const PROCESS_NAMESPACE: libc::Ioctl = 0xff05;
const USER_NAMESPACE: libc::Ioctl = 0xff09;

/// A peer is not to be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// It lives elsewhere, as whatever runs in a microVM's sandbox does.
    #[error("process {0} is in other namespaces than the daemon")]
    Foreign(i32),
    /// Nothing could be found out about it.
    #[error("can't find out who connected")]
    Unknown(#[source] io::Error),
}

/// What decides: the process-id and the user namespace of a process, each by device and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Namespaces([(u64, u64); 2]);

impl Namespaces {
    /// Those of this process.
    pub(crate) fn own() -> io::Result<Self> {
        Self::of("self")
    }

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

/// Checks that whoever connected `socket` is of the namespaces `own`.
///
/// A process that this one may not look at has rights that this one has not, or another user: no
/// process of a microVM's. It is served as far as it can be seen from here, that is, not from a
/// container beside.
pub(crate) fn check(socket: BorrowedFd<'_>, own: Namespaces) -> Result<(), Refused> {
    let credentials = getsockopt(&socket, PeerCredentials);
    let number = credentials.map_err(|error| Refused::Unknown(error.into()))?.pid();
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
    let mut number: RawFd = -1;
    let mut length = libc::socklen_t::try_from(size_of::<RawFd>()).unwrap_or(0);
    // SAFETY: both pointers are valid for the call, and the length is that of the number.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            PEER_PROCESS,
            (&raw mut number).cast(),
            &raw mut length,
        )
    };
    if result == 0 { owned(number) } else { Err(io::Error::last_os_error()) }
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
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;
    use std::process::Command;

    use super::*;

    /// What becomes of a process that connects by `wrapper`.
    fn connect(wrapper: &[&str]) -> Result<(), Refused> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); \
                      s.connect(sys.argv[1]); s.recv(1)";
        let words = [wrapper, &["python3", "-c", script]].concat();
        let mut client = Command::new(words[0]).args(&words[1..]).arg(&path).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        let checked = check(stream.as_fd(), Namespaces::own().unwrap());
        drop(stream);
        client.wait().unwrap();
        checked
    }

    #[test]
    fn a_process_of_the_same_namespaces_is_served_and_one_of_others_is_not() {
        connect(&["env"]).unwrap();
        // Other namespaces that are of no account.
        connect(&["unshare", "--mount", "--net"]).unwrap();
        for wrapper in [
            &["unshare", "--user", "--map-root-user"][..],
            &["unshare", "--pid", "--fork"],
            &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"],
        ] {
            let refused = connect(wrapper).unwrap_err();
            assert!(matches!(refused, Refused::Foreign(1..)), "{wrapper:?}: {refused}");
        }
    }

    #[test]
    fn both_ways_of_asking_give_the_same_answer() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let own = Namespaces::own().unwrap();
        check(one.as_fd(), own).unwrap();
        assert_eq!(Namespaces::of(&std::process::id().to_string()).unwrap(), own);
        match process(one.as_fd()).and_then(|process| Namespaces::of_process(&process)) {
            Ok(found) => assert_eq!(found, own),
            Err(error) => assert!(is_not_known(&error), "{error}"),
        }
    }
}
