//! What QEMU and the vsock program see: their own files, and of the host nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::MachineError;
use super::accelerator::Accelerator;
use super::arguments::{INITRAMFS, KERNEL_FILE, Specification};
use crate::isolation::libraries;
use crate::isolation::root::{Entry, Right, Root};

/// The name of the directory of sockets in the root of the vsock program.
pub(super) const SOCKETS: &str = "/sockets";

/// Directories of firmware, below `share`: what QEMU has of its own, and where links in it lead on
/// distributions that package firmware apart.
const FIRMWARE: [&str; 4] = ["qemu", "qboot", "seabios", "qemu-firmware"];

/// A program and the root that it is to live in.
#[derive(Debug)]
pub(super) struct Housed {
    pub(super) program: PathBuf,
    pub(super) root: Root,
}

/// QEMU, with firmware, kernel and initramfs. Everything else it gets as descriptors.
pub(super) async fn of_qemu(
    program: &Path,
    private: &Path,
    machine: &Specification,
) -> Result<Housed, MachineError> {
    let (program, mut entries) = start_of(program).await?;
    entries.extend(firmware(&program).iter().map(|path| Entry::new(path, Right::Read)));
    entries.push(Entry::renamed(&machine.kernel, Path::new(KERNEL_FILE), Right::Read));
    entries.push(Entry::renamed(&machine.initramfs, Path::new(INITRAMFS), Right::Read));
    let devices: &[&str] = match machine.accelerator {
        Accelerator::Kvm => &["/dev/null", "/dev/urandom", "/dev/kvm"],
        Accelerator::Tcg => &["/dev/null", "/dev/urandom"],
    };
    entries.extend(devices.iter().map(|path| Entry::new(Path::new(path), Right::Device)));
    if machine.accelerator == Accelerator::Tcg {
        // Some distributions have emulation as a module.
        let modules = modules(&program, &entries);
        entries.extend(modules.iter().map(|path| Entry::new(path, Right::Execute)));
    }
    let root = Root::make(&private.join("roots/qemu"), &entries)?;
    Ok(Housed { program, root })
}

/// The vsock program, with the directory of its sockets.
pub(super) async fn of_vsock(
    program: &Path,
    private: &Path,
    sockets: &Path,
) -> Result<Housed, MachineError> {
    let (program, mut entries) = start_of(program).await?;
    entries.push(Entry::renamed(sockets, Path::new(SOCKETS), Right::Write));
    let root = Root::make(&private.join("roots/vsock"), &entries)?;
    Ok(Housed { program, root })
}

/// The program's real path, by which it finds what lies beside it, and what it takes to start.
async fn start_of(program: &Path) -> Result<(PathBuf, Vec<Entry>), MachineError> {
    let not_run = |error: io::Error| MachineError::NotRun(program.to_owned(), error);
    let real = fs::canonicalize(program).map_err(not_run)?;
    let entries = libraries::of(&real).await.map_err(not_run)?;
    Ok((real, entries))
}

/// The directories of QEMU's firmware that are there.
fn firmware(program: &Path) -> BTreeSet<PathBuf> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let shares = [prefix.join("share"), PathBuf::from("/usr/share")];
    let directories = shares.iter().flat_map(|share| FIRMWARE.map(|name| share.join(name)));
    directories.filter(|path| path.is_dir()).collect()
}

/// The directories of QEMU's modules that are there: beside its libraries, and below its prefix.
fn modules(program: &Path, entries: &[Entry]) -> BTreeSet<PathBuf> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let below = ["lib", "lib64", "lib/x86_64-linux-gnu"].map(|name| prefix.join(name));
    let beside = entries.iter().filter_map(|entry| fs::canonicalize(entry.source().parent()?).ok());
    let directories = beside.chain(below).map(|path| path.join("qemu"));
    directories.filter(|path| path.is_dir()).collect()
}
