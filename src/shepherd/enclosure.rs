//! The enclosure: the namespaces of a shepherd, created before its program starts.
//!
//! A shepherd is the first process of its own process-id namespace, so that the kernel ends all of
//! its processes when it exits, for any reason. Its mount namespace has a tmpfs that no other
//! process sees. Its user namespace permits both without root.
//!
//! `clone(2)` creates the child and its namespaces in one step; `unshare` and `fork` would leave an
//! intermediate process to supervise. `clone3(2)` is not used: its flags are in memory, which
//! seccomp filters can't inspect, so the filters of systemd (`RestrictNamespaces=`) and container
//! engines refuse it entirely.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

use mayfly_failure::{Code, Failure};
use mayfly_host::check::HostCheck;
use mayfly_host::descriptors;

/// Mount options of the private tmpfs, which only holds sockets.
const PRIVATE_SIZE: &str = "size=1m,mode=0700";

/// An error of creating an enclosure.
#[derive(Debug, thiserror::Error)]
pub enum EnclosureError {
    /// The kernel or a security module forbids the namespaces.
    #[error("this host does not permit unprivileged user namespaces")]
    Forbidden(#[source] io::Error),
    /// Another step failed.
    #[error("can't start a shepherd in its namespaces: {step}")]
    Failed {
        /// The step that failed.
        step: &'static str,
        /// Why it failed.
        #[source]
        error: io::Error,
    },
}

impl Failure for EnclosureError {
    fn code(&self) -> Code {
        match self {
            Self::Forbidden(_) => Code::Forbidden,
            Self::Failed { error, .. } if descriptors::is_exhausted(error) => Code::Unavailable,
            Self::Failed { .. } => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Forbidden(_) => Some(fix_hint()),
            Self::Failed { error, .. } => {
                descriptors::is_exhausted(error).then(|| descriptors::HINT.to_owned())
            }
        }
    }
}

/// A child in its own enclosure.
#[derive(Debug)]
pub struct EnclosedChild {
    /// Its process id, as the caller sees it.
    pub pid: Pid,
    /// A descriptor that becomes readable when the child exits (`pidfd_open(2)`).
    pub pidfd: OwnedFd,
}

/// A program to execute in an enclosure.
#[derive(Debug)]
pub struct EnclosedProgram<'a> {
    /// The executable.
    pub path: &'a CStr,
    /// Its arguments, beginning with its name.
    pub arguments: &'a [CString],
    /// Its environment, as `NAME=value`.
    pub environment: &'a [CString],
    /// The inherited descriptors: the n-th gets number n. No others are inherited.
    pub descriptors: &'a [RawFd],
}

/// Starts a program in new user, process-id, mount and IPC namespaces. If user namespaces are
/// forbidden and this process is root, starts it without one.
pub fn spawn(program: &EnclosedProgram<'_>) -> Result<EnclosedChild, EnclosureError> {
    match clone(program, CloneFlags::CLONE_NEWUSER) {
        Err(EnclosureError::Forbidden(_)) if nix::unistd::geteuid().is_root() => {
            clone(program, CloneFlags::empty())
        }
        result => result,
    }
}

/// Checks for `mayfly doctor` that an enclosure can be created, by running `true(1)` in one.
pub fn check() -> HostCheck {
    let subject = "user namespaces";
    let maps = IdMaps::for_current_user();
    let mut trial = Command::new("true");
    let enclose = move || {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
        maps.write()?;
        Ok(mount_tmpfs(c"/tmp")?)
    };
    // SAFETY: between fork and exec the closure makes system calls only.
    unsafe { trial.pre_exec(enclose) };
    let result = trial.stdin(Stdio::null()).status();
    match result {
        Ok(status) if status.success() => HostCheck::good(subject, "available"),
        _ if nix::unistd::geteuid().is_root() => {
            let found = "forbidden; Mayfly runs as root and works without them";
            HostCheck::warning(subject, found, &fix_hint())
        }
        Ok(status) => HostCheck::bad(subject, status, &fix_hint()),
        Err(error) => HostCheck::bad(subject, error, &fix_hint()),
    }
}

/// Returns how to permit user namespaces, depending on which kernel setting forbids them.
fn fix_hint() -> String {
    let is = |name: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).is_ok_and(|text| text.trim() == value)
    };
    let say = |text: &str| text.to_owned();
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        say("lift AppArmor's restriction: \
             sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    } else if is("kernel/unprivileged_userns_clone", "0") {
        say("allow them: sudo sysctl kernel.unprivileged_userns_clone=1")
    } else if is("user/max_user_namespaces", "0") {
        say("raise the limit: sudo sysctl user.max_user_namespaces=10000")
    } else {
        say("a container's seccomp profile may refuse them: allow clone and unshare there, \
             or run Mayfly as root")
    }
}

/// Mounts the private tmpfs inside the enclosure and makes it the working directory, so that the
/// paths of its sockets are short.
pub fn mount_private(private: &Path) -> Result<(), EnclosureError> {
    let target = CString::new(private.as_os_str().as_encoded_bytes()).unwrap_or_default();
    mount_tmpfs(&target).map_err(|error| match error {
        // AppArmor permits the user namespace but no capabilities in it.
        nix::Error::EPERM | nix::Error::EACCES => EnclosureError::Forbidden(error.into()),
        _ => EnclosureError::Failed { step: "mount the private tmpfs", error: error.into() },
    })?;
    nix::unistd::chdir(private).map_err(|error| EnclosureError::Failed {
        step: "enter the private tmpfs",
        error: error.into(),
    })
}

fn mount_tmpfs(target: &CStr) -> nix::Result<()> {
    // Keeps mounts from propagating to other namespaces.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&CStr>, c"/", None::<&CStr>, private, None::<&CStr>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"mayfly"), target, Some(c"tmpfs"), flags, Some(PRIVATE_SIZE))
}

/// The id maps that an unprivileged user may write: the user itself as root of the new namespace.
struct IdMaps {
    users: String,
    groups: String,
}

impl IdMaps {
    fn for_current_user() -> Self {
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Self { users: format!("0 {user} 1\n"), groups: format!("0 {group} 1\n") }
    }

    /// Writes the maps. Safe between fork and exec: only opens, writes and closes files.
    fn write(&self) -> nix::Result<()> {
        write_file(c"/proc/self/setgroups", b"deny")?;
        write_file(c"/proc/self/uid_map", self.users.as_bytes())?;
        write_file(c"/proc/self/gid_map", self.groups.as_bytes())
    }
}

fn write_file(path: &CStr, bytes: &[u8]) -> nix::Result<()> {
    use nix::fcntl::{OFlag, open};
    let file = open(path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    nix::unistd::write(&file, bytes).map(drop)
}

/// The steps of a child between clone and exec, indexed by the number in its error report.
const STEPS: [&str; 4] =
    ["start a session", "map user ids", "duplicate its descriptors", "execute its program"];

fn clone(program: &EnclosedProgram<'_>, user: CloneFlags) -> Result<EnclosedChild, EnclosureError> {
    let failed = |step| move |error: io::Error| EnclosureError::Failed { step, error };
    // All memory for the child is allocated before the clone.
    let maps = user.contains(CloneFlags::CLONE_NEWUSER).then(IdMaps::for_current_user);
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let (mut reading, writing) = io::pipe().map_err(failed("create a pipe"))?;
    let numbers = program.descriptors.iter().copied().chain([writing.as_raw_fd()]).collect();
    let mut descriptors = duplicate_above(numbers).map_err(failed("duplicate its descriptors"))?;
    drop(writing);
    // The last one is for the error report and not for the program.
    let writing = descriptors.pop();

    let namespaces =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | user;
    let cloned = fork_into(namespaces).map_err(|error| match error.raw_os_error() {
        // ENOSPC: limit of user namespaces reached; EUSERS: the same on old kernels.
        Some(libc::EPERM | libc::EACCES | libc::ENOSPC | libc::EUSERS) => {
            EnclosureError::Forbidden(error)
        }
        _ => EnclosureError::Failed { step: "clone", error },
    })?;
    let Some(child) = cloned else {
        let (step, error) =
            become_program(program, maps.as_ref(), &descriptors, &arguments, &environment);
        let report = [step, u8::try_from(error as i32).unwrap_or(0)];
        if let Some(writing) = &writing {
            let _ = nix::unistd::write(writing, &report);
        }
        // SAFETY: ends this process at once; it shares nothing that needs cleanup.
        unsafe { libc::_exit(127) }
    };
    drop(writing);
    let mut report = [0; 2];
    match io::Read::read_exact(&mut reading, &mut report) {
        // Closed by the exec: the program runs.
        Err(_) => Ok(child),
        Ok(()) => Err(report_error(report)),
    }
}

fn report_error([step, error]: [u8; 2]) -> EnclosureError {
    let error = io::Error::from_raw_os_error(error.into());
    match (STEPS.get(usize::from(step)), error.kind()) {
        (Some(&"map user ids"), io::ErrorKind::PermissionDenied) => {
            EnclosureError::Forbidden(error)
        }
        (step, _) => EnclosureError::Failed { step: step.copied().unwrap_or("start"), error },
    }
}

/// In the child: executes the program, or returns the failed step and its error. Allocates nothing.
fn become_program(
    program: &EnclosedProgram<'_>,
    maps: Option<&IdMaps>,
    descriptors: &[OwnedFd],
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> (u8, nix::Error) {
    // A new session, because a terminal's signals are for the front end.
    if let Err(error) = nix::unistd::setsid() {
        return (0, error);
    }
    if let Some(Err(error)) = maps.map(IdMaps::write) {
        return (1, error);
    }
    for (number, descriptor) in (0..).zip(descriptors) {
        // SAFETY: both are plain numbers; the copies lie above every number that is written to.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return (2, nix::Error::last());
        }
    }
    // All other descriptors of this process are closed on exec.
    let (first, flags) = (descriptors.len(), libc::CLOSE_RANGE_CLOEXEC.cast_signed());
    let first = libc::c_uint::try_from(first).unwrap_or(0);
    // SAFETY: sets a flag of descriptors, by number.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, flags) } < 0 {
        return (2, nix::Error::last());
    }
    // SAFETY: the path and both arrays are terminated and outlive the call.
    unsafe { libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    (3, nix::Error::last())
}

/// Duplicates descriptors above the numbers that they will be moved to. The lowest possible numbers
/// are used, because the limit of open files may be low.
fn duplicate_above(descriptors: Vec<RawFd>) -> io::Result<Vec<OwnedFd>> {
    let above = RawFd::try_from(descriptors.len()).unwrap_or(RawFd::MAX);
    let copy = |descriptor: RawFd| {
        // SAFETY: duplicates a descriptor number; one that is not open gives an error.
        match unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, above) } {
            number if number < 0 => Err(as_descriptor_limit(io::Error::last_os_error())),
            // SAFETY: the kernel just created it, and it has no other owner.
            number => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        }
    };
    descriptors.into_iter().map(copy).collect()
}

/// Converts `fcntl(2)`'s EINVAL, which means that the minimum is above the limit of open files.
fn as_descriptor_limit(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::EMFILE),
        _ => error,
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Forks into new namespaces, as `fork(2)`. Returns `None` in the child, which may only make system
/// calls until it executes a program.
fn fork_into(namespaces: CloneFlags) -> io::Result<Option<EnclosedChild>> {
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() | libc::CLONE_PIDFD | libc::SIGCHLD;
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: where `pidfd` goes is valid for the call; without `CLONE_VM` the child has its own
    // copy of all memory, and goes on with this stack, as after a fork.
    let result = unsafe {
        libc::syscall(libc::SYS_clone, libc::c_long::from(flags), none, &raw mut pidfd, none, none)
    };
    match result {
        0 => Ok(None),
        pid if pid > 0 => {
            // SAFETY: the kernel just created it, and it has no other owner.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
            Ok(Some(EnclosedChild { pid: Pid::from_raw(pid), pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}
