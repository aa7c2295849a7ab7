//! A process that is no child: found by its number, told from a later one with the same number by
//! when it began, and killed through a descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// What tells one process from all others, on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The boot that it belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// When it began, in clock ticks since that boot (`proc_pid_stat(5)`, field 22).
    pub ticks: u64,
}

/// The boot that this is.
pub fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Identity {
    /// Of the process with this number, or of this one (`self`).
    pub(super) fn of(process: &str) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
        Ok(Self { boot: boot()?, ticks: ticks(&text).ok_or(io::ErrorKind::InvalidData)? })
    }
}

/// Field 22; the second, a name in parentheses, may have anything in it.
fn ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The running process of a number and, where it is known, an identity. None where it has ended.
pub(super) fn find(number: u32, identity: Option<&Identity>) -> io::Result<Option<OwnedFd>> {
    let pidfd = match open(number) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(identity) = identity {
        match Identity::of(&number.to_string()) {
            Ok(found) if found == *identity => {}
            Ok(_) => return Ok(None),
            Err(error) if is_no_more(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    // A process that has ended and was not waited for is still found by its number.
    Ok(if has_ended(&pidfd)? { None } else { Some(pidfd) })
}

/// The shepherd of a directory, by what the kernel says: it is the first of a process-id namespace
/// other than this one's, which no daemon and no command is, and has the directory open, as its lock has
/// it, or in a root of its own, of which it can't let go.
pub(super) fn holder(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let own = place(Path::new("/proc/self/ns/pid"))?;
    let is = |number: u32| {
        let enclosed =
            is_enclosed(number)? && place(Path::new(&format!("/proc/{number}/ns/pid")))? != own;
        Ok::<_, io::Error>(enclosed && (has_open(number, directory)? || sees(number, directory)?))
    };
    for entry in fs::read_dir("/proc")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(process) = unless_hidden(open(number))? else { continue };
        // All of it was about this process, and not about a later one with its number.
        if unless_hidden(is(number))? == Some(true) && !has_ended(&process)? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// What was asked of a process; none of one that may not be looked at, which is another user's, or that
/// is gone. Any other error says nothing about the process: there may be no descriptors left to look.
fn unless_hidden<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_no_more(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the process of a number is the first of a process-id namespace below this one's.
pub(super) fn is_enclosed(number: u32) -> io::Result<bool> {
    let text = match fs::read_to_string(format!("/proc/{number}/status")) {
        Err(error) if is_no_more(&error) => return Ok(false),
        text => text?,
    };
    Ok(innermost(&text) == Some("1"))
}

/// The number of a process in the innermost of at least two namespaces (`proc_pid_status(5)`).
fn innermost(status: &str) -> Option<&str> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    // The first is that of the namespace that is looked from.
    numbers.split_ascii_whitespace().skip(1).last()
}

/// Whether the process of a number has a directory open.
fn has_open(number: u32, directory: &Path) -> io::Result<bool> {
    let wanted = place(directory)?;
    for entry in fs::read_dir(format!("/proc/{number}/fd"))? {
        // One that was closed in the meantime is none.
        if unless_hidden(place(&entry?.path()))? == Some(wanted) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the process of a number has a root of its own, in which a directory has its name.
fn sees(number: u32, directory: &Path) -> io::Result<bool> {
    let root = PathBuf::from(format!("/proc/{number}/root"));
    if place(&root)? == place(Path::new("/"))? {
        return Ok(false);
    }
    let name = directory.strip_prefix("/").unwrap_or(directory);
    Ok(place(&root.join(name))? == place(directory)?)
}

/// What tells a file from all others: its device and inode.
fn place(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn is_no_more(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process has ended.
pub(super) fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut look = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut look, PollTimeout::ZERO)? > 0)
}

/// Kills a process. One that has ended already is no error.
pub(super) fn kill(pidfd: &OwnedFd) -> io::Result<()> {
    let (number, info) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: takes an open descriptor, a number, no information and no flags.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, number, libc::SIGKILL, info, 0) };
    match io::Error::last_os_error() {
        error if sent < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// A descriptor of a process of which only the number is known (`pidfd_open(2)`).
fn open(number: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    match RawFd::try_from(opened) {
        // SAFETY: the kernel just made it, and nobody else has it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_with_parentheses_and_blanks_hides_nothing() {
        let rest = (3..=30).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(ticks(&format!("12 (a) b (c) {rest}")), Some(22));
        assert_eq!(ticks("12 (a"), None);
        assert_eq!(ticks("12 (a) S 1"), None);
    }

    #[test]
    fn the_innermost_number_counts_where_there_are_two() {
        for (line, expected) in [
            ("NSpid:\t57\t1\n", Some("1")),
            ("Name:\tNSpid:\nNSpid:\t57\t1\t8\n", Some("8")),
            ("NSpid:\t1\n", None),
            ("Name:\tx\n", None),
        ] {
            assert_eq!(innermost(line), expected, "{line}");
        }
    }

    #[test]
    fn a_process_is_found_while_it_runs_and_not_by_another_identity() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let number = child.id();
        let identity = Identity::of(&number.to_string()).unwrap();
        assert!(find(number, Some(&identity)).unwrap().is_some());
        for other in [
            Identity { ticks: identity.ticks + 1, ..identity.clone() },
            Identity { boot: "another".to_owned(), ..identity.clone() },
        ] {
            assert!(find(number, Some(&other)).unwrap().is_none());
        }
        let pidfd = find(number, None).unwrap().unwrap();
        kill(&pidfd).unwrap();
        while !has_ended(&pidfd).unwrap() {
            std::thread::yield_now();
        }
        // A zombie runs no more.
        assert!(find(number, Some(&identity)).unwrap().is_none());
        child.wait().unwrap();
        assert!(find(number, Some(&identity)).unwrap().is_none());
        kill(&pidfd).unwrap();
    }

    #[test]
    fn without_descriptors_to_look_nobody_is_taken_for_gone() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let directory = tempfile::tempdir().unwrap();
        assert!(holder(directory.path()).unwrap().is_none());
        let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let next = fs::File::open("/dev/null").unwrap().as_raw_fd();
        // Enough to list processes, and not to look at one.
        let few = u64::try_from(next).unwrap() + 1;
        setrlimit(Resource::RLIMIT_NOFILE, few, most).unwrap();
        let looked = holder(directory.path());
        setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
        assert_eq!(looked.unwrap_err().raw_os_error(), Some(libc::EMFILE));
    }
}
