//! The system calls that each process may make. The lists are based on observed use and include the
//! variants of a call that other C libraries use.
//!
//! None contains `ptrace`, `mount`, `unshare`, `setns`, `execveat`, `bpf`, `io_uring_setup`,
//! `userfaultfd`, `keyctl`, `perf_event_open`, `process_vm_readv`, `pidfd_getfd`, `kcmp`,
//! `open_by_handle_at`, or calls that create links, device nodes or unneeded types of sockets.

use libc::c_long;
use seccompiler::BackendError;

use super::filter::{AllowedCalls, ArgumentRule};

/// Memory, threads, signals, time, and open descriptors. Also opening files; the root determines
/// which files exist.
const COMMON: &[c_long] = &[
    // Descriptors.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_dup2,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_eventfd2,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_select,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    // Files; see also BY_NAME.
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_getdents64,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_copy_file_range,
    // Established connections.
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_membarrier,
    // Threads.
    libc::SYS_futex,
    libc::SYS_futex_waitv,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_arch_prctl,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time and system information.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_time,
    libc::SYS_times,
    libc::SYS_getrusage,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// Calls that take a directory and a name, allowed only without a directory. A shepherd holds
/// directories open from before it entered its root; from these, `..` leads anywhere on the host.
const BY_NAME: &[c_long] =
    &[libc::SYS_openat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat];

/// As [`BY_NAME`], with the index of their flags. They may also be used on an open descriptor
/// without a name (`AT_EMPTY_PATH`).
const BY_NAME_OR_DESCRIPTOR: &[(c_long, u8)] = &[(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)];

/// QEMU's device emulation and KVM. QEMU inherits its sockets; it creates a pair only for the
/// backend of a vhost-user device.
const QEMU: &[c_long] = &[
    libc::SYS_memfd_create,
    libc::SYS_signalfd4,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_pipe,
    libc::SYS_eventfd,
    // For QEMU's own additional filter (`-sandbox`).
    libc::SYS_seccomp,
];

/// Sockets of the program's own directory, which is all that its root contains.
const VSOCK: &[c_long] =
    &[libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_connect, libc::SYS_unlink];

/// Egress connections to the network, files of its own directory, and the exit of its children.
const SHEPHERD: &[c_long] = &[
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_accept4,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_sendfile,
    libc::SYS_rename,
    libc::SYS_unlink,
    libc::SYS_flock,
    libc::SYS_umask,
    libc::SYS_kill,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

/// `prctl(2)` options that affect only the process itself and no rights.
const PROCESS_CONTROLS: [libc::c_int; 6] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_TIMERSLACK,
    libc::PR_MCE_KILL,
];

/// `ioctl(2)` requests that Rust programs use instead of `fcntl(2)`.
const DESCRIPTOR_CONTROLS: [libc::Ioctl; 3] = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD];

/// `ioctl(2)` requests that inject input into a terminal: `TIOCSTI` of `ioctl_tty(2)`, and
/// `TIOCLINUX` of `ioctl_console(2)`, which can paste.
const TERMINAL_INPUT: [u32; 2] = [0x5412, 0x541c];

/// `clone3` has its flags in memory, which filters can't inspect; the C library falls back to
/// `clone`. `io_uring` performs operations that filters can't see.
const NOT_IMPLEMENTED: [c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];

/// The key that permits the initial `execve`: three random numbers in registers that the call does
/// not use. The executed program does not know them.
pub type ExecutionKey = [u64; 3];

fn common() -> Result<AllowedCalls, BackendError> {
    let mut calls = AllowedCalls::default()
        .not_implemented(&NOT_IMPLEMENTED)
        .allow(COMMON)
        // Signals to its own threads.
        .allow_where(libc::SYS_tgkill, &[ArgumentRule::OwnProcess(0)])?
        // Reading its own limits.
        .allow_where(libc::SYS_prlimit64, &[ArgumentRule::Word(0, 0), ArgumentRule::Long(2, 0)])?
        .allow_where(libc::SYS_clone, &[thread_flags()])?;
    for call in BY_NAME {
        calls = calls.allow_where(*call, &[no_directory(0)])?;
    }
    let empty = u64::from(libc::AT_EMPTY_PATH.cast_unsigned());
    for (call, flags) in BY_NAME_OR_DESCRIPTOR {
        calls = calls.allow_where(*call, &[no_directory(0)])?;
        calls = calls.allow_where(*call, &[ArgumentRule::Bits(*flags, empty, empty)])?;
    }
    for control in PROCESS_CONTROLS {
        calls = calls
            .allow_where(libc::SYS_prctl, &[ArgumentRule::Word(0, control.cast_unsigned())])?;
    }
    Ok(calls)
}

fn with_execve(calls: AllowedCalls, key: ExecutionKey) -> Result<AllowedCalls, BackendError> {
    let [one, two, three] = key;
    let carried =
        [ArgumentRule::Long(3, one), ArgumentRule::Long(4, two), ArgumentRule::Long(5, three)];
    calls.allow_where(libc::SYS_execve, &carried)
}

/// Returns the calls of QEMU, which apply before its first instruction.
pub fn qemu(key: ExecutionKey) -> Result<AllowedCalls, BackendError> {
    let unix = ArgumentRule::Word(0, libc::AF_UNIX.cast_unsigned());
    with_execve(common()?.allow(QEMU), key)?
        .allow_where(libc::SYS_socketpair, &[unix])?
        // KVM, the tap and files; no input into terminals.
        .allow_where(libc::SYS_ioctl, &TERMINAL_INPUT.map(|control| ArgumentRule::Not(1, control)))
}

/// Returns the calls of `vhost-device-vsock`, which apply before its first instruction.
pub fn vsock(key: ExecutionKey) -> Result<AllowedCalls, BackendError> {
    let unix = ArgumentRule::Word(0, libc::AF_UNIX.cast_unsigned());
    let calls = with_execve(common()?.allow(VSOCK), key)?
        .allow_where(libc::SYS_unlinkat, &[no_directory(0)])?;
    with_descriptor_controls(
        calls.allow_where(libc::SYS_socket, &[unix, stream_type(), ArgumentRule::Word(2, 0)])?,
    )
}

/// Returns the calls of a shepherd, which apply once QEMU runs.
pub fn shepherd() -> Result<AllowedCalls, BackendError> {
    let mut calls = common()?
        .allow(SHEPHERD)
        .allow_where(libc::SYS_unlinkat, &[no_directory(0)])?
        .allow_where(libc::SYS_renameat, &[no_directory(0), no_directory(2)])?
        .allow_where(libc::SYS_renameat2, &[no_directory(0), no_directory(2)])?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in
            [(stream_type(), libc::IPPROTO_TCP), (datagram_type(), libc::IPPROTO_UDP)]
        {
            // 0 is the default protocol. Others, such as ICMP and SCTP, expose more kernel code.
            for protocol in [0, protocol.cast_unsigned()] {
                let arguments = [
                    ArgumentRule::Word(0, family.cast_unsigned()),
                    kind,
                    ArgumentRule::Word(2, protocol),
                ];
                calls = calls.allow_where(libc::SYS_socket, &arguments)?;
            }
        }
    }
    with_descriptor_controls(calls)
}

fn with_descriptor_controls(mut calls: AllowedCalls) -> Result<AllowedCalls, BackendError> {
    for control in DESCRIPTOR_CONTROLS {
        let control = ArgumentRule::Word(1, u32::try_from(control).unwrap_or(u32::MAX));
        calls = calls.allow_where(libc::SYS_ioctl, &[control])?;
    }
    Ok(calls)
}

/// Requires that a name is relative to the root or the working directory, not to a descriptor.
fn no_directory(place: u8) -> ArgumentRule {
    ArgumentRule::Word(place, libc::AT_FDCWD.cast_unsigned())
}

/// Requires the flags of `clone(2)` that create a thread, without new namespaces.
fn thread_flags() -> ArgumentRule {
    let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
    let thread = libc::CLONE_VM | libc::CLONE_THREAD;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    ArgumentRule::Bits(0, bits(thread | namespaces), bits(thread))
}

/// Requires a stream socket. The type is in the low bits, flags are above.
fn stream_type() -> ArgumentRule {
    ArgumentRule::Bits(1, 0xf, u64::from(libc::SOCK_STREAM.cast_unsigned()))
}

fn datagram_type() -> ArgumentRule {
    ArgumentRule::Bits(1, 0xf, u64::from(libc::SOCK_DGRAM.cast_unsigned()))
}
