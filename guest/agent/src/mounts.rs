//! File systems and nodes that programs expect around the root file system.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use mayfly_protocol::settings::Settings;
use nix::mount::{MsFlags, mount};

use crate::boot::create_directory;
use crate::error::{During, StepError};

/// The job's control group, beside which the agent stays in the root group.
pub const JOB_GROUP: &str = "/sys/fs/cgroup/job";

/// One file system to mount.
struct FileSystem {
    kind: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const NO_PRIVILEGES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// In the order in which they are mounted. What lies in memory is bounded by the kernel's default,
/// half of the machine's, or less.
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

/// Temporary files stay on the disk, where there is more room than in memory and nothing is kept
/// either, but neither set-user-id bits nor device nodes count there.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// The links that a device manager would make.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// For `/proc`: a process sees only those of its own user.
const HIDE_PROCESSES: &str = "hidepid=2";

/// Mounts all of it. `/dev` is there already.
pub fn mount_all(settings: &Settings) -> Result<(), StepError> {
    for FileSystem { kind, target, flags, options } in &FILE_SYSTEMS {
        create_directory_unless_of_kernel(target)?;
        let hide = *kind == "proc" && settings.hide_processes;
        let options = if hide { HIDE_PROCESSES } else { options };
        mount(Some(*kind), *target, Some(*kind), *flags, Some(options))
            .during(|| format!("mount {kind} on {target}"))?;
    }
    for (target, link) in LINKS {
        link_unless_there(target, link)?;
    }
    create_directory(JOB_GROUP)?;
    make_public("/run/lock")?;
    if settings.restrict_data {
        // What lies below another comes after it.
        for (path, limits) in
            [("/home", NO_PRIVILEGES), ("/var", NO_PRIVILEGES), ("/var/log", NO_PROGRAMS)]
        {
            create_directory(path)?;
            restrict(path, limits)?;
        }
    }
    for path in TEMPORARY {
        make_public(path)?;
        restrict(path, NO_PRIVILEGES)?;
    }
    Ok(())
}

/// Makes a mount point. `/sys/fs/cgroup` is the kernel's own.
fn create_directory_unless_of_kernel(target: &str) -> Result<(), StepError> {
    if Path::new(target).is_dir() { Ok(()) } else { create_directory(target) }
}

fn link_unless_there(target: &str, link: &str) -> Result<(), StepError> {
    match symlink(target, link) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).during(|| format!("make the link {link}"))
        }
        _ => Ok(()),
    }
}

/// A directory in which everybody may make files of their own.
fn make_public(path: &str) -> Result<(), StepError> {
    fs::create_dir_all(path).during(|| format!("make the directory {path}"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o1777))
        .during(|| format!("make {path} writable for everybody"))
}

/// A part of the disk gets limits of its own: it is mounted on itself.
fn restrict(path: &str, limits: MsFlags) -> Result<(), StepError> {
    const NONE: Option<&str> = None;
    mount(Some(path), path, NONE, MsFlags::MS_BIND, NONE)
        .during(|| format!("mount {path} on itself"))?;
    let flags = limits | MsFlags::MS_NOATIME | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(NONE, path, NONE, flags, NONE).during(|| format!("restrict {path}"))
}
