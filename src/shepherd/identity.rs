//! Processes that are not children of this one: found by process id, told from a later process with
//! the same id by start time, and killed through a pidfd.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// Identifies a process uniquely on one host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The boot that the process belongs to (`/proc/sys/kernel/random/boot_id`).
    pub boot: String,
    /// Start time in clock ticks since that boot (`proc_pid_stat(5)`, field 22).
    pub ticks: u64,
}

/// Returns the id of the current boot.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl ProcessIdentity {
    /// Reads the identity of the process with this id, or of this one (`self`).
    pub(super) fn read(process: &str) -> io::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
        Ok(Self {
            boot: boot_id()?,
            ticks: parse_start_ticks(&text).ok_or(io::ErrorKind::InvalidData)?,
        })
    }
}

/// Parses field 22. Field 2, the name in parentheses, may contain any character.
fn parse_start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Finds the running process with this id and, if given, this identity. `None` if it has ended.
pub(super) fn find(number: u32, identity: Option<&ProcessIdentity>) -> io::Result<Option<OwnedFd>> {
    let pidfd = match open(number) {
        Ok(pidfd) => pidfd,
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Some(identity) = identity {
        match ProcessIdentity::read(&number.to_string()) {
            Ok(found) if found == *identity => {}
            Ok(_) => return Ok(None),
            Err(error) if is_gone_error(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    // A zombie is still found by its id.
    Ok(if has_ended(&pidfd)? { None } else { Some(pidfd) })
}

/// Finds the shepherd of a directory from kernel data alone. A shepherd is the first process of a
/// process-id namespace other than this one's, which the daemon and commands are not. It has the
/// directory open, for its lock, or sees it under the same name in its own root, which it can't
/// leave.
pub(super) fn find_holder(directory: &Path) -> io::Result<Option<OwnedFd>> {
    let own = file_id(Path::new("/proc/self/ns/pid"))?;
    let is_shepherd = |number: u32| {
        let enclosed =
            is_enclosed(number)? && file_id(Path::new(&format!("/proc/{number}/ns/pid")))? != own;
        Ok::<_, io::Error>(
            enclosed && (has_open(number, directory)? || sees_directory(number, directory)?),
        )
    };
    for entry in fs::read_dir("/proc")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Some(process) = if_visible(open(number))? else { continue };
        // The pidfd was opened first, so the checks were about this process and not a later one.
        if if_visible(is_shepherd(number))? == Some(true) && !has_ended(&process)? {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Returns `None` for a process that has ended or belongs to another user and can't be inspected.
/// Other errors say nothing about the process; descriptors may have run out, for example.
fn if_visible<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_gone_error(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whether the process is the first of a process-id namespace below this one's.
pub(super) fn is_enclosed(number: u32) -> io::Result<bool> {
    let text = match fs::read_to_string(format!("/proc/{number}/status")) {
        Err(error) if is_gone_error(&error) => return Ok(false),
        text => text?,
    };
    Ok(innermost(&text) == Some("1"))
}

/// Returns the process id in the innermost of at least two namespaces (`proc_pid_status(5)`).
fn innermost(status: &str) -> Option<&str> {
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    // The first id is the one in this process's namespace.
    numbers.split_ascii_whitespace().skip(1).last()
}

/// Whether the process has a directory open.
fn has_open(number: u32, directory: &Path) -> io::Result<bool> {
    let target = file_id(directory)?;
    for entry in fs::read_dir(format!("/proc/{number}/fd"))? {
        // Skips a descriptor that was closed in the meantime.
        if if_visible(file_id(&entry?.path()))? == Some(target) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the process has its own root, in which the directory has the same name.
fn sees_directory(number: u32, directory: &Path) -> io::Result<bool> {
    let root = PathBuf::from(format!("/proc/{number}/root"));
    if file_id(&root)? == file_id(Path::new("/"))? {
        return Ok(false);
    }
    let name = directory.strip_prefix("/").unwrap_or(directory);
    Ok(file_id(&root.join(name))? == file_id(directory)?)
}

/// Returns device and inode of a file.
fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn is_gone_error(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// Whether a process has ended.
pub(super) fn has_ended(pidfd: &OwnedFd) -> io::Result<bool> {
    let mut events = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut events, PollTimeout::ZERO)? > 0)
}

/// Kills a process. Succeeds if it has ended already.
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

/// Opens a pidfd for a process id (`pidfd_open(2)`).
fn open(number: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes plain numbers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
    match RawFd::try_from(opened) {
        // SAFETY: the kernel just created it, and it has no other owner.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_name_with_parentheses_and_spaces_is_skipped() {
        let rest = (3..=30).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
        assert_eq!(parse_start_ticks(&format!("12 (a) b (c) {rest}")), Some(22));
        assert_eq!(parse_start_ticks("12 (a"), None);
        assert_eq!(parse_start_ticks("12 (a) S 1"), None);
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
        let identity = ProcessIdentity::read(&number.to_string()).unwrap();
        assert!(find(number, Some(&identity)).unwrap().is_some());
        for other in [
            ProcessIdentity { ticks: identity.ticks + 1, ..identity.clone() },
            ProcessIdentity { boot: "another".to_owned(), ..identity.clone() },
        ] {
            assert!(find(number, Some(&other)).unwrap().is_none());
        }
        let pidfd = find(number, None).unwrap().unwrap();
        kill(&pidfd).unwrap();
        while !has_ended(&pidfd).unwrap() {
            std::thread::yield_now();
        }
        // A zombie does not run.
        assert!(find(number, Some(&identity)).unwrap().is_none());
        child.wait().unwrap();
        assert!(find(number, Some(&identity)).unwrap().is_none());
        kill(&pidfd).unwrap();
    }

    #[test]
    fn without_free_descriptors_no_process_is_taken_for_gone() {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        let directory = tempfile::tempdir().unwrap();
        assert!(find_holder(directory.path()).unwrap().is_none());
        let (limit, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let next = fs::File::open("/dev/null").unwrap().as_raw_fd();
        // Enough to list processes, not enough to inspect one.
        let few = u64::try_from(next).unwrap() + 1;
        setrlimit(Resource::RLIMIT_NOFILE, few, most).unwrap();
        let looked = find_holder(directory.path());
        setrlimit(Resource::RLIMIT_NOFILE, limit, most).unwrap();
        assert_eq!(looked.unwrap_err().raw_os_error(), Some(libc::EMFILE));
    }
}
