//! System calls in a fork of another process.
//!
//! A fork inherits everything that decides what a process may do: root directory, namespaces,
//! credentials, Landlock domain, and filters. It shares no memory with its parent, so the parent
//! continues whatever a call does, even if it ends the fork. The parent's filter forbids to fork.
//! The kernel suspends a filter for a fully privileged tracer (`PTRACE_O_SUSPEND_SECCOMP`, which
//! needs `CONFIG_CHECKPOINT_RESTORE`); this module suspends it only to fork.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Bytes of memory for arguments.
const MEMORY: u64 = 65536;

/// From `linux/ptrace.h`; `libc` does not have it for all targets.
const SUSPEND_SECCOMP: libc::c_int = 1 << 21;

/// The reason why a call has no result.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The kernel killed the process for the call.
    Killed(Signal),
    /// The tracer could not make the call.
    Trace(io::Error),
}

impl fmt::Display for CallError {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(signal) => write!(to, "killed by {signal}"),
            Self::Trace(error) => error.fmt(to),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        Self::Trace(error)
    }
}

impl From<nix::Error> for CallError {
    fn from(error: nix::Error) -> Self {
        Self::Trace(error.into())
    }
}

/// A process that is stopped at the entry of one of its system calls. [`Self::release`] restarts
/// that call.
pub(crate) struct TracedProcess {
    pid: Pid,
    registers: libc::user_regs_struct,
    memory: File,
    /// The address of the memory for arguments.
    start: u64,
    /// The address of the next argument.
    next: u64,
}

impl TracedProcess {
    /// Stops the first thread of a process at its next system call.
    pub(crate) fn seize(pid: Pid) -> Result<Self, CallError> {
        let suspend = Options::from_bits_retain(SUSPEND_SECCOMP);
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | suspend;
        ptrace::seize(pid, options)?;
        ptrace::interrupt(pid)?;
        wait(pid)?;
        let mut process = Self::at_next_call(pid, 0)?;
        let protection = u64::from((libc::PROT_READ | libc::PROT_WRITE).cast_unsigned());
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned());
        let mapped = process.call(libc::SYS_mmap, [0, MEMORY, protection, flags, u64::MAX, 0])?;
        process.start = u64::try_from(mapped).map_err(io::Error::other)?;
        Ok(process)
    }

    /// Continues a stopped process to its next call.
    fn at_next_call(pid: Pid, start: u64) -> Result<Self, CallError> {
        proceed(pid)?;
        let registers = ptrace::getregs(pid)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, registers, memory, start, next: start })
    }

    /// Runs a function on a fork of the process, under its filters.
    pub(crate) fn fork<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        // Without an exit signal, which the process would not expect.
        let child = self.enter(libc::SYS_clone, [0; 6])?;
        let number = ptrace::getregs(self.pid)?.rax;
        self.resume()?;
        let child = child.ok_or_else(|| io::Error::other("the process can't fork"))?;
        let result = Self::become_fork(child, self).and_then(|mut fork| work(&mut fork));
        if !matches!(result, Err(CallError::Killed(_))) {
            kill(child, Signal::SIGKILL)?;
            wait(child)?;
        }
        let options = u64::from((libc::WNOHANG | libc::__WALL).cast_unsigned());
        self.call(libc::SYS_wait4, [number, 0, options, 0, 0, 0])?;
        result
    }

    fn become_fork(child: Pid, parent: &Self) -> Result<Self, CallError> {
        wait(child)?;
        // Without the option that suspends the filters.
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(child, options)?;
        // The fork starts after the `clone`.
        ptrace::setregs(child, rewind(parent.registers))?;
        Self::at_next_call(child, parent.start)
    }

    /// Makes a call. The result is a negative error number if the call fails.
    pub(crate) fn call(
        &mut self,
        number: libc::c_long,
        arguments: [u64; 6],
    ) -> Result<i64, CallError> {
        self.enter(number, arguments)?;
        let result = ptrace::getregs(self.pid)?.rax.cast_signed();
        self.resume()?;
        Ok(result)
    }

    /// Replaces the process's own call by another and runs it to its exit. Returns the process that
    /// the call created.
    fn enter(
        &mut self,
        number: libc::c_long,
        arguments: [u64; 6],
    ) -> Result<Option<Pid>, CallError> {
        let mut registers = self.registers;
        registers.orig_rax = number.cast_unsigned();
        let [one, two, three, four, five, six] = arguments;
        (registers.rdi, registers.rsi, registers.rdx) = (one, two, three);
        (registers.r10, registers.r8, registers.r9) = (four, five, six);
        ptrace::setregs(self.pid, registers)?;
        proceed(self.pid)
    }

    /// Returns from the exit of a call to the entry of the process's own call.
    fn resume(&mut self) -> Result<(), CallError> {
        ptrace::setregs(self.pid, rewind(self.registers))?;
        proceed(self.pid).map(drop)
    }

    /// Returns the descriptor of a directory that the process has open.
    pub(crate) fn directory(&self) -> io::Result<Option<u64>> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid))?.filter_map(Result::ok);
        let mut directories =
            open.filter(|entry| fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir()));
        Ok(directories.find_map(|entry| entry.file_name().to_str()?.parse().ok()))
    }

    /// Writes bytes to the process's memory and returns their address.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<u64, CallError> {
        let address = self.next;
        self.memory.write_all_at(bytes, address)?;
        self.next += (bytes.len() as u64).next_multiple_of(16);
        assert!(self.next < self.start + MEMORY, "too many arguments");
        Ok(address)
    }

    /// Writes a string with its terminating NUL and returns its address.
    pub(crate) fn text(&mut self, text: &str) -> Result<u64, CallError> {
        self.put(&[text.as_bytes(), b"\0"].concat())
    }

    /// Detaches from the process, which restarts its own call.
    pub(crate) fn release(mut self) -> Result<(), CallError> {
        self.enter(libc::SYS_munmap, [self.start, MEMORY, 0, 0, 0, 0])?;
        ptrace::setregs(self.pid, rewind(self.registers))?;
        Ok(ptrace::detach(self.pid, None)?)
    }
}

/// Returns the registers of a process before its `syscall` instruction, which has two bytes.
fn rewind(mut registers: libc::user_regs_struct) -> libc::user_regs_struct {
    registers.rip -= 2;
    registers.rax = registers.orig_rax;
    registers
}

/// Continues to the next entry or exit of a system call, and delivers signals on the way. Returns
/// the process that was created on the way, by its number in this namespace.
fn proceed(pid: Pid) -> Result<Option<Pid>, CallError> {
    let (mut signal, mut created) = (None, None);
    loop {
        ptrace::syscall(pid, signal)?;
        match wait(pid)? {
            WaitStatus::PtraceSyscall(_) => return Ok(created),
            WaitStatus::Stopped(_, number) => signal = Some(number),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE) => {
                let number = ptrace::getevent(pid)?.try_into().map_err(io::Error::other)?;
                (signal, created) = (None, Some(Pid::from_raw(number)));
            }
            WaitStatus::PtraceEvent(..) => signal = None,
            WaitStatus::Signaled(_, signal, _) => return Err(CallError::Killed(signal)),
            status => {
                return Err(io::Error::other(format!("the process exited: {status:?}")).into());
            }
        }
    }
}

fn wait(pid: Pid) -> Result<WaitStatus, CallError> {
    Ok(waitpid(pid, Some(WaitPidFlag::__WALL))?)
}
