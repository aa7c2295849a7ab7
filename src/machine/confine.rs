//! What QEMU and the vsock program may still do: as little as the kernel lets us say.
//!
//! A child that is spawned through here has no capability and can gain none, sits in an empty
//! network namespace, opens only the files that its [`Confinement`] names (Landlock), and has
//! resource limits. Seccomp is QEMU's own (`-sandbox`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};
use nix::sched::CloneFlags;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::process::Command;

/// What a child may still do.
#[derive(Debug, Default)]
pub(super) struct Confinement {
    /// Files and directories that it may read and execute.
    pub(super) readable: Vec<PathBuf>,
    /// Directories in which it may do everything.
    pub(super) writable: Vec<PathBuf>,
    /// The largest file that it may write, in bytes.
    pub(super) largest_file: u64,
    /// Descriptors, open in this process, that it inherits under the same number.
    pub(super) inherited: Vec<RawFd>,
}

/// Where programs, libraries and firmware lie.
const SYSTEM: [&str; 5] = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache"];

/// Descriptors that a child may have open.
const MAXIMUM_DESCRIPTORS: u64 = 1024;

/// The newest Landlock version whose rights are asked for; older kernels give what they have.
const LANDLOCK: ABI = ABI::V5;

impl Confinement {
    /// Makes `command` confined once it is spawned.
    pub(super) fn apply(self, command: &mut Command) -> io::Result<()> {
        let ruleset = self.ruleset()?;
        let Self { largest_file, inherited, .. } = self;
        let confine = move || {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET)?;
            setrlimit(Resource::RLIMIT_FSIZE, largest_file, largest_file)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            // A lower limit of this host's stays: it can't be raised.
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let descriptors = MAXIMUM_DESCRIPTORS.min(most);
            setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
            for &descriptor in &inherited {
                inherit(descriptor)?;
            }
            drop_capabilities()?;
            if let Some(ruleset) = &ruleset {
                restrict(ruleset)?;
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing
        // and takes no lock.
        unsafe { command.pre_exec(confine) };
        Ok(())
    }

    /// The Landlock rules; none where the kernel has no Landlock.
    fn ruleset(&self) -> io::Result<Option<OwnedFd>> {
        let reading = AccessFs::from_read(LANDLOCK);
        let everything = AccessFs::from_all(LANDLOCK);
        let system = SYSTEM.iter().map(PathBuf::from).filter(|path| path.exists());
        let rules = system
            .chain(self.readable.iter().cloned())
            .map(|path| (path, reading))
            .chain(self.writable.iter().map(|path| (path.clone(), everything)));
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(everything)
            .and_then(Ruleset::create)
            .map_err(io::Error::other)?;
        for (path, access) in rules {
            let descriptor = PathFd::new(&path).map_err(io::Error::other)?;
            let access =
                if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
            ruleset =
                ruleset.add_rule(PathBeneath::new(descriptor, access)).map_err(io::Error::other)?;
        }
        Ok(ruleset.into())
    }
}

fn inherit(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: changes a flag of a descriptor number; a number that is not open gives an error.
    match unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Empties the bounding set, so that the coming exec yields no capability even to uid 0.
fn drop_capabilities() -> io::Result<()> {
    for capability in 0.. {
        // SAFETY: takes plain numbers.
        match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } {
            0 => {}
            // The first number that is no capability.
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL) => break,
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(nix::sys::prctl::set_no_new_privs()?)
}

fn restrict(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes an open descriptor and no flags; `no_new_privs` is set.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
