//! Processes, read from `/proc`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

use super::{TIMEOUT, until};

/// The processes of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessTree {
    /// `mayfly run`.
    pub(crate) front: Pid,
    /// `mayfly shepherd`.
    pub(crate) shepherd: Pid,
    pub(crate) qemu: Pid,
    /// `vhost-device-vsock`.
    pub(crate) vsock: Pid,
}

impl ProcessTree {
    /// Waits until all processes below `mayfly run` exist.
    pub(crate) fn wait_for(front: Pid) -> Self {
        until("all processes of a microVM", TIMEOUT, || {
            let shepherd = shepherd(front)?;
            let child = |name: &str| {
                children(shepherd).into_iter().find(|child| {
                    let program = program(*child);
                    program.is_some_and(|path| path.to_string_lossy().contains(name))
                })
            };
            Some(Self {
                front,
                shepherd,
                qemu: child("qemu-system")?,
                vsock: child("vhost-device-vsock")?,
            })
        })
    }

    /// Returns all of them.
    pub(crate) fn all(&self) -> [Pid; 4] {
        [self.front, self.shepherd, self.qemu, self.vsock]
    }
}

/// Returns the shepherd of a `mayfly run`, once it has executed.
pub(crate) fn shepherd(front: Pid) -> Option<Pid> {
    children(front).into_iter().find(|child| {
        fs::read(file(*child, "cmdline")).is_ok_and(|line| line.starts_with(b"mayfly\0shepherd\0"))
    })
}

/// Returns the children of a process.
pub(crate) fn children(parent: Pid) -> Vec<Pid> {
    let is_child = |pid: &Pid| status(*pid, "PPid").is_some_and(|text| text == parent.to_string());
    all().into_iter().filter(is_child).collect()
}

/// Returns all visible processes.
pub(crate) fn all() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.map(Pid::from_raw).collect()
}

/// Returns the processes that refer to a directory in their arguments, working directory, root, or
/// program.
pub(crate) fn mentioning(directory: &Path) -> Vec<String> {
    let needle = directory.as_os_str().as_bytes();
    let mentions = |bytes: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let is_related = |pid: &Pid| {
        let line = fs::read(file(*pid, "cmdline")).unwrap_or_default();
        let links = ["cwd", "exe", "root"].map(|name| fs::read_link(file(*pid, name)));
        let links = links.into_iter().flatten();
        mentions(&line) || links.into_iter().any(|link| mentions(link.as_os_str().as_bytes()))
    };
    let own = Pid::this();
    let describe = |pid: Pid| {
        let line = fs::read(file(pid, "cmdline")).unwrap_or_default();
        format!("{pid}: {}", String::from_utf8_lossy(&line).replace('\0', " "))
    };
    all().into_iter().filter(|pid| *pid != own && is_related(pid)).map(describe).collect()
}

/// Returns the path of a process's file in `/proc`.
pub(crate) fn file(pid: Pid, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// Returns the executable of a process.
pub(crate) fn program(pid: Pid) -> Option<PathBuf> {
    fs::read_link(file(pid, "exe")).ok()
}

/// Returns a field of `/proc/PID/status`.
pub(crate) fn status(pid: Pid, field: &str) -> Option<String> {
    let text = fs::read_to_string(file(pid, "status")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}

/// Returns a size in `/proc/PID/status`, in bytes.
pub(crate) fn size(pid: Pid, field: &str) -> Option<u64> {
    let text = status(pid, field)?;
    Some(text.strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}
