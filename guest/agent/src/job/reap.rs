//! Waiting for processes.
//!
//! By `waitid` itself: the usual wrappers know no real-time signals, and one of those may well end
//! a job.

use mayfly_protocol::message::JobStatus;
use nix::errno::Errno;
use nix::unistd::Pid;

/// A process that ended, and how.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) pid: Pid,
    pub(crate) status: JobStatus,
}

/// Which processes to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whom {
    /// This child.
    One(Pid),
    /// Any child.
    Any,
}

/// What is left of a process that was waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It is reaped, and its number may soon be another's.
    Nothing,
    /// It can be waited for again.
    Zombie,
}

/// Blocks until a process ends.
pub(crate) fn wait(whom: Whom, leave: Leave) -> Result<Ended, Errno> {
    loop {
        match call(whom, leave, 0) {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reaps a child that has ended, if there is one; `ECHILD` where there are no children at all.
pub(super) fn try_any() -> Result<Option<Ended>, Errno> {
    call(Whom::Any, Leave::Nothing, libc::WNOHANG)
}

fn call(whom: Whom, leave: Leave, flags: libc::c_int) -> Result<Option<Ended>, Errno> {
    let (kind, number) = match whom {
        Whom::One(pid) => (libc::P_PID, pid.as_raw().cast_unsigned()),
        Whom::Any => (libc::P_ALL, 0),
    };
    let leave = if leave == Leave::Zombie { libc::WNOWAIT } else { 0 };
    // SAFETY: a siginfo_t is integers and pointers, which may be zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t.
    let answer =
        unsafe { libc::waitid(kind, number, &raw mut info, libc::WEXITED | leave | flags) };
    Errno::result(answer)?;
    // SAFETY: after `waitid` the information is about a child, or all zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    // The kernel keeps seven bits of a signal and eight of an exit status.
    let value = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let status = if info.si_code == libc::CLD_EXITED {
        JobStatus::Code(value)
    } else {
        JobStatus::Signal(value)
    };
    Ok((pid != 0).then_some(Ended { pid: Pid::from_raw(pid), status }))
}
