//! Which system calls each process may make: lists made from what it was seen to use, with what
//! another version of the same call is on another C library.
//!
//! None has `ptrace`, `mount`, `unshare`, `setns`, `execveat`, `bpf`, `io_uring_setup`,
//! `userfaultfd`, `keyctl`, `perf_event_open`, `process_vm_readv`, `pidfd_getfd`, `kcmp`,
//! `open_by_handle_at`, or one that makes links, device nodes or sockets of other families than its
//! work needs.

use libc::c_long;
use seccompiler::BackendError;

use super::filter::{Calls, Is};

/// Memory, threads, signals, time, and descriptors that are open. Files are opened by these, too:
/// which there are is a matter of the root.
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
    // Files, with those in NAMED.
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
    // Connections that are there.
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
    // Time, and what the machine is.
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

/// Those that take a directory and a name. A shepherd holds directories open that it had before its
/// root, and with dots a name leads from them to anywhere on the host: so there may be none.
const NAMED: &[c_long] =
    &[libc::SYS_openat, libc::SYS_faccessat, libc::SYS_faccessat2, libc::SYS_readlinkat];

/// The same with the place of their flags: they also ask about an open file, without a name
/// (`AT_EMPTY_PATH`).
const LOOKED_AT: &[(c_long, u8)] = &[(libc::SYS_newfstatat, 3), (libc::SYS_statx, 2)];

/// QEMU's emulation of devices, and KVM. Its sockets it inherits; the pair is for the other end of
/// a vhost-user device.
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
    // For its own filter (`-sandbox`), which comes on top.
    libc::SYS_seccomp,
];

/// Sockets of its own directory, which are all that its root has.
const VSOCK: &[c_long] =
    &[libc::SYS_bind, libc::SYS_listen, libc::SYS_accept4, libc::SYS_connect, libc::SYS_unlink];

/// Egress, which connects to the network; the files of its own directory; the end of its children.
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

/// Controls of a process over itself that take or give no rights.
const PROCESS_CONTROLS: [libc::c_int; 6] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_DUMPABLE,
    libc::PR_SET_TIMERSLACK,
    libc::PR_MCE_KILL,
];

/// Controls of descriptors that Rust programs use instead of `fcntl(2)`.
const DESCRIPTOR_CONTROLS: [libc::Ioctl; 3] = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD];

/// What puts keys into a terminal: `TIOCSTI` of `ioctl_tty(2)`, and `TIOCLINUX` of
/// `ioctl_console(2)`, which can paste.
const TERMINAL_INPUT: [u32; 2] = [0x5412, 0x541c];

/// `clone3` keeps its flags in memory, where no filter sees them: the C library then uses `clone`.
/// `io_uring` has calls of its own that no filter sees.
const UNKNOWN: [c_long; 2] = [libc::SYS_clone3, libc::SYS_io_uring_setup];

/// What only the start of the program may use: three numbers that the call carries in registers
/// that it has no use for, and that nobody knows any more once it was made.
pub(crate) type ExecutionKey = [u64; 3];

fn common() -> Result<Calls, BackendError> {
    let mut calls = Calls::default()
        .unknown(&UNKNOWN)
        .allow(COMMON)
        // A signal for one of its own threads.
        .allow_where(libc::SYS_tgkill, &[Is::OwnProcess(0)])?
        // Limits of its own, to be read.
        .allow_where(libc::SYS_prlimit64, &[Is::Word(0, 0), Is::Long(2, 0)])?
        .allow_where(libc::SYS_clone, &[thread()])?;
    for call in NAMED {
        calls = calls.allow_where(*call, &[here(0)])?;
    }
    let empty = u64::from(libc::AT_EMPTY_PATH.cast_unsigned());
    for (call, flags) in LOOKED_AT {
        calls = calls.allow_where(*call, &[here(0)])?;
        calls = calls.allow_where(*call, &[Is::Bits(*flags, empty, empty)])?;
    }
    for control in PROCESS_CONTROLS {
        calls = calls.allow_where(libc::SYS_prctl, &[Is::Word(0, control.cast_unsigned())])?;
    }
    Ok(calls)
}

fn executing(calls: Calls, key: ExecutionKey) -> Result<Calls, BackendError> {
    let [one, two, three] = key;
    let carried = [Is::Long(3, one), Is::Long(4, two), Is::Long(5, three)];
    calls.allow_where(libc::SYS_execve, &carried)
}

/// QEMU's, from before its first instruction on.
pub(crate) fn qemu(key: ExecutionKey) -> Result<Calls, BackendError> {
    let unix = Is::Word(0, libc::AF_UNIX.cast_unsigned());
    executing(common()?.allow(QEMU), key)?
        .allow_where(libc::SYS_socketpair, &[unix])?
        // KVM, the tap and files; not keys into a terminal.
        .allow_where(libc::SYS_ioctl, &TERMINAL_INPUT.map(|control| Is::Not(1, control)))
}

/// Those of `vhost-device-vsock`, from before its first instruction on.
pub(crate) fn vsock(key: ExecutionKey) -> Result<Calls, BackendError> {
    let unix = Is::Word(0, libc::AF_UNIX.cast_unsigned());
    let calls =
        executing(common()?.allow(VSOCK), key)?.allow_where(libc::SYS_unlinkat, &[here(0)])?;
    controlling(calls.allow_where(libc::SYS_socket, &[unix, stream(), Is::Word(2, 0)])?)
}

/// A shepherd's, once QEMU runs.
pub(crate) fn shepherd() -> Result<Calls, BackendError> {
    let mut calls = common()?
        .allow(SHEPHERD)
        .allow_where(libc::SYS_unlinkat, &[here(0)])?
        .allow_where(libc::SYS_renameat, &[here(0), here(2)])?
        .allow_where(libc::SYS_renameat2, &[here(0), here(2)])?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in [(stream(), libc::IPPROTO_TCP), (datagram(), libc::IPPROTO_UDP)] {
            // 0 is the usual one of the type. Others are ICMP, SCTP and more of the kernel's code.
            for protocol in [0, protocol.cast_unsigned()] {
                let asked = [Is::Word(0, family.cast_unsigned()), kind, Is::Word(2, protocol)];
                calls = calls.allow_where(libc::SYS_socket, &asked)?;
            }
        }
    }
    controlling(calls)
}

fn controlling(mut calls: Calls) -> Result<Calls, BackendError> {
    for control in DESCRIPTOR_CONTROLS {
        let control = Is::Word(1, u32::try_from(control).unwrap_or(u32::MAX));
        calls = calls.allow_where(libc::SYS_ioctl, &[control])?;
    }
    Ok(calls)
}

/// No directory: a name is from the root or from the working directory.
fn here(place: u8) -> Is {
    Is::Word(place, libc::AT_FDCWD.cast_unsigned())
}

/// The flags of `clone(2)` that make a thread, and nothing that is more than one.
fn thread() -> Is {
    let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
    let thread = libc::CLONE_VM | libc::CLONE_THREAD;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    Is::Bits(0, bits(thread | namespaces), bits(thread))
}

/// Socket types stand in the low bits, flags above.
fn stream() -> Is {
    Is::Bits(1, 0xf, u64::from(libc::SOCK_STREAM.cast_unsigned()))
}

fn datagram() -> Is {
    Is::Bits(1, 0xf, u64::from(libc::SOCK_DGRAM.cast_unsigned()))
}
