//! System calls in a fork of another process.
//!
//! A fork has all that decides what a process may do: its root directory, namespaces, credentials,
//! Landlock domain and filters. It shares no memory with it, so that whatever comes of a call, the
//! end of the process included, the process itself goes on. Its filter forbids to fork; the kernel
//! lifts a filter for a tracer that has every right (`PTRACE_O_SUSPEND_SECCOMP`, which takes
//! `CONFIG_CHECKPOINT_RESTORE`), and that is done for the fork alone.

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

/// Not in `libc` for all targets: `linux/ptrace.h`.
const SUSPEND_SECCOMP: libc::c_int = 1 << 21;

/// Why a call has no result.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The kernel ended the process for it.
    Ended(Signal),
    /// It could not be tried.
    Untried(io::Error),
}

impl fmt::Display for Failed {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(signal) => write!(to, "it was ended by {signal}"),
            Self::Untried(error) => error.fmt(to),
        }
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Untried(error)
    }
}

impl From<nix::Error> for Failed {
    fn from(error: nix::Error) -> Self {
        Self::Untried(error.into())
    }
}

/// A process, stopped where it entered a system call of its own. That call is made anew when the
/// process is let go.
pub(crate) struct Process {
    pid: Pid,
    registers: libc::user_regs_struct,
    memory: File,
    /// Where arguments are put, and where the next goes.
    start: u64,
    next: u64,
}

impl Process {
    /// Stops the first thread of a process at its next system call.
    pub(crate) fn seize(pid: Pid) -> Result<Self, Failed> {
        let suspend = Options::from_bits_retain(SUSPEND_SECCOMP);
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | suspend;
        ptrace::seize(pid, options)?;
        ptrace::interrupt(pid)?;
        wait(pid)?;
        let mut process = Self::at_a_call(pid, 0)?;
        let protection = u64::from((libc::PROT_READ | libc::PROT_WRITE).cast_unsigned());
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned());
        let mapped = process.call(libc::SYS_mmap, [0, MEMORY, protection, flags, u64::MAX, 0])?;
        process.start = u64::try_from(mapped).map_err(io::Error::other)?;
        Ok(process)
    }

    /// One that is stopped anywhere, on to its next call.
    fn at_a_call(pid: Pid, start: u64) -> Result<Self, Failed> {
        proceed(pid)?;
        let registers = ptrace::getregs(pid)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, registers, memory, start, next: start })
    }

    /// Tries something in a fork of it, under its filters.
    pub(crate) fn fork<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, Failed>,
    ) -> Result<T, Failed> {
        // Without a signal at its end, which the process would not expect.
        let child = self.enter(libc::SYS_clone, [0; 6])?;
        let number = ptrace::getregs(self.pid)?.rax;
        self.resume()?;
        let child = child.ok_or_else(|| io::Error::other("it does not fork"))?;
        let result = Self::become_fork(child, self).and_then(|mut fork| work(&mut fork));
        if !matches!(result, Err(Failed::Ended(_))) {
            kill(child, Signal::SIGKILL)?;
            wait(child)?;
        }
        let options = u64::from((libc::WNOHANG | libc::__WALL).cast_unsigned());
        self.call(libc::SYS_wait4, [number, 0, options, 0, 0, 0])?;
        result
    }

    fn become_fork(child: Pid, parent: &Self) -> Result<Self, Failed> {
        wait(child)?;
        // Without what lifts the filters.
        let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::setoptions(child, options)?;
        // It stands behind the call that made it.
        ptrace::setregs(child, before(parent.registers))?;
        Self::at_a_call(child, parent.start)
    }

    /// Makes a call; its result is a negative error number where it failed.
    pub(crate) fn call(
        &mut self,
        number: libc::c_long,
        arguments: [u64; 6],
    ) -> Result<i64, Failed> {
        self.enter(number, arguments)?;
        let result = ptrace::getregs(self.pid)?.rax.cast_signed();
        self.resume()?;
        Ok(result)
    }

    /// To the exit of a call that takes the place of its own; the process that it made.
    fn enter(&mut self, number: libc::c_long, arguments: [u64; 6]) -> Result<Option<Pid>, Failed> {
        let mut registers = self.registers;
        registers.orig_rax = number.cast_unsigned();
        let [one, two, three, four, five, six] = arguments;
        (registers.rdi, registers.rsi, registers.rdx) = (one, two, three);
        (registers.r10, registers.r8, registers.r9) = (four, five, six);
        ptrace::setregs(self.pid, registers)?;
        proceed(self.pid)
    }

    /// From the exit of a call to the entry of its own again.
    fn resume(&mut self) -> Result<(), Failed> {
        ptrace::setregs(self.pid, before(self.registers))?;
        proceed(self.pid).map(drop)
    }

    /// A directory that it has open, by its descriptor.
    pub(crate) fn directory(&self) -> io::Result<Option<u64>> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.pid))?.filter_map(Result::ok);
        let mut directories =
            open.filter(|entry| fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir()));
        Ok(directories.find_map(|entry| entry.file_name().to_str()?.parse().ok()))
    }

    /// Puts bytes where the process can read them; gives the address.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<u64, Failed> {
        let address = self.next;
        self.memory.write_all_at(bytes, address)?;
        self.next += (bytes.len() as u64).next_multiple_of(16);
        assert!(self.next < self.start + MEMORY, "too many arguments");
        Ok(address)
    }

    /// Puts a text with its end.
    pub(crate) fn text(&mut self, text: &str) -> Result<u64, Failed> {
        self.put(&[text.as_bytes(), b"\0"].concat())
    }

    /// Lets it go on as if nothing had been.
    pub(crate) fn release(mut self) -> Result<(), Failed> {
        self.enter(libc::SYS_munmap, [self.start, MEMORY, 0, 0, 0, 0])?;
        ptrace::setregs(self.pid, before(self.registers))?;
        Ok(ptrace::detach(self.pid, None)?)
    }
}

/// The registers of a process before its call: the instruction has two bytes.
fn before(mut registers: libc::user_regs_struct) -> libc::user_regs_struct {
    registers.rip -= 2;
    registers.rax = registers.orig_rax;
    registers
}

/// On to the next entry or exit of a system call. Signals on the way are delivered. Gives the process
/// that was made on the way, as it is numbered here.
fn proceed(pid: Pid) -> Result<Option<Pid>, Failed> {
    let (mut signal, mut made) = (None, None);
    loop {
        ptrace::syscall(pid, signal)?;
        match wait(pid)? {
            WaitStatus::PtraceSyscall(_) => return Ok(made),
            WaitStatus::Stopped(_, number) => signal = Some(number),
            WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_CLONE) => {
                let number = ptrace::getevent(pid)?.try_into().map_err(io::Error::other)?;
                (signal, made) = (None, Some(Pid::from_raw(number)));
            }
            WaitStatus::PtraceEvent(..) => signal = None,
            WaitStatus::Signaled(_, signal, _) => return Err(Failed::Ended(signal)),
            status => return Err(io::Error::other(format!("it is no more: {status:?}")).into()),
        }
    }
}

fn wait(pid: Pid) -> Result<WaitStatus, Failed> {
    Ok(waitpid(pid, Some(WaitPidFlag::__WALL))?)
}
