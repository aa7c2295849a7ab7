//! Seccomp filters that are lists of what is allowed.
//!
//! A call that is not in the list fails with `EPERM`, and the kernel's log says which it was
//! (`type=1326 … syscall=N`, as far as `kernel.seccomp.actions_logged` has `errno`). It does not
//! end the process: a C library that is newer than the list tries another way, where a job would
//! be lost. A process that was taken over gains nothing by trying on.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// What an argument of a call must be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Is {
    /// The lower 32 bits of the argument, by its place from 0 on.
    Word(u8, u32),
    /// The lower 32 bits are anything else.
    Not(u8, u32),
    /// All 64 bits.
    Long(u8, u64),
    /// These of its bits (the second) are those (the third).
    Bits(u8, u64, u64),
    /// The lower 32 bits are the number of the process itself.
    OwnProcess(u8),
}

/// Stands for the number of a process that is not there yet. Larger than any (`pid_max`).
const OWN_PROCESS: u32 = 0x7fff_0a1d;

/// What the kernel says to a call that it does not know; a C library then tries an older one.
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned();

/// The calls that are allowed.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    allowed: BTreeMap<i64, Vec<SeccompRule>>,
    unknown: Vec<u32>,
}

impl Calls {
    /// These calls, whatever their arguments.
    pub(crate) fn allow(mut self, calls: &[libc::c_long]) -> Self {
        self.allowed.extend(calls.iter().map(|call| (*call, Vec::new())));
        self
    }

    /// A call where all of its arguments are as they must be. Several such lists are alternatives.
    pub(crate) fn allow_where(
        mut self,
        call: libc::c_long,
        arguments: &[Is],
    ) -> Result<Self, BackendError> {
        let conditions = arguments.iter().map(condition).collect::<Result<_, _>>()?;
        self.allowed.entry(call).or_default().push(SeccompRule::new(conditions)?);
        Ok(self)
    }

    /// Calls that are answered as if the kernel did not have them.
    pub(crate) fn unknown(mut self, calls: &[libc::c_long]) -> Self {
        self.unknown.extend(calls.iter().filter_map(|call| u32::try_from(*call).ok()));
        self.allow(calls)
    }

    /// The filter that says so.
    pub(crate) fn filter(self) -> Result<Filter, BackendError> {
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
            // Equal: the next; else: the one after it.
            [instruction(EQUAL, 1, *call), instruction(RETURN, 0, UNKNOWN)]
        });
        let allow = instruction(RETURN, 0, libc::SECCOMP_RET_ALLOW);
        let load = instruction(LOAD, 0, 0);
        let unknown = [load].into_iter().chain(unknown).chain([allow]).collect();
        Ok(Filter { unknown, allowed: rest.collect() })
    }
}

/// Instructions of a filter: load a word (at 0 stands the number of the call, in
/// `struct seccomp_data`), skip lines where it is not equal, end with a verdict.
const LOAD: u16 = 0x20;
const EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

fn instruction(code: u16, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf, k }
}

fn condition(argument: &Is) -> Result<SeccompCondition, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    match *argument {
        Is::Word(place, value) => {
            SeccompCondition::new(place, Dword, SeccompCmpOp::Eq, value.into())
        }
        Is::Not(place, value) => {
            SeccompCondition::new(place, Dword, SeccompCmpOp::Ne, value.into())
        }
        Is::Long(place, value) => SeccompCondition::new(place, Qword, SeccompCmpOp::Eq, value),
        Is::Bits(place, mask, value) => {
            SeccompCondition::new(place, Qword, SeccompCmpOp::MaskedEq(mask), value)
        }
        Is::OwnProcess(place) => condition(&Is::Word(place, OWN_PROCESS)),
    }
}

/// A compiled filter: two, of which the kernel takes the stricter verdict. Only the second tells
/// its refusals to the kernel's log; those of the first are ordinary.
pub(crate) struct Filter {
    unknown: Vec<libc::sock_filter>,
    allowed: Vec<libc::sock_filter>,
}

impl Filter {
    /// Puts it on all threads of this process, for good. Nothing may be executed that has more
    /// rights from now on. Safe between fork and exec: makes system calls only.
    pub(crate) fn install(&mut self) -> io::Result<()> {
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
        // The number of a thread that has another filter.
        _ => Err(io::ErrorKind::ResourceBusy.into()),
    }
}
