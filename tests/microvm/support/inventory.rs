//! Everything that a run could leave behind, counted from outside.
//!
//! A [`Sandbox`] is a set of namespaces in which nothing but Mayfly runs, so that what is there
//! after a run can be compared with what was there before it, whole: nothing of the rest of the
//! system is among it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use super::processes::{self, children, file};
use super::{Host, PATIENCE, require_root, until};

/// New process-id, mount, network and IPC namespaces with a first process that only reaps.
pub(crate) struct Sandbox {
    outer: Child,
    init: Pid,
    watched: PathBuf,
}

/// What is there, each thing as a line that names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inventory(BTreeSet<String>);

impl Sandbox {
    /// Makes one, and lets `host` run Mayfly in it.
    pub(crate) fn around(host: &mut Host) -> Self {
        require_root();
        let mut command = Command::new("unshare");
        command
            .args(["--fork", "--pid", "--mount-proc", "--mount", "--net", "--ipc", "--kill-child"])
            // A process that ignores the end of its children need not reap them.
            .args(["--", "env", "--ignore-signal=CHLD", "sleep", "infinity"])
            .stdin(Stdio::null())
            .process_group(0);
        let outer = command.spawn().unwrap();
        let outside = Pid::from_raw(i32::try_from(outer.id()).unwrap());
        let init = until("the sandbox's first process", PATIENCE, || {
            let sleeps =
                |pid: &Pid| processes::program(*pid).is_some_and(|path| path.ends_with("sleep"));
            children(outside).into_iter().find(sleeps)
        });
        let target = format!("--target={init}");
        let enter = ["nsenter", &target, "--pid", "--mount", "--net", "--ipc", "--"];
        host.wrapper = enter.map(OsString::from).to_vec();
        Self { outer, init, watched: host.root().to_owned() }
    }

    /// The `mayfly` that a run of this host has become, once it is there: entering a process-id
    /// namespace takes a fork.
    pub(crate) fn front(run: Pid) -> Pid {
        until("mayfly in the sandbox", PATIENCE, || {
            let is_mayfly =
                |pid: &Pid| processes::program(*pid).is_some_and(|path| path.ends_with("mayfly"));
            children(run).into_iter().find(is_mayfly)
        })
    }

    /// Everything that is there now.
    pub(crate) fn inventory(&self) -> Inventory {
        let mut lines = BTreeSet::new();
        // The sandbox's own view, with its own numbers.
        let proc = file(self.init, "root/proc");
        for process in numbered(&proc) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            lines.insert(format!("process {} {}", last(&process), name.trim()));
            for link in links(&process.join("ns")).chain(links(&process.join("fd"))) {
                // Namespaces by their numbers: those of the sandbox are there before and after.
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
        // Its first process goes with it (`--kill-child`), and all others with that.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
    }
}

impl Inventory {
    /// What is here and was not there `before`, apart from black boxes.
    pub(crate) fn beyond(&self, before: &Self) -> Vec<String> {
        let added = self.0.difference(&before.0);
        added.filter(|line| !is_black_box(line)).cloned().collect()
    }
}

/// A directory of a microVM, or one of the files that a black box may have.
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

/// The directories of `/proc` that are processes.
fn numbered(proc: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(proc).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    entries.filter(|path| last(path).bytes().all(|byte| byte.is_ascii_digit())).collect()
}

fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Where the links in a directory lead to. A process that ends meanwhile has none.
fn links(directory: &Path) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.map(|target| target.to_string_lossy().into_owned())
}

/// Every unix socket of a network namespace. Their first column is an address that means nothing.
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

/// Those that are called after Mayfly or a microVM: others come and go with the system.
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

/// Every file below a directory, with its number: one that was replaced is another.
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
