//! The root directories of QEMU and the vsock program, with only their own files, and their start there.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::{Child, Command};

use super::MachineError;
use super::accelerator::Accelerator;
use super::arguments::{INITRAMFS, KERNEL_FILE, MachineSpec};
use mayfly_isolation::confinement::Confinement;
use mayfly_isolation::libraries;
use mayfly_isolation::root::{MountAccess, Root, RootEntry};

/// Path of the directory of sockets in the vsock program's root.
pub(super) const SOCKETS_IN_ROOT: &str = "/sockets";

/// Firmware directories below `share`: QEMU's own, and those that its links lead to on
/// distributions that package firmware separately.
const FIRMWARE: [&str; 4] = ["qemu", "qboot", "seabios", "qemu-firmware"];

/// A program and its root.
#[derive(Debug)]
pub(super) struct RootedProgram {
    pub(super) program: PathBuf,
    root: Root,
}

impl RootedProgram {
    /// Starts the program in its root, with its standard error as a pipe. `confine` returns its other
    /// restrictions.
    pub(super) fn spawn<A: AsRef<OsStr>>(
        self,
        arguments: impl IntoIterator<Item = A>,
        confine: impl FnOnce(Root) -> Confinement,
    ) -> Result<Child, MachineError> {
        let Self { program, root } = self;
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let confined = confine(root).apply(&mut command);
        let started = confined.and_then(|()| command.spawn());
        started.map_err(|error| MachineError::Start(program, error))
    }
}

/// Creates QEMU's root, with firmware, kernel and initramfs. QEMU inherits the rest as descriptors.
pub(super) async fn for_qemu(
    program: &Path,
    private: &Path,
    machine: &MachineSpec,
) -> Result<RootedProgram, MachineError> {
    let (program, mut entries) = program_entries(program).await?;
    entries.extend(firmware(&program).iter().map(|path| RootEntry::new(path, MountAccess::Read)));
    entries.push(RootEntry::at(&machine.kernel, Path::new(KERNEL_FILE), MountAccess::Read));
    entries.push(RootEntry::at(&machine.initramfs, Path::new(INITRAMFS), MountAccess::Read));
    let devices: &[&str] = match machine.accelerator {
        Accelerator::Kvm => &["/dev/null", "/dev/urandom", "/dev/kvm"],
        Accelerator::Tcg => &["/dev/null", "/dev/urandom"],
    };
    entries.extend(devices.iter().map(|path| RootEntry::new(Path::new(path), MountAccess::Device)));
    if machine.accelerator == Accelerator::Tcg {
        // Some distributions package emulation as a module.
        let modules = modules(&program, &entries);
        entries.extend(modules.iter().map(|path| RootEntry::new(path, MountAccess::Execute)));
    }
    let root = Root::create(&private.join("roots/qemu"), &entries)?;
    Ok(RootedProgram { program, root })
}

/// Creates the vsock program's root, with the directory of its sockets.
pub(super) async fn for_vsock(
    program: &Path,
    private: &Path,
    sockets: &Path,
) -> Result<RootedProgram, MachineError> {
    let (program, mut entries) = program_entries(program).await?;
    entries.push(RootEntry::at(sockets, Path::new(SOCKETS_IN_ROOT), MountAccess::Write));
    let root = Root::create(&private.join("roots/vsock"), &entries)?;
    Ok(RootedProgram { program, root })
}

/// Resolves a program to its real path, by which it finds adjacent files, and lists the files that
/// it needs to start.
async fn program_entries(program: &Path) -> Result<(PathBuf, Vec<RootEntry>), MachineError> {
    let start_error = |error: io::Error| MachineError::Start(program.to_owned(), error);
    let real = fs::canonicalize(program).map_err(start_error)?;
    let entries = libraries::entries_for(&real).await.map_err(start_error)?;
    Ok((real, entries))
}

/// Lists the existing directories of QEMU's firmware.
fn firmware(program: &Path) -> BTreeSet<PathBuf> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let shares = [prefix.join("share"), PathBuf::from("/usr/share")];
    let directories = shares.iter().flat_map(|share| FIRMWARE.map(|name| share.join(name)));
    directories.filter(|path| path.is_dir()).collect()
}

/// Lists the existing directories of QEMU's modules: beside its libraries and below its prefix.
fn modules(program: &Path, entries: &[RootEntry]) -> BTreeSet<PathBuf> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let below = ["lib", "lib64", "lib/x86_64-linux-gnu"].map(|name| prefix.join(name));
    let beside = entries.iter().filter_map(|entry| fs::canonicalize(entry.source().parent()?).ok());
    let directories = beside.chain(below).map(|path| path.join("qemu"));
    directories.filter(|path| path.is_dir()).collect()
}
