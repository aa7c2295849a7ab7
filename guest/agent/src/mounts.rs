//! Mounts the file systems that programs expect `stderr_copy` the root file system.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use mayfly_protocol::settings::GuestSettings;
use nix::mount::{MsFlags, mount};

use crate::boot::create_directory;
use crate::error::{Context, StepError};

/// The job's control group. The agent stays in the root group.
pub const JOB_GROUP: &str = "/sys/fs/cgroup/job";

/// A file system to mount.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_PRIVILEGES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// The file systems, in mount order. A tmpfs is limited to half of the memory, the kernel's
/// default, or less.
const FILE_SYSTEMS: [FileSystem; 6] = [
    FileSystem { kind: "proc", target: "/proc", flags: NO_PROGRAMS, options: "" },
    FileSystem { kind: "sysfs", target: "/sys", flags: NO_PROGRAMS, options: "" },
    FileSystem {
        kind: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        // Group 5 is `tty` in every Debian.
        options: "gid=5,mode=620,ptmxmode=666",
    },
    FileSystem { kind: "tmpfs", target: "/dev/shm", flags: NO_PRIVILEGES, options: "mode=1777" },
    FileSystem {
        kind: "tmpfs",
        target: "/run",
        flags: NO_PRIVILEGES,
        options: "mode=755,size=20%",
    },
    FileSystem { kind: "cgroup2", target: "/sys/fs/cgroup", flags: NO_PROGRAMS, options: "" },
];

/// The directories of temporary files. They stay on the disk, which is larger than the memory and
/// equally short-lived, and are mounted with `nosuid` and `nodev`.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// The links that a device manager would create.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// The option of `/proc` that hides processes of other users.
const HIDE_PROCESSES: &str = "hidepid=2";

/// Mounts all file systems except `/dev`, which is mounted already.
pub fn mount_all(settings: &GuestSettings) -> Result<(), StepError> {
    for FileSystem { kind, target, flags, options } in &FILE_SYSTEMS {
        create_mount_point(target)?;
        let hide = *kind == "proc" && settings.hide_processes;
        let options = if hide { HIDE_PROCESSES } else { options };
        mount(Some(*kind), *target, Some(*kind), *flags, Some(options))
            .context(|| format!("mount {kind} on {target}"))?;
    }
    for (target, link) in LINKS {
        create_link(target, link)?;
    }
    create_directory(JOB_GROUP)?;
    create_public_directory("/run/lock")?;
    if settings.restrict_data {
        // A directory comes after its parent.
        for (path, limits) in
            [("/home", NO_PRIVILEGES), ("/var", NO_PRIVILEGES), ("/var/log", NO_PROGRAMS)]
        {
            create_directory(path)?;
            restrict(path, limits)?;
        }
    }
    for path in TEMPORARY {
        create_public_directory(path)?;
        restrict(path, NO_PRIVILEGES)?;
    }
    Ok(())
}

/// Creates a mount point. `/sys/fs/cgroup` is created by the kernel.
fn create_mount_point(target: &str) -> Result<(), StepError> {
    if Path::new(target).is_dir() { Ok(()) } else { create_directory(target) }
}

fn create_link(target: &str, link: &str) -> Result<(), StepError> {
    match symlink(target, link) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).context(|| format!("create the link {link}"))
        }
        _ => Ok(()),
    }
}

/// Creates a world-writable directory with the sticky bit.
fn create_public_directory(path: &str) -> Result<(), StepError> {
    fs::create_dir_all(path).context(|| format!("create the directory {path}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777))
        .context(|| format!("make {path} world-writable"))
}

/// Restricts a directory with mount flags, by a bind mount on itself.
fn restrict(path: &str, limits: MsFlags) -> Result<(), StepError> {
    const NONE: Option<&str> = None;
    mount(Some(path), path, NONE, MsFlags::MS_BIND, NONE)
        .context(|| format!("mount {path} on itself"))?;
    let flags = limits | MsFlags::MS_NOATIME | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(NONE, path, NONE, flags, NONE).context(|| format!("restrict {path}"))
}
