//! Liveness of a microVM: who locks its directory, and which process that is.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::super::identity;
use super::{MicrovmSummary, read_summary};

/// Number and interval of attempts to lock a directory that another process is checking.
const LOCK_ATTEMPTS: u32 = 200;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(5);

/// Locks the directory of an ended microVM exclusively. `None` if the microVM is alive. Waits for
/// other checks, which hold the lock only briefly.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = File::open(directory)?;
    for _ in 0..LOCK_ATTEMPTS {
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB)? {
            return Ok(Some(file));
        }
        if is_locked(directory)? {
            return Ok(None);
        }
        std::thread::sleep(LOCK_RETRY_DELAY);
    }
    Ok(None)
}

/// Locks a new directory. Another process can only hold the lock for a brief check; fails if that
/// takes long, as the other process may have been stopped.
pub(crate) fn lock_created(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..LOCK_ATTEMPTS {
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB)? {
            return Ok(file);
        }
        std::thread::sleep(LOCK_RETRY_DELAY);
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Whether a shepherd holds the lock of a directory. Concurrent checks do not block each other.
pub fn is_locked(directory: &Path) -> io::Result<bool> {
    let file = File::open(directory)?;
    Ok(!flock(&file, libc::LOCK_SH | libc::LOCK_NB)?)
}

/// Calls `flock(2)`; returns false if another process holds the lock. The lock belongs to the open
/// file description: processes that inherit the descriptor share it until all have closed it.
pub(super) fn flock(file: &File, operation: libc::c_int) -> io::Result<bool> {
    // SAFETY: takes an open descriptor and a number.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            error => Err(error),
        },
    }
}

/// Whether a shepherd is alive, as seen by other processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It holds the lock of its directory.
    Alive,
    /// It released its directory but its process has not ended yet.
    Ending,
    /// It released its directory and its process has ended: nothing of the microVM remains.
    Gone,
}

/// Determines the liveness of a directory's shepherd. An error means that it is unknown, never that
/// the shepherd is gone.
pub fn liveness(directory: &Path) -> io::Result<Liveness> {
    if is_locked(directory)? {
        return Ok(Liveness::Alive);
    }
    // Without an identity, the process with this id could be any process.
    let Some(MicrovmSummary { pid, process: Some(process), .. }) = read_summary(directory)? else {
        return Ok(Liveness::Gone);
    };
    let ending = identity::find(pid, Some(&process))?.is_some() && identity::is_enclosed(pid)?;
    Ok(if ending { Liveness::Ending } else { Liveness::Gone })
}

/// Finds the process of a directory's shepherd. `None` if it has ended. Does not trust the process
/// id in the record: a compromised shepherd can write any id.
pub(crate) fn process(directory: &Path) -> io::Result<Option<OwnedFd>> {
    identity::find_holder(directory)
}

/// Kills a directory's shepherd, and with it all processes of its microVM, through a pidfd.
/// Succeeds if it has ended already.
pub fn kill(directory: &Path) -> io::Result<()> {
    process(directory)?.as_ref().map_or(Ok(()), identity::kill)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};

    use super::super::super::identity::ProcessIdentity;
    use super::super::super::plan::MicrovmId;
    use super::*;
    use mayfly_host::size::Size;

    /// Records a process id as that of the directory's shepherd.
    fn record_pid(directory: &Path, pid: u32) {
        let summary = MicrovmSummary {
            id: MicrovmId::parse("m-0123456789").unwrap(),
            image: "base".to_owned(),
            processors: 1,
            memory: Size::mebibytes(256),
            pid,
            since: "1999-01-01T00:00:00Z".to_owned(),
            process: Some(ProcessIdentity::read(&pid.to_string()).unwrap()),
            requested_at: None,
            deadlines: None,
        };
        let text = serde_json::to_vec(&summary).unwrap();
        fs::write(directory.join("microvm.json"), text).unwrap();
    }

    /// Starts a process that has this directory open.
    fn start(words: &[&str], directory: &Path) -> Child {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(File::open(directory).unwrap()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    /// Waits for a process's child that has executed its program.
    fn child(of: u32) -> u32 {
        for _ in 0..1000 {
            let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
            let child = children.ok().and_then(|text| text.trim().parse().ok());
            let name = |child: &u32| fs::read_to_string(format!("/proc/{child}/comm"));
            if let Some(child) = child.filter(|child| name(child).is_ok_and(|n| n == "sleep\n")) {
                return child;
            }
            std::thread::sleep(LOCK_RETRY_DELAY);
        }
        panic!("{of} has no child");
    }

    #[test]
    fn only_an_enclosed_process_that_holds_the_directory_is_killed() {
        let root = tempfile::tempdir().unwrap();
        let (own, other) = (root.path().join("own"), root.path().join("other"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&other).unwrap();
        let enclose = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "60"];
        let mut usual = start(&["sleep", "60"], &own);
        let mut wrong = start(&enclose, &other);
        child(wrong.id());
        for pid in [std::process::id(), usual.id(), wrong.id(), child(wrong.id())] {
            record_pid(&own, pid);
            kill(&own).unwrap();
            assert!(process(&own).unwrap().is_none(), "{pid}");
        }
        let mut right = start(&enclose, &own);
        child(right.id());
        kill(&own).unwrap();
        // `unshare` returns the status of its child.
        assert!(!right.wait().unwrap().success());
        assert!(process(&own).unwrap().is_none());
        for process in [&mut usual, &mut wrong] {
            assert!(process.try_wait().unwrap().is_none());
        }
        // A shepherd that claims the daemon's process id does not keep its directory forever.
        record_pid(&own, std::process::id());
        assert_eq!(liveness(&own).unwrap(), Liveness::Gone);
        kill(&other).unwrap();
        wrong.wait().unwrap();
        usual.kill().unwrap();
        usual.wait().unwrap();
    }
}
