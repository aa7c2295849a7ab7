//! Seccomp filters as lists of allowed system calls.
//!
//! Any other call fails with `EPERM` and is logged by the kernel (`type=1326 … syscall=N`, if
//! `kernel.seccomp.actions_logged` contains `errno`). The process is not killed: a C library that
//! is newer than the list falls back to another call, where a kill would lose the job. A
//! compromised process gains nothing by retrying.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// A condition on an argument of a system call. The first field is the argument's index.
#[derive(Debug, Clone, Copy)]
pub enum ArgumentRule {
    /// The lower 32 bits are equal to the value.
    Word(u8, u32),
    /// The lower 32 bits differ from the value.
    Not(u8, u32),
    /// All 64 bits are equal to the value.
    Long(u8, u64),
    /// The bits of the mask (second field) are equal to the value (third field).
    Bits(u8, u64, u64),
    /// The lower 32 bits are the process's own id.
    OwnProcess(u8),
}

/// Placeholder for the id of a process that does not exist yet. Larger than any id (`pid_max`).
const OWN_PROCESS: u32 = 0x7fff_0a1d;

/// The kernel's return value for an unknown call, on which a C library falls back to an older one.
const NOT_IMPLEMENTED: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// A list of allowed calls.
#[derive(Debug, Default)]
pub struct AllowedCalls {
    allowed: BTreeMap<i64, Vec<SeccompRule>>,
    unknown: Vec<u32>,
}

impl AllowedCalls {
    /// Allows these calls with any arguments.
    #[must_use]
    pub fn allow(mut self, calls: &[libc::c_long]) -> Self {
        self.allowed.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// Allows a call if all conditions hold. Several such rules for a call are alternatives.
    pub fn allow_where(
        mut self,
        call: libc::c_long,
        arguments: &[ArgumentRule],
    ) -> Result<Self, BackendError> {
        let conditions = arguments.iter().map(condition).collect::<Result<_, _>>()?;
        self.allowed.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    /// Makes these calls fail as if the kernel did not implement them.
    #[must_use]
    pub fn not_implemented(mut self, calls: &[libc::c_long]) -> Self {
        self.unknown.extend(calls.iter().filter_map(|call| u32::try_from(*call).ok()));
        self.allow(calls)
    }

    /// Compiles the list to a filter.
    pub fn filter(self) -> Result<Filter, BackendError> {
        let refused = SeccompAction::Errno(libc::EPERM.cast_unsigned());
        let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
        let filter = SeccompFilter::new(self.allowed, refused, SeccompAction::Allow, architecture)?;
        let program: BpfProgram = filter.try_into()?;
        let rest = program.into_iter().map(|line| libc::sock_filter {
            code: line.code,
            jt: line.jt,
            jf: line.jf,
            k: line.k,
        });
        let unknown = self.unknown.iter().flat_map(|call| {
            // If equal, the next instruction returns; otherwise it is skipped.
            [instruction(EQUAL, 1, *call), instruction(RETURN, 0, NOT_IMPLEMENTED)]
        });
        let allow = instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW);
        let load = instruction(LOAD, 0, 0);
        let unknown = [load].into_iter().chain(unknown).chain([allow]).collect();
        Ok(Filter { unknown, allowed: rest.collect() })
    }
}

/// Opcodes: load a word (the call's number is at offset 0 of `struct seccomp_data`), skip
/// instructions if not equal, return a verdict.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn instruction(code: u16, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf, k }
}

fn condition(argument: &ArgumentRule) -> Result<SeccompCondition, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match *argument {
        ArgumentRule::Word(place, value) => {
            SeccompCondition::new(place, Dword, SeccompCmpOp::Eq, value.into())
        }
        ArgumentRule::Not(place, value) => {
            SeccompCondition::new(place, Dword, SeccompCmpOp::Ne, value.into())
        }
        ArgumentRule::Long(place, value) => {
            SeccompCondition::new(place, Qword, SeccompCmpOp::Eq, value)
        }
        ArgumentRule::Bits(place, mask, value) => {
            SeccompCondition::new(place, Qword, SeccompCmpOp::MaskedEq(mask), value)
        }
        ArgumentRule::OwnProcess(place) => condition(&ArgumentRule::Word(place, OWN_PROCESS)),
    }
}

/// A compiled filter. It consists of two programs; the kernel applies the stricter verdict. Only
/// the second logs its refusals, because those of the first are expected.
pub struct Filter {
    unknown: Vec<libc::sock_filter>,
    allowed: Vec<libc::sock_filter>,
}

impl Filter {
    /// Installs the filter permanently on all threads of this process and sets `no_new_privs`. Safe
    /// between fork and exec: only makes system calls.
    pub fn install(&mut self) -> io::Result<()> {
        let own = std::process::id();
        for line in &mut self.allowed {
            if line.k == OWN_PROCESS {
                line.k = own;
            }
        }
        nix::sys::prctl::set_no_new_privs()?;
        add(&mut self.unknown, 0)?;
        add(&mut self.allowed, libc::SECCOMP_FILTER_FLAG_LOG)
    }
}

fn add(lines: &mut [libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let length = u16::try_from(lines.len());
    let length = length.map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let program = libc::sock_fprog { len: length, filter: lines.as_mut_ptr() };
    let (set, flags) = (libc::SECCOMP_SET_MODE_FILTER, flags | libc::SECCOMP_FILTER_FLAG_TSYNC);
    // SAFETY: the program is valid for the call, and as long as it says.
    match unsafe { libc::syscall(libc::SYS_seccomp, set, flags, &raw const program) } {
        0 => Ok(()),
        error if error < 0 => Err(io::Error::last_os_error()),
        // The id of a thread that has another filter.
        _ => Err(io::ErrorKind::ResourceBusy.into()),
    }
}
