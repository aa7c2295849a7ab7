//! Root directories that contain only what a process needs.
//!
//! A root is a small tmpfs on which single files and directories of the host are mounted with
//! minimal rights. The shepherd creates it in its mount namespace, where errors can be reported in
//! detail, and the confined process enters it.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

/// An error of creating a root directory.
#[derive(Debug, thiserror::Error)]
#[error("can't mount {} for an isolated process", path.display())]
pub struct RootError {
    path: PathBuf,
    #[source]
    error: io::Error,
}

/// The access that a mount permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountAccess {
    /// Read files.
    Read,
    /// Read and execute files, which is what programs and libraries need.
    Execute,
    /// Read, write, create and remove files.
    Write,
    /// Use a device.
    Device,
}

impl MountAccess {
    /// Returns the mount attributes that deny everything else (`mount_setattr(2)`).
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

/// Mount options of the tmpfs, which only contains directories and mount points.
const SIZE: &str = "size=256k,mode=0755";

/// A file or directory of the host, and its place in the root.
#[derive(Debug, Clone)]
pub struct RootEntry {
    source: PathBuf,
    target: PathBuf,
    access: MountAccess,
}

impl RootEntry {
    /// Mounts `source` as `target`.
    pub fn at(source: &Path, target: &Path, access: MountAccess) -> Self {
        Self { source: source.to_owned(), target: target.to_owned(), access }
    }

    /// Mounts `path` under its own name.
    pub fn new(path: &Path, access: MountAccess) -> Self {
        Self::at(path, path, access)
    }

    /// Returns its path on the host.
    pub fn source(&self) -> &Path {
        &self.source
    }
}

/// A created root, mounted in the creator's mount namespace.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    name: CString,
}

impl Root {
    /// Creates the root at `path`, and that directory if needed. The mount namespace must be
    /// private, and the process must be permitted to mount.
    pub fn create(path: &Path, entries: &[RootEntry]) -> Result<Self, RootError> {
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

    /// Returns the path at which it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the same path, for [`enter`].
    pub fn name(&self) -> &CStr {
        &self.name
    }
}

fn attach(root: &Path, entry: &RootEntry) -> io::Result<()> {
    let target = root.join(entry.target.strip_prefix("/").unwrap_or(&entry.target));
    if fs::metadata(&entry.source)?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        target.parent().map_or(Ok(()), fs::create_dir_all)?;
        // Not opened: a child that another thread starts at that moment would inherit it, and a
        // file that is open for writing can't be mounted read-only.
        match mknod(&target, SFlag::S_IFREG, Mode::S_IRUSR | Mode::S_IWUSR, 0) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let none = None::<&Path>;
    mount(Some(&entry.source), &target, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
    set_attributes(&target, entry.access.attributes(), true)
}

/// `struct mount_attr` of `mount_setattr(2)`.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}

/// Adds attributes to a mount and, if `recursive`, to those below it. Removes none, so mounts that
/// are locked by a parent namespace are not a problem.
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

/// Makes the directory at `path` this process's root and detaches the old one. Safe between fork
/// and exec: only makes system calls.
pub fn enter(path: &CStr) -> nix::Result<()> {
    nix::unistd::chdir(path)?;
    // With the same path twice, the old root is stacked on the new one and then detached.
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
    fn a_root_is_created_while_other_threads_start_children() {
        assert!(nix::unistd::geteuid().is_root(), "this test mounts: run it as root");
        let directory = tempfile::tempdir().unwrap();
        let entries = [
            RootEntry::new(Path::new("/dev/null"), MountAccess::Device),
            RootEntry::new(Path::new("/etc/passwd"), MountAccess::Read),
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
                Root::create(&path, &entries).map_err(io::Error::other)?;
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
