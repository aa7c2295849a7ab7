//! The child process between `fork` and `execve`.
//!
//! Other threads of the agent may have held locks at the fork. So this code only makes system
//! calls: it does not allocate, lock, or return.

use std::ffi::CStr;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setgid, setsid, setuid};

use super::spawn::{ChildPlan, raw_descriptors};

/// The soft and hard limits of open files: those of the hosted runners of CI services.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);

/// A step of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Session,
    Streams,
    Group,
    Limits,
    User,
    Privileges,
    Directory,
    Execute,
}

impl Step {
    const ALL: [Self; 8] = [
        Self::Session,
        Self::Streams,
        Self::Group,
        Self::Limits,
        Self::User,
        Self::Privileges,
        Self::Directory,
        Self::Execute,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Session => "create a session",
            Self::Streams => "connect the streams",
            Self::Group => "join the control group",
            Self::Limits => "set the limits",
            Self::User => "switch to the user",
            Self::Privileges => "set no_new_privs",
            Self::Directory => "enter the directory",
            Self::Execute => "execute the program",
        }
    }
}

/// A failed step of the child. Sent to the parent as one byte for the step and four for the error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChildFailure {
    pub(super) step: Step,
    pub(super) error: Errno,
}

impl ChildFailure {
    /// Parses a report. `None` if it is empty: the child has become the job.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (step, error) = bytes.split_first_chunk::<1>()?;
        let step = Step::ALL.into_iter().find(|known| *known as u8 == step[0])?;
        let error = i32::from_ne_bytes(error.try_into().ok()?);
        Some(Self { step, error: Errno::from_raw(error) })
    }

    fn to_bytes(self) -> [u8; 5] {
        let [a, b, c, d] = (self.error as i32).to_ne_bytes();
        [self.step as u8, a, b, c, d]
    }
}

/// Becomes the job, or reports the failure and exits.
pub(super) fn run(plan: &ChildPlan) -> ! {
    let Err(report) = become_job(plan);
    // SAFETY: the descriptor is open as long as `plan` lives.
    let descriptor = unsafe { BorrowedFd::borrow_raw(plan.report.as_raw_fd()) };
    // An empty pipe takes five bytes at once. A failure can't be reported in another way.
    let _unreported = nix::unistd::write(descriptor, &report.to_bytes());
    // SAFETY: ends this process without running what belongs to the parent.
    unsafe { libc::_exit(127) }
}

fn become_job(plan: &ChildPlan) -> Result<std::convert::Infallible, ChildFailure> {
    let at = |step| move |error| ChildFailure { step, error };
    reset_signals();
    setsid().map_err(at(Step::Session))?;
    connect(plan).map_err(at(Step::Streams))?;
    if let Some(mut group) = plan.group.as_ref() {
        // Zero stands for the writing process. The write does not allocate.
        let written = group.write(b"0").map(drop);
        written.map_err(|error| errno(&error)).map_err(at(Step::Group))?;
    }
    umask(Mode::from_bits_truncate(plan.rules.umask));
    if plan.rules.no_core_dumps {
        setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(at(Step::Limits))?;
    }
    if plan.user.is_some() {
        // Only a privileged process can set these.
        let (soft, hard) = OPEN_FILES;
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(at(Step::Limits))?;
        allow_oom_kill().map_err(at(Step::Limits))?;
    }
    become_user(plan).map_err(at(Step::User))?;
    if plan.rules.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(at(Step::Privileges))?;
    }
    enter_directory(plan).map_err(at(Step::Directory))?;
    Err(ChildFailure { step: Step::Execute, error: execute(plan) })
}

/// Resets every signal to its default action and unblocks all.
fn reset_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: default actions run no code of ours. KILL and STOP fail, which is harmless.
        let _refused = unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let _valid = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Installs the streams as descriptors 0, 1, and 2, and marks all others close-on-exec.
fn connect(plan: &ChildPlan) -> Result<(), Errno> {
    let [stdin, stdout, stderr] = &plan.streams;
    if plan.has_terminal {
        let descriptor = raw_descriptors(&plan.streams)[0];
        // SAFETY: the descriptor is open; zero means not to steal another session's terminal.
        Errno::result(unsafe { libc::ioctl(descriptor, libc::TIOCSCTTY, 0) })?;
    }
    dup2_stdin(stdin.as_fd())?;
    dup2_stdout(stdout.as_fd())?;
    dup2_stderr(stderr.as_fd())?;
    let flag = libc::CLOSE_RANGE_CLOEXEC.cast_signed();
    // SAFETY: only marks descriptors, to be closed by `execve`.
    Errno::result(unsafe { libc::close_range(3, libc::c_uint::MAX, flag) }).map(drop)
}

/// Makes the job subject to the OOM killer, unlike the agent.
fn allow_oom_kill() -> Result<(), Errno> {
    // SAFETY: the path is a string that ends with a zero.
    let file = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY) };
    let file = Errno::result(file)?;
    // SAFETY: the descriptor was just opened; it is closed by the end of this process's code.
    let file = unsafe { BorrowedFd::borrow_raw(file) };
    nix::unistd::write(file, b"0")?;
    // SAFETY: nothing else uses this descriptor.
    Errno::result(unsafe { libc::close(file.as_raw_fd()) }).map(drop)
}

/// Switches to the job's user. Groups come first, because only root can change them.
fn become_user(plan: &ChildPlan) -> Result<(), Errno> {
    let Some(user) = &plan.user else { return Ok(()) };
    // SAFETY: the pointer and the length are those of one array.
    Errno::result(unsafe { libc::setgroups(user.groups.len(), user.groups.as_ptr()) })?;
    setgid(Gid::from_raw(user.gid))?;
    setuid(Uid::from_raw(user.uid))
}

fn enter_directory(plan: &ChildPlan) -> Result<(), Errno> {
    match chdir(plan.directory.as_c_str()) {
        // Same as a login.
        Err(Errno::ENOENT) if plan.directory_is_home => chdir(c"/"),
        result => result,
    }
}

/// Tries the candidates as a shell does: skips those that do not exist or may not be executed.
/// Returns `EACCES` if there was one of the latter.
fn execute(plan: &ChildPlan) -> Errno {
    let mut result = Errno::ENOENT;
    for candidate in &plan.candidates {
        match try_execute(candidate, plan) {
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => result = Errno::EACCES,
            error => return error,
        }
    }
    result
}

/// Executes a program. Returns only on failure.
fn try_execute(program: &CStr, plan: &ChildPlan) -> Errno {
    let (arguments, environment) = (plan.arguments.as_ptr(), plan.environment.as_ptr());
    // SAFETY: all three end with a zero, and `plan` keeps what they point to.
    unsafe { libc::execve(program.as_ptr(), arguments, environment) };
    Errno::last()
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}
