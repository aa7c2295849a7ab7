//! Inventories of everything that a run could leave behind, taken from outside.
//!
//! Only Mayfly runs in the namespaces of a [`Sandbox`]. A test can compare all resources before and
//! after a run, without those of the rest of the system.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use super::processes::{self, children, file};
use super::{Host, TIMEOUT, require_root, until};

/// New PID, mount, network, and IPC namespaces whose first process only reaps.
pub(crate) struct Sandbox {
    outer: Child,
    init: Pid,
    watched: PathBuf,
}

/// A set of resources, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inventory(BTreeSet<String>);

impl Sandbox {
    /// Creates a sandbox and makes `host` run Mayfly in it.
    pub(crate) fn around(host: &mut Host) -> Self {
        require_root();
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--pid", "--mount-proc", "--mount", "--net", "--ipc", "--kill-child"])
            // The kernel reaps the children of a process that ignores SIGCHLD.
            .args(["--", "env", "--ignore-signal=CHLD", "sleep", "infinity"])
            .stdin(Stdio::null())
            .process_group(0);
        let outer = command.spawn().unwrap();
        let outside = Pid::from_raw(i32::try_from(outer.id()).unwrap());
        let init = until("the sandbox's first process", TIMEOUT, || {
            let sleeps =
                |pid: &Pid| processes::program(*pid).is_some_and(|path| path.ends_with("sleep"));
            children(outside).into_iter().find(sleeps)
        });
        let target = format!("--target={init}");
        let enter = ["nsenter", &target, "--pid", "--mount", "--net", "--ipc", "--"];
        host.wrapper = enter.map(OsString::from).to_vec();
        Self { outer, init, watched: host.root().to_owned() }
    }

    /// Waits for the `mayfly` process of a run: `nsenter` forks to enter a PID namespace.
    pub(crate) fn find_front(run: Pid) -> Pid {
        until("mayfly in the sandbox", TIMEOUT, || {
            let is_mayfly =
                |pid: &Pid| processes::program(*pid).is_some_and(|path| path.ends_with("mayfly"));
            children(run).into_iter().find(is_mayfly)
        })
    }

    /// Returns all current resources.
    pub(crate) fn inventory(&self) -> Inventory {
        let mut lines = BTreeSet::new();
        // The sandbox's own `/proc`, with its process ids.
        let proc = file(self.init, "root/proc");
        for process in process_directories(&proc) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            lines.insert(format!("process {} {}", last(&process), name.trim()));
            for link in links(&process.join("ns")).chain(links(&process.join("fd"))) {
                // By inode number: the sandbox's own namespaces are in every inventory.
                if link.contains(":[") && !link.starts_with("pipe:") && !link.starts_with("socket:")
                {
                    lines.insert(format!("namespace {link}"));
                }
            }
        }
        let table = |name: &str| fs::read_to_string(file(self.init, name)).unwrap();
        lines.extend(table("mountinfo").lines().map(|line| format!("mount {line}")));
        let links = table("net/dev");
        let links = links.lines().filter_map(|line| line.split_once(':'));
        lines.extend(links.map(|(name, _)| format!("link {}", name.trim())));
        lines.extend(unix_sockets(&table("net/unix")));
        lines.extend(loop_devices());
        lines.extend(control_groups());
        lines.extend(files(&self.watched));
        Inventory(lines)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // This kills its first process too (`--kill-child`), and so all others.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

impl Inventory {
    /// Returns the resources that are not in `before`, except black boxes.
    pub(crate) fn added_since(&self, before: &Self) -> Vec<String> {
        let added = self.0.difference(&before.0);
        added.filter(|line| !is_black_box(line)).cloned().collect()
    }
}

/// Returns whether a line names a microVM's directory, or a file that a black box may contain.
fn is_black_box(line: &str) -> bool {
    const FILES: [&str; 12] = [
        "microvm.json",
        "events.jsonl",
        "console.log",
        "console.previous",
        "qemu.log",
        "qemu.previous",
        "vsock.log",
        "vsock.previous",
        "egress.jsonl",
        "access.log",
        "programs.jsonl",
        "pool",
    ];
    let Some((_, path)) = line.split_once("/state/microvms/m-") else { return false };
    match path.split_once('/') {
        None => true,
        Some((_, name)) => FILES.contains(&name),
    }
}

/// Returns the directories of processes in `/proc`.
fn process_directories(proc: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(proc).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    entries.filter(|path| last(path).bytes().all(|byte| byte.is_ascii_digit())).collect()
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Returns the targets of the links in a directory. Empty if the process has exited.
fn links(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned())
}

/// Returns all unix sockets of a network namespace, without the first column (a kernel address).
fn unix_sockets(table: &str) -> Vec<String> {
    let rows = table.lines().skip(1).filter_map(|line| line.split_once(' '));
    rows.map(|(_, row)| format!("socket {row}")).collect()
}

fn loop_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/block").into_iter().flatten().filter_map(Result::ok);
    let backing = entries.filter_map(|entry| {
        let file = fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
        Some(format!("loop device {}", file.trim()))
    });
    backing.collect()
}

/// Returns the control groups named after Mayfly or a microVM. Others belong to the system.
fn control_groups() -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(directory) = waiting.pop() {
        let entries = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let name = last(&entry.path());
            if name.contains("mayfly") || name.starts_with("m-") {
                found.push(format!("control group {}", entry.path().display()));
            }
            waiting.push(entry.path());
        }
    }
    found
}

/// Returns all files below a directory with their inode numbers, so that a replaced file differs.
fn files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            found.push(format!("file {} {}", metadata.ino(), path.display()));
            if metadata.is_dir() {
                waiting.push(path);
            }
        }
    }
    found
}
