//! Confined child processes: in their own root, under a seccomp filter before their first
//! instruction.
//!
//! A confined child has no capabilities and can't gain any. It is in an empty network namespace,
//! sees only the files of its root, inherits only the given descriptors, and has resource limits.
//! Where the kernel has Landlock, it enforces the file restrictions a second time, and denies
//! abstract sockets and signals.

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::BackendError;
use tokio::process::Command;

use super::filter::AllowedCalls;
use super::landlock;
use super::libraries::ENVIRONMENT;
use super::root::{self, Root};
use super::syscalls::ExecutionKey;

/// The confinement of a child.
pub struct Confinement {
    /// The child's root directory.
    pub root: Root,
    /// The working directory, as a path in the root.
    pub directory: CString,
    /// Size limit of files that the child writes, in bytes.
    pub largest_file: u64,
    /// Descriptors of this process that the child inherits under the same numbers.
    pub inherited: Vec<RawFd>,
    /// Returns the system calls that the child may make.
    pub syscalls: fn(ExecutionKey) -> Result<AllowedCalls, BackendError>,
}

/// Limit of open descriptors of a child.
const MAXIMUM_DESCRIPTORS: u64 = 1024;

impl Confinement {
    /// Confines the process that `command` will spawn. Its program and arguments are executed with
    /// an environment that only contains the path of its libraries. Its standard streams are those
    /// of the command.
    pub fn apply(self, command: &mut Command) -> io::Result<()> {
        let ruleset = landlock::confinement(self.root.path())?;
        let key = key()?;
        let mut filter =
            (self.syscalls)(key).and_then(AllowedCalls::filter).map_err(io::Error::other)?;
        let execution = Execution::new(command, key)?;
        let Self { root, directory, largest_file, inherited, .. } = self;
        let confine = move || {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
            root::enter(root.name())?;
            nix::unistd::chdir(directory.as_c_str())?;
            setrlimit(Resource::RLIMIT_FSIZE, largest_file, largest_file)?;
            setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
            // The host's hard limit may be lower and can't be raised.
            let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
            let descriptors = MAXIMUM_DESCRIPTORS.min(most);
            setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
            keep_only(&inherited)?;
            drop_capabilities()?;
            if let Some(ruleset) = &ruleset {
                landlock::restrict(ruleset)?;
            }
            filter.install()?;
            Err(execution.execute())
        };
        // SAFETY: between fork and exec the closure makes system calls only: it allocates nothing
        // and takes no lock.
        unsafe { command.pre_exec(confine) };
        Ok(())
    }
}

/// Generates a random key.
fn key() -> io::Result<ExecutionKey> {
    let random = mayfly_host::random::<24>()?;
    let (words, _) = random.as_chunks::<8>();
    let mut key = ExecutionKey::default();
    for (part, word) in key.iter_mut().zip(words) {
        *part = u64::from_ne_bytes(*word);
    }
    Ok(key)
}

/// The arguments of `execve(2)`, allocated before the fork.
struct Execution {
    // Owns the strings of `pointers`.
    _arguments: Vec<CString>,
    program: CString,
    pointers: Vec<*const c_char>,
    environment: [*const c_char; 2],
    key: ExecutionKey,
}

// SAFETY: the pointers are to strings on the heap that it owns and nobody changes, or to constants.
unsafe impl Send for Execution {}
// SAFETY: as above; through a shared reference they are only read.
unsafe impl Sync for Execution {}

impl Execution {
    fn new(command: &Command, key: ExecutionKey) -> io::Result<Self> {
        let command = command.as_std();
        let program = CString::new(command.get_program().as_bytes())?;
        let arguments = command.get_args().map(|word| CString::new(word.as_bytes()));
        let arguments = std::iter::once(Ok(program.clone())).chain(arguments);
        let arguments = arguments.collect::<Result<Vec<_>, _>>()?;
        let pointers = arguments.iter().map(|word| word.as_ptr());
        let pointers = pointers.chain([std::ptr::null()]).collect();
        let environment = [ENVIRONMENT.as_ptr(), std::ptr::null()];
        Ok(Self { _arguments: arguments, program, pointers, environment, key })
    }

    /// Executes the program. Returns only on error.
    fn execute(&self) -> io::Error {
        let [one, two, three] = self.key;
        let (arguments, environment) = (self.pointers.as_ptr(), self.environment.as_ptr());
        // SAFETY: path and arrays are terminated and outlive the call; it has no use for the rest,
        // which is for the filter.
        unsafe {
            libc::syscall(
                libc::SYS_execve,
                self.program.as_ptr(),
                arguments,
                environment,
                one,
                two,
                three,
            )
        };
        io::Error::last_os_error()
    }
}

/// Marks all descriptors close-on-exec, except the standard streams and the inherited ones.
fn keep_only(inherited: &[RawFd]) -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: sets a flag of descriptors, by number.
    if unsafe { libc::close_range(3, u32::MAX, flags) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for &descriptor in inherited {
        // SAFETY: changes a flag of a descriptor number; a number that is not open gives an error.
        if unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Empties the capability bounding set, so that exec grants no capabilities even to uid 0.
fn drop_capabilities() -> io::Result<()> {
    for number in 0..u64::BITS {
        // Including those that are newer than the library.
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The first number that is not a capability.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(nix::sys::prctl::set_no_new_privs()?)
}
