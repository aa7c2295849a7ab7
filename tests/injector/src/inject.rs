//! System calls in another process.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Bytes of memory for arguments.
const MEMORY: u64 = 65536;

/// A process, stopped where it entered a system call of its own. That call is made anew when the
/// process is let go.
pub(crate) struct Tracee {
    pid: Pid,
    registers: libc::user_regs_struct,
    memory: File,
    /// Where arguments are put, and where the next goes.
    start: u64,
    next: u64,
}

impl Tracee {
    /// Stops the first thread of a process at its next system call.
    pub(crate) fn seize(pid: i32) -> io::Result<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, Options::PTRACE_O_TRACESYSGOOD)?;
        ptrace::interrupt(pid)?;
        wait(pid)?;
        proceed(pid)?;
        let registers = ptrace::getregs(pid)?;
        let memory = File::options().read(true).write(true).open(format!("/proc/{pid}/mem"))?;
        let mut tracee = Self { pid, registers, memory, start: 0, next: 0 };
        let protection = u64::from((libc::PROT_READ | libc::PROT_WRITE).cast_unsigned());
        let flags = u64::from((libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).cast_unsigned());
        let mapped = tracee.call(libc::SYS_mmap, [0, MEMORY, protection, flags, u64::MAX, 0])?;
        tracee.start = u64::try_from(mapped).map_err(io::Error::other)?;
        tracee.next = tracee.start;
        Ok(tracee)
    }

    /// Makes a call; its result is a negative error number where it failed.
    pub(crate) fn call(&mut self, number: libc::c_long, arguments: [u64; 6]) -> io::Result<i64> {
        let mut registers = self.registers;
        registers.orig_rax = number.cast_unsigned();
        let [one, two, three, four, five, six] = arguments;
        (registers.rdi, registers.rsi, registers.rdx) = (one, two, three);
        (registers.r10, registers.r8, registers.r9) = (four, five, six);
        ptrace::setregs(self.pid, registers)?;
        proceed(self.pid)?;
        let result = ptrace::getregs(self.pid)?.rax.cast_signed();
        self.rewind()?;
        // To the entry of the same call again.
        proceed(self.pid)?;
        Ok(result)
    }

    /// Puts bytes where the process can read them; gives the address.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let address = self.next;
        self.memory.write_all_at(bytes, address)?;
        self.next += (bytes.len() as u64).next_multiple_of(16);
        assert!(self.next < self.start + MEMORY, "too many arguments");
        Ok(address)
    }

    /// Puts a text with its end.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<u64> {
        self.put(&[text.as_bytes(), b"\0"].concat())
    }

    /// What was put is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.next = self.start;
    }

    /// Lets it go on as if nothing had been.
    pub(crate) fn release(mut self) -> io::Result<()> {
        self.call(libc::SYS_munmap, [self.start, MEMORY, 0, 0, 0, 0])?;
        // From the entry to the exit of a call that does nothing, and back before its own.
        let mut registers = self.registers;
        registers.orig_rax = libc::SYS_getpid.cast_unsigned();
        ptrace::setregs(self.pid, registers)?;
        proceed(self.pid)?;
        self.rewind()?;
        Ok(ptrace::detach(self.pid, None)?)
    }

    /// Back before its own call: the instruction has two bytes.
    fn rewind(&self) -> io::Result<()> {
        let mut registers = self.registers;
        registers.rip -= 2;
        registers.rax = registers.orig_rax;
        Ok(ptrace::setregs(self.pid, registers)?)
    }
}

/// On to the next entry or exit of a system call. Signals on the way are delivered.
fn proceed(pid: Pid) -> io::Result<()> {
    let mut signal = None;
    loop {
        ptrace::syscall(pid, signal)?;
        match wait(pid)? {
            WaitStatus::PtraceSyscall(_) => return Ok(()),
            WaitStatus::Stopped(_, number) => signal = Some(number),
            WaitStatus::PtraceEvent(..) => signal = None,
            status => return Err(io::Error::other(format!("it is no more: {status:?}"))),
        }
    }
}

fn wait(pid: Pid) -> io::Result<WaitStatus> {
    Ok(waitpid(pid, Some(WaitPidFlag::__WALL))?)
}
