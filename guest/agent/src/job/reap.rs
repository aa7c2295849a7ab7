//! Waits for processes.
//!
//! Calls `waitid` directly: the usual wrappers do not support real-time signals, which may end a
//! job.

use mayfly_protocol::message::JobExit;
use nix::errno::Errno;
use nix::unistd::Pid;

/// An ended process and its status.
#[derive(Debug)]
pub(crate) struct EndedProcess {
    pub(crate) pid: Pid,
    pub(crate) status: JobExit,
}

/// The processes to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WaitFor {
    /// A specific child.
    One(Pid),
    /// Any child.
    Any,
}

/// Whether to reap a process that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReapMode {
    /// Reap it; its ID may then be reused.
    Reap,
    /// Leave it as a zombie that can be waited for again.
    KeepZombie,
}

/// Blocks until a process ends.
pub(crate) fn wait(which: WaitFor, mode: ReapMode) -> Result<EndedProcess, Errno> {
    loop {
        match call(which, mode, 0) {
            Ok(Some(ended)) => return Ok(ended),
            Ok(None) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reaps a child that has ended, if any. Fails with `ECHILD` if no children exist.
pub(super) fn try_any() -> Result<Option<EndedProcess>, Errno> {
    call(WaitFor::Any, ReapMode::Reap, libc::WNOHANG)
}

fn call(which: WaitFor, mode: ReapMode, flags: libc::c_int) -> Result<Option<EndedProcess>, Errno> {
    let (kind, number) = match which {
        WaitFor::One(pid) => (libc::P_PID, pid.as_raw().cast_unsigned()),
        WaitFor::Any => (libc::P_ALL, 0),
    };
    let wait_flag = if mode == ReapMode::KeepZombie { libc::WNOWAIT } else { 0 };
    // SAFETY: a siginfo_t is integers and pointers, which may be zero.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one siginfo_t.
    let result =
        unsafe { libc::waitid(kind, number, &raw mut info, libc::WEXITED | wait_flag | flags) };
    Errno::result(result)?;
    // SAFETY: after `waitid` the information is about a child, or all zero.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    // The kernel keeps seven bits of a signal and eight of an exit status.
    let value = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let status = if info.si_code == libc::CLD_EXITED {
        JobExit::Code(value)
    } else {
        JobExit::Signal(value)
    };
    Ok((pid != 0).then_some(EndedProcess { pid: Pid::from_raw(pid), status }))
}
