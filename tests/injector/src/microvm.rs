//! The processes of a microVM, found from the process that started its shepherd.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;

/// A running microVM.
pub(crate) struct Microvm {
    pub(crate) id: String,
    pub(crate) qemu: Pid,
    pub(crate) vsock: Pid,
    pub(crate) shepherd: Pid,
}

impl Microvm {
    /// Returns a microVM whose shepherd is a child of this process, once its processes are
    /// confined.
    pub(crate) fn find_below(front: Pid) -> Option<Self> {
        children(front).into_iter().find_map(|shepherd| {
            let own = children(shepherd);
            let child = |name: &str| {
                own.iter().copied().find(|child| {
                    let program = fs::read_link(file(*child, "exe")).unwrap_or_default();
                    program.to_string_lossy().contains(name)
                })
            };
            let (qemu, vsock) = (child("qemu-system")?, child("vhost-device-vsock")?);
            let line = fs::read(file(qemu, "cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0).skip_while(|word| *word != b"-name");
            let name = String::from_utf8_lossy(words.nth(1)?).into_owned();
            let id = name.split(',').next()?.to_owned();
            // A process without its filter is not fully confined yet.
            let confined = |pid| status(pid, "Seccomp").is_some_and(|mode| mode == "2");
            let all = [qemu, vsock, shepherd].into_iter().all(confined);
            all.then_some(Self { id, qemu, vsock, shepherd })
        })
    }

    /// Returns the process of a column of the table.
    pub(crate) fn process(&self, name: &str) -> Pid {
        match name {
            "qemu" => self.qemu,
            "vsock" => self.vsock,
            _ => self.shepherd,
        }
    }
}

fn children(parent: Pid) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &Pid| status(*pid, "PPid").is_some_and(|text| text == parent.to_string());
    numbers.map(Pid::from_raw).filter(is_child).collect()
}

fn file(pid: Pid, name: &str) -> PathBuf {
    Path::new("/proc").join(pid.to_string()).join(name)
}

/// Returns a field of `/proc/PID/status`.
fn status(pid: Pid, field: &str) -> Option<String> {
    let text = fs::read_to_string(file(pid, "status")).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(name, _)| *name == field).map(|(_, value)| value.trim().to_owned())
}
