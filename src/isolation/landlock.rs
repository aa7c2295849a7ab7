//! Landlock: what a thread may no longer do, whatever its user may. Older kernels enforce the rights
//! that they know, or none.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// The newest Landlock ABI whose rights are requested.
const NEWEST: ABI = ABI::V6;

/// Permanently restricts the writes of this thread to `directory`.
pub fn restrict_writes(directory: &Path) -> io::Result<()> {
    let writing = AccessFs::from_write(NEWEST);
    ruleset()
        .handle_access(writing)
        .and_then(Ruleset::create)
        .map_err(io::Error::other)
        .and_then(|rules| allow(rules, directory, writing))?
        .restrict_self()
        .map(drop)
        .map_err(io::Error::other)
}

/// Creates the rules of a confined process: no network, and only the files of its root. `None` if
/// the kernel has no Landlock.
pub(super) fn confinement(root: &Path) -> io::Result<Option<OwnedFd>> {
    // The mounts of the root restrict writing, execution and devices per file.
    let rights = AccessFs::from_read(NEWEST)
        | AccessFs::WriteFile
        | AccessFs::IoctlDev
        | AccessFs::MakeSock
        | AccessFs::RemoveFile;
    let rules = ruleset()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    Ok(allow(rules, root, rights)?.into())
}

/// Restricts this thread. Makes one system call: it is safe between fork and exec. `no_new_privs`
/// must be set.
pub(super) fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes an open descriptor and no flags.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn ruleset() -> Ruleset {
    Ruleset::default().set_compatibility(CompatLevel::BestEffort)
}

/// Allows these rights below a directory.
fn allow(
    rules: RulesetCreated,
    directory: &Path,
    rights: BitFlags<AccessFs>,
) -> io::Result<RulesetCreated> {
    let directory = PathFd::new(directory).map_err(io::Error::other)?;
    let added: Result<_, RulesetError> = rules.add_rule(PathBeneath::new(directory, rights));
    added.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_writes_only_below_its_directory() {
        let directory = tempfile::tempdir().unwrap();
        let (inside, outside) = (directory.path().join("in"), directory.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        let has_landlock = confinement(&inside).unwrap().is_some();
        // Only this thread is restricted.
        let (within, beyond) = thread::scope(|scope| {
            let restricted = scope.spawn(|| {
                restrict_writes(&inside).unwrap();
                (fs::write(inside.join("file"), "x"), fs::write(outside.join("file"), "x"))
            });
            restricted.join().unwrap()
        });
        within.unwrap();
        assert_eq!(beyond.is_err(), has_landlock, "{beyond:?}");
        fs::write(outside.join("file"), "x").unwrap();
    }
}
