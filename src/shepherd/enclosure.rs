//! The enclosure: the namespaces that a shepherd lives in, entered before its program begins.
//!
//! A shepherd is the first process of a process-id namespace of its own, so that with it, however
//! it ends, the kernel ends every process that it had. Its mount namespace has a tmpfs that no
//! other process sees. Its user namespace gives it the right to make both without being root.
//!
//! `clone(2)` makes child and namespaces in one step, where `unshare` and `fork` would leave a
//! process in between that had to be guarded. Not `clone3(2)`: its flags are in memory, where no
//! seccomp filter can look, so those of systemd (`RestrictNamespaces=`) and of container engines
//! refuse it whatever it asks for.

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

use crate::failure::{Code, Failure};
use crate::host::check::Check;
use crate::host::descriptors;

/// Bytes that the private tmpfs may hold. It holds sockets.
const PRIVATE_SIZE: &str = "size=1m,mode=0700";

/// A shepherd could not be enclosed.
#[derive(Debug, thiserror::Error)]
pub enum EnclosureError {
    /// The kernel or a security module forbids the namespaces.
    #[error("this host does not let an ordinary user make user namespaces")]
    Forbidden(#[source] io::Error),
    /// Something else failed.
    #[error("can't enclose a shepherd: {step}")]
    Failed {
        /// What was being done.
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
            Self::Failed { error, .. } if descriptors::ran_out(error) => Code::Unavailable,
            Self::Failed { .. } => Code::Internal,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Forbidden(_) => Some(remedy()),
            Self::Failed { error, .. } => {
                descriptors::ran_out(error).then(|| descriptors::HINT.to_owned())
            }
        }
    }
}

/// A child in an enclosure of its own.
#[derive(Debug)]
pub struct Enclosed {
    /// Its process id, as the caller sees it.
    pub pid: Pid,
    /// A descriptor that becomes readable when it has ended (`pidfd_open(2)`).
    pub pidfd: OwnedFd,
}

/// What is executed in an enclosure.
#[derive(Debug)]
pub struct Program<'a> {
    /// The executable.
    pub path: &'a CStr,
    /// Its arguments, with its name as the first.
    pub arguments: &'a [CString],
    /// Its environment, as `NAME=value`.
    pub environment: &'a [CString],
    /// The descriptors that it inherits: the n-th as number n. No others are inherited.
    pub descriptors: &'a [RawFd],
}

/// Starts a program in new user, process-id, mount and IPC namespaces; without the user namespace
/// where that is forbidden and this process is root.
pub fn spawn(program: &Program<'_>) -> Result<Enclosed, EnclosureError> {
    match clone(program, CloneFlags::CLONE_NEWUSER) {
        Err(EnclosureError::Forbidden(_)) if nix::unistd::geteuid().is_root() => {
            clone(program, CloneFlags::empty())
        }
        result => result,
    }
}

/// Whether an enclosure can be made here, for `mayfly doctor`: makes one for `true(1)`.
pub fn check() -> Check {
    let subject = "user namespaces";
    let maps = Maps::of_this_user();
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
        Ok(status) if status.success() => Check::good(subject, "can be made"),
        _ if nix::unistd::geteuid().is_root() => {
            Check::warning(subject, "forbidden; root does without", &remedy())
        }
        Ok(status) => Check::bad(subject, status, &remedy()),
        Err(error) => Check::bad(subject, error, &remedy()),
    }
}

/// What to do where user namespaces are forbidden: the first of the known switches that is off.
fn remedy() -> String {
    let is = |name: &str, value: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).is_ok_and(|text| text.trim() == value)
    };
    let say = |text: &str| text.to_owned();
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        say("AppArmor restricts them: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    } else if is("kernel/unprivileged_userns_clone", "0") {
        say("allow them: sudo sysctl kernel.unprivileged_userns_clone=1")
    } else if is("user/max_user_namespaces", "0") {
        say("allow some: sudo sysctl user.max_user_namespaces=10000")
    } else {
        say("a container's seccomp profile may refuse them: allow clone and unshare there, \
             or run Mayfly as root")
    }
}

/// Inside the enclosure: mounts the private tmpfs and makes it the working directory, so that
/// sockets in it have short names.
pub fn settle(private: &Path) -> Result<(), EnclosureError> {
    let target = CString::new(private.as_os_str().as_encoded_bytes()).unwrap_or_default();
    mount_tmpfs(&target).map_err(|error| match error {
        // A user namespace without rights in it, as AppArmor makes them.
        nix::Error::EPERM | nix::Error::EACCES => EnclosureError::Forbidden(error.into()),
        _ => EnclosureError::Failed { step: "mount the private tmpfs", error: error.into() },
    })?;
    nix::unistd::chdir(private).map_err(|error| EnclosureError::Failed {
        step: "enter the private tmpfs",
        error: error.into(),
    })
}

fn mount_tmpfs(target: &CStr) -> nix::Result<()> {
    // Nothing that is mounted here reaches another namespace.
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&CStr>, c"/", None::<&CStr>, private, None::<&CStr>)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(c"mayfly"), target, Some(c"tmpfs"), flags, Some(PRIVATE_SIZE))
}

/// The one-line maps that an ordinary user may write: itself as root of the new namespace.
struct Maps {
    users: String,
    groups: String,
}

impl Maps {
    fn of_this_user() -> Self {
        let (user, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        Self { users: format!("0 {user} 1\n"), groups: format!("0 {group} 1\n") }
    }

    /// Safe between fork and exec: opens, writes and closes files, and nothing else.
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

/// The steps of a child between clone and exec, by the number that it reports a failure with.
const STEPS: [&str; 4] =
    ["leave the session", "map its user", "take its descriptors", "execute its program"];

fn clone(program: &Program<'_>, user: CloneFlags) -> Result<Enclosed, EnclosureError> {
    let failed = |step| move |error: io::Error| EnclosureError::Failed { step, error };
    // All memory that the child needs is allocated before it exists.
    let maps = user.contains(CloneFlags::CLONE_NEWUSER).then(Maps::of_this_user);
    let arguments = pointers(program.arguments);
    let environment = pointers(program.environment);
    let (mut reading, writing) = io::pipe().map_err(failed("make a pipe"))?;
    let numbers = program.descriptors.iter().copied().chain([writing.as_raw_fd()]).collect();
    let mut descriptors = lift(numbers).map_err(failed("copy its descriptors"))?;
    drop(writing);
    // The report's own end is no descriptor of the program's.
    let writing = descriptors.pop();

    let namespaces =
        CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | user;
    let cloned = fork_into(namespaces).map_err(|error| match error.raw_os_error() {
        // ENOSPC: the limit on user namespaces; EUSERS: the same on old kernels.
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
        // SAFETY: ends this process at once; it shares nothing that had to be put in order.
        unsafe { libc::_exit(127) }
    };
    drop(writing);
    let mut report = [0; 2];
    match io::Read::read_exact(&mut reading, &mut report) {
        // Closed by the exec: the program runs.
        Err(_) => Ok(child),
        Ok(()) => Err(reported(report)),
    }
}

fn reported([step, error]: [u8; 2]) -> EnclosureError {
    let error = io::Error::from_raw_os_error(error.into());
    match (STEPS.get(usize::from(step)), error.kind()) {
        (Some(&"map its user"), io::ErrorKind::PermissionDenied) => {
            EnclosureError::Forbidden(error)
        }
        (step, _) => EnclosureError::Failed { step: step.copied().unwrap_or("start"), error },
    }
}

/// In the child: becomes the program, or says which step failed. Allocates nothing.
fn become_program(
    program: &Program<'_>,
    maps: Option<&Maps>,
    descriptors: &[OwnedFd],
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> (u8, nix::Error) {
    // A session of its own: a terminal's signals are for the front end.
    if let Err(error) = nix::unistd::setsid() {
        return (0, error);
    }
    if let Some(Err(error)) = maps.map(Maps::write) {
        return (1, error);
    }
    for (number, descriptor) in (0..).zip(descriptors) {
        // SAFETY: both are plain numbers; the copies lie above every number that is written to.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
            return (2, nix::Error::last());
        }
    }
    // Whatever else this process was started with is not the program's.
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

/// Copies of descriptors, above the numbers that they will be moved to, and no higher than that
/// takes: the process may have a low limit.
fn lift(descriptors: Vec<RawFd>) -> io::Result<Vec<OwnedFd>> {
    let above = RawFd::try_from(descriptors.len()).unwrap_or(RawFd::MAX);
    let copy = |descriptor: RawFd| {
        // SAFETY: duplicates a descriptor number; one that is not open gives an error.
        match unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, above) } {
            number if number < 0 => Err(above_the_limit(io::Error::last_os_error())),
            // SAFETY: the kernel just made it, and nobody else has it.
            number => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        }
    };
    descriptors.into_iter().map(copy).collect()
}

/// `fcntl(2)` says EINVAL where the lowest number asked for is above the limit of open files.
fn above_the_limit(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EINVAL) => io::Error::from_raw_os_error(libc::EMFILE),
        _ => error,
    }
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}

/// `fork(2)` into new namespaces. `None` in the child, which may do nothing but make system calls
/// until it executes a program.
fn fork_into(namespaces: CloneFlags) -> io::Result<Option<Enclosed>> {
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
            // SAFETY: the kernel just made it, and nobody else has it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
            Ok(Some(Enclosed { pid: Pid::from_raw(pid), pidfd }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}
