//! A root directory that holds only what a process needs.
//!
//! It is a small tmpfs on which single files and directories of the host are mounted, each with as
//! few rights as will do. It is made in the mount namespace of the shepherd, where everything can
//! be said about what went wrong, and entered by whoever is to live in it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

/// A root directory could not be made.
#[derive(Debug, thiserror::Error)]
#[error("can't mount {} for an isolated process", path.display())]
pub(crate) struct RootError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

/// What may be done with a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Read files.
    Read,
    /// Read and execute files, which is what programs and libraries need.
    Execute,
    /// Read and write files, make and remove them.
    Write,
    /// Use a device.
    Device,
}

impl Right {
    /// The attributes of a mount that take all else away (`mount_setattr(2)`).
    fn attributes(self) -> u64 {
        match self {
            Self::Read => READ_ONLY | NO_SUID | NO_DEVICES | NO_EXECUTION,
            Self::Execute => READ_ONLY | NO_SUID | NO_DEVICES,
            Self::Write => NO_SUID | NO_DEVICES | NO_EXECUTION,
            Self::Device => NO_SUID | NO_EXECUTION,
        }
    }
}

const READ_ONLY: u64 = 0x1;
const NO_SUID: u64 = 0x2;
const NO_DEVICES: u64 = 0x4;
const NO_EXECUTION: u64 = 0x8;

/// The tmpfs holds directories and mount points only.
const SIZE: &str = "size=256k,mode=0755";

/// A file or directory of the host, and where it shows in the root.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    source: PathBuf,
    target: PathBuf,
    right: Right,
}

impl Entry {
    /// One that shows under another name.
    pub(crate) fn renamed(source: &Path, target: &Path, right: Right) -> Self {
        Self { source: source.to_owned(), target: target.to_owned(), right }
    }

    /// One that shows under its own name.
    pub(crate) fn new(path: &Path, right: Right) -> Self {
        Self::renamed(path, path, right)
    }

    /// Where it is on the host.
    pub(crate) fn source(&self) -> &Path {
        &self.source
    }
}

/// A root that was made, mounted at a path of the mount namespace of whoever made it.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
    name: CString,
}

impl Root {
    /// Makes it at `path`, a directory that is made where it is missing. Nothing of the mount
    /// namespace may be shared with others, and it takes the right to mount.
    pub(crate) fn make(path: &Path, entries: &[Entry]) -> Result<Self, RootError> {
        let refused = |path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| RootError { path, error }
        };
        let name = CString::new(path.as_os_str().as_bytes())
            .map_err(|error| refused(path)(error.into()))?;
        fs::create_dir_all(path).map_err(refused(path))?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("mayfly"), path, Some("tmpfs"), flags, Some(SIZE))
            .map_err(|error| refused(path)(error.into()))?;
        for entry in entries {
            attach(path, entry).map_err(refused(&entry.source))?;
        }
        set_attributes(path, READ_ONLY, false).map_err(refused(path))?;
        Ok(Self { path: path.to_owned(), name })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The same, for [`enter`].
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }
}

fn attach(root: &Path, entry: &Entry) -> io::Result<()> {
    let target = root.join(entry.target.strip_prefix("/").unwrap_or(&entry.target));
    if fs::metadata(&entry.source)?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        // Not opened: a child that another thread starts just then would hold it, and what is open
        // for writing somewhere can't be made read-only.
        match mknod(&target, SFlag::S_IFREG, Mode::S_IRUSR | Mode::S_IWUSR, 0) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let none = None::<&Path>;
    mount(Some(&entry.source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    set_attributes(&target, entry.right.attributes(), true)
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}

/// Adds attributes to a mount, and to those below it. None is ever taken away, so that a mount
/// that is locked by a parent namespace is no matter.
fn set_attributes(path: &Path, set: u64, recursive: bool) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let attributes = Attributes { set, clear: 0, propagation: 0, namespace: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: path and attributes are valid for the call, and the size is that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the root at `path` that of this process, and lets go of all that was mounted before.
/// Safe between fork and exec: makes system calls only.
pub(crate) fn enter(path: &CStr) -> nix::Result<()> {
    nix::unistd::chdir(path)?;
    // With both the same, the old root lies on top of the new one, and is taken off again.
    nix::unistd::pivot_root(c".", c".")?;
    umount2(c".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir(c"/")
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_root_is_made_while_other_threads_start_children() {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let entries = [
            Entry::new(Path::new("/dev/null"), Right::Device),
            Entry::new(Path::new("/etc/passwd"), Right::Read),
        ];
        let over = AtomicBool::new(false);
        let children = || {
            while !over.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().unwrap().success());
            }
        };
        let roots = || {
            unshare(CloneFlags::CLONE_NEWNS)?;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
            for number in 0..300 {
                let path = directory.path().join(number.to_string());
                Root::make(&path, &entries).map_err(io::Error::other)?;
            }
            io::Result::Ok(())
        };
        std::thread::scope(|scope| {
            scope.spawn(children);
            scope.spawn(children);
            let made = scope.spawn(roots).join().unwrap();
            over.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }
}
