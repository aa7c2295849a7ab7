//! Whether a microVM lives: who holds its directory, and which process that is.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::super::identity;
use super::{Summary, summary};

/// How often, and after which time, a directory is tried to be locked that others look at.
const LOOKS: u32 = 200;
const BETWEEN_LOOKS: Duration = Duration::from_millis(5);

/// Locks the directory of a microVM that is no more, so that nobody else looks after it; `None`
/// where it lives. Those who look have it for a moment only, which is waited for.
pub(super) fn lock(directory: &Path) -> io::Result<Option<File>> {
    let file = File::open(directory)?;
    for _ in 0..LOOKS {
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB)? {
            return Ok(Some(file));
        }
        if is_living(directory)? {
            return Ok(None);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Ok(None)
}

/// Locks a directory that was just made: whoever has it looks at it only, and is soon done. An error
/// where that takes long: who looks may have been stopped.
pub(in crate::shepherd) fn lock_new(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    for _ in 0..LOOKS {
        if flock(&file, libc::LOCK_EX | libc::LOCK_NB)? {
            return Ok(file);
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

/// Whether the microVM of a directory lives. Looks do not stand in each other's way.
pub fn is_living(directory: &Path) -> io::Result<bool> {
    let file = File::open(directory)?;
    Ok(!flock(&file, libc::LOCK_SH | libc::LOCK_NB)?)
}

/// `flock(2)`; false where another has it. The lock belongs to the open file, so that a process that
/// inherits the descriptor has it too: it is gone when all have closed it.
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

/// How a shepherd is, from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It holds its directory.
    Alive,
    /// Its directory is free, but its process has not ended yet.
    Ending,
    /// Its directory is free and its process has ended: nothing of the microVM is left.
    Gone,
}

/// How the shepherd of a directory is. An error says that it could not be looked at, never that it
/// is gone.
pub fn liveness(directory: &Path) -> io::Result<Liveness> {
    if is_living(directory)? {
        return Ok(Liveness::Alive);
    }
    // Without an identity a process with that number could be any by now.
    let Some(Summary { pid, process: Some(process), .. }) = summary(directory)? else {
        return Ok(Liveness::Gone);
    };
    let ending = identity::find(pid, Some(&process))?.is_some() && identity::is_enclosed(pid)?;
    Ok(if ending { Liveness::Ending } else { Liveness::Gone })
}

/// The shepherd of a directory as a process; `None` where it has ended. What it has written there
/// does not count: one that was taken over can write any number.
pub(in crate::shepherd) fn process(directory: &Path) -> io::Result<Option<OwnedFd>> {
    identity::holder(directory)
}

/// Kills the shepherd of a directory, and with it everything of its microVM, through a descriptor
/// of its process. One that has ended already is no error.
pub fn kill(directory: &Path) -> io::Result<()> {
    process(directory)?.as_ref().map_or(Ok(()), identity::kill)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::{Child, Command, Stdio};

    use super::super::super::identity::Identity;
    use super::super::super::plan::Id;
    use super::*;
    use crate::host::size::Size;

    /// A directory whose shepherd says that it is this process.
    fn says(directory: &Path, pid: u32) {
        let summary = Summary {
            id: Id::parse("m-0123456789").unwrap(),
            image: "base".to_owned(),
            processors: 1,
            memory: Size::mebibytes(256),
            pid,
            since: "1999-01-01T00:00:00Z".to_owned(),
            process: Some(Identity::of(&pid.to_string()).unwrap()),
            asked: None,
        };
        let text = serde_json::to_vec(&summary).unwrap();
        fs::write(directory.join("microvm.json"), text).unwrap();
    }

    /// A process that waits, and has this directory open.
    fn start(words: &[&str], directory: &Path) -> Child {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).stdin(File::open(directory).unwrap()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    /// The child of a process, once it has one that has executed its program.
    fn child(of: u32) -> u32 {
        for _ in 0..1000 {
            let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children"));
            let child = children.ok().and_then(|text| text.trim().parse().ok());
            let name = |child: &u32| fs::read_to_string(format!("/proc/{child}/comm"));
            if let Some(child) = child.filter(|child| name(child).is_ok_and(|n| n == "sleep\n")) {
                return child;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        panic!("{of} has no child");
    }

    #[test]
    fn only_who_holds_the_directory_in_a_namespace_of_its_own_is_killed() {
        let root = tempfile::tempdir().unwrap();
        let (own, other) = (root.path().join("own"), root.path().join("other"));
        fs::create_dir(&own).unwrap();
        fs::create_dir(&other).unwrap();
        let enclose = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "sleep", "60"];
        let mut usual = start(&["sleep", "60"], &own);
        let mut wrong = start(&enclose, &other);
        child(wrong.id());
        for pid in [std::process::id(), usual.id(), wrong.id(), child(wrong.id())] {
            says(&own, pid);
            kill(&own).unwrap();
            assert!(process(&own).unwrap().is_none(), "{pid}");
        }
        let mut right = start(&enclose, &own);
        child(right.id());
        kill(&own).unwrap();
        // It tells how its child has ended.
        assert!(!right.wait().unwrap().success());
        assert!(process(&own).unwrap().is_none());
        for process in [&mut usual, &mut wrong] {
            assert!(process.try_wait().unwrap().is_none());
        }
        // One that says that it is the daemon does not keep its directory for ever.
        says(&own, std::process::id());
        assert_eq!(liveness(&own).unwrap(), Liveness::Gone);
        kill(&other).unwrap();
        wrong.wait().unwrap();
        usual.kill().unwrap();
        usual.wait().unwrap();
    }
}
