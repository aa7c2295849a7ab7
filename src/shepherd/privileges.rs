//! Drops the privileges of a shepherd once QEMU runs, before it reads the guest's first byte: all
//! capabilities, access to all files except those of its microVM and of the resolver, and all
//! system calls that it does not need.
//!
//! Landlock is not used here: the new root leaves no files for it to protect.

use std::io;
use std::path::Path;

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::plan::MicrovmPlan;
use mayfly_isolation::filter::AllowedCalls;
use mayfly_isolation::root::{self, MountAccess, Root, RootEntry};
use mayfly_isolation::syscalls;

/// The files of the resolver's configuration (`resolver(5)`, `hosts(5)`, `nsswitch.conf(5)`).
const RESOLVER: [&str; 3] = ["/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf"];

/// Pseudo-devices. A job without input reads from the first.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/urandom"];

/// Drops the privileges of this process. Must be called while it has only one thread, because
/// capabilities are per thread.
///
/// Afterwards, the directories of the microVM and of its egress record exist and are writable under
/// their names. Other paths do not exist.
pub(super) fn drop_privileges(plan: &MicrovmPlan) -> io::Result<()> {
    let mut entries = vec![RootEntry::new(&plan.directory, MountAccess::Write)];
    if !plan.egress_record.starts_with(&plan.directory) {
        entries.push(RootEntry::new(&plan.egress_record, MountAccess::Write));
    }
    let resolver = RESOLVER.map(|path| (path, MountAccess::Read));
    let files = resolver.into_iter().chain(DEVICES.map(|path| (path, MountAccess::Device)));
    let files = files.map(|(path, access)| (Path::new(path), access));
    let files = files.filter(|(path, _)| path.exists());
    entries.extend(files.map(|(path, access)| RootEntry::new(path, access)));
    let root =
        Root::create(&plan.private.join("roots/shepherd"), &entries).map_err(io::Error::other)?;
    root::enter(root.name())?;
    std::env::set_current_dir(&plan.directory)?;
    drop_capabilities()?;
    // This also sets `no_new_privs`.
    let filter = syscalls::shepherd().and_then(AllowedCalls::filter).map_err(io::Error::other);
    filter?.install()
}

fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    Ok(set_capabilities(None, sets)?)
}
