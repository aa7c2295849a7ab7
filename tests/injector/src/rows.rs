//! The attempts of a compromised process, and their expected outcomes.

use std::fmt::Write as _;

use crate::attempt::{Argument, Method, Outcome, Path, Peer};

/// The processes: the name, and the title on the page.
pub(crate) const PROCESSES: [(&str, &str); 3] =
    [("qemu", "QEMU"), ("vsock", "`vhost-device-vsock`"), ("shepherd", "shepherd")];

/// One row of the table.
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    pub(crate) method: Method,
    /// The processes that may.
    allowed: &'static [&'static str],
}

/// The attempts for which QEMU's own filter (`-sandbox`, on top of Mayfly's) ends the thread or the
/// process. The fork that makes the attempt has one thread.
const QEMU_ENDS: [&str; 11] = [
    "`execveat` of a descriptor",
    "`mount`",
    "`unshare` of a user namespace",
    "`unshare` of a network namespace",
    "`setns`",
    "`kexec_load`",
    "`reboot`",
    "`swapon`",
    "`syslog`",
    "`setuid`",
    "x32 system call",
];

/// The setups in which a microVM runs: started by root, by an ordinary user, by the systemd unit,
/// or in a container.
pub(crate) const SETTINGS: [&str; 4] = ["root", "user", "unit", "container"];

/// The attempts for which the filter of a setup (below Mayfly's) ends every process.
const SETTING_ENDS: [(&str, &str); 2] =
    [("unit", "x32 system call"), ("container", "x32 system call")];

impl Attempt {
    pub(crate) fn expected(&self, process: &str, setting: &str) -> Outcome {
        let ended = (process == "qemu" && QEMU_ENDS.contains(&self.what))
            || SETTING_ENDS.contains(&(setting, self.what));
        match self.allowed.contains(&process) {
            true => Outcome::Allowed,
            false if ended => Outcome::Ended,
            false => Outcome::Refused,
        }
    }

    /// Returns a cell of the table: the expected outcome, and the setups in which it differs.
    fn cell(&self, process: &str) -> String {
        let usual = self.expected(process, SETTINGS[0]);
        let mut cell = usual.word().to_owned();
        for setting in SETTINGS {
            let expected = self.expected(process, setting);
            if expected != usual {
                // Writing to a string can't fail.
                let _ = write!(cell, " ({setting}: {})", expected.word());
            }
        }
        cell
    }
}

use Argument::{Directory, Memory, Number, Text};

/// A path from any directory of a host to a file that exists.
const UP: &str = "../../../../../../../../../../../../../../../../etc/passwd";

const ZERO: Argument = Number(0);
const BAD: Argument = Number(u32::MAX as u64);

const fn number(number: libc::c_int) -> Argument {
    Number(number.cast_unsigned() as u64)
}

const fn row(what: &'static str, method: Method, allowed: &'static [&'static str]) -> Attempt {
    Attempt { what, method, allowed }
}

const fn read(what: &'static str, path: Path, allowed: &'static [&'static str]) -> Attempt {
    row(what, Method::Open(path, libc::O_RDONLY), allowed)
}

const fn connect(what: &'static str, peer: Peer, allowed: &'static [&'static str]) -> Attempt {
    row(what, Method::Connect(peer), allowed)
}

const fn call(what: &'static str, number: libc::c_long, arguments: [Argument; 6]) -> Attempt {
    row(what, Method::InvalidCall(number, arguments), NONE)
}

/// A call with six invalid arguments.
const fn bare(what: &'static str, number: libc::c_long) -> Attempt {
    call(what, number, [BAD, BAD, BAD, BAD, BAD, BAD])
}

/// A call whose first argument selects the operation.
const fn operation(what: &'static str, number: libc::c_long, first: u64) -> Attempt {
    call(what, number, [Number(first), BAD, BAD, BAD, BAD, BAD])
}

/// A call with two paths.
const fn two_paths(what: &'static str, number: libc::c_long, one: Path, other: Path) -> Attempt {
    call(what, number, [Text(one), Text(other), ZERO, ZERO, ZERO, ZERO])
}

const fn socket(
    what: &'static str,
    family: libc::c_int,
    kind: libc::c_int,
    protocol: u64,
    allowed: &'static [&'static str],
) -> Attempt {
    let arguments = [number(family), number(kind), Number(protocol), ZERO, ZERO, ZERO];
    row(what, Method::ValidCall(libc::SYS_socket, arguments), allowed)
}

const NONE: &[&str] = &[];
const QEMU: &[&str] = &["qemu"];
const VSOCK: &[&str] = &["vsock"];
const SHEPHERD: &[&str] = &["shepherd"];

/// All rows.
pub(crate) const ALL: &[Attempt] = &[
    read("read `/etc/shadow`", Path::Literal("/etc/shadow"), NONE),
    read("read `/etc/passwd`", Path::Literal("/etc/passwd"), NONE),
    read("read the resolver's `/etc/resolv.conf`", Path::Literal("/etc/resolv.conf"), SHEPHERD),
    read("read the ledger", Path::Parameter("ledger"), NONE),
    read("read a token file", Path::Parameter("token"), NONE),
    read("read the image's root file system by path", Path::Parameter("image"), NONE),
    read("read another microVM's directory", Path::Parameter("other"), NONE),
    read("read its own microVM's directory", Path::Parameter("own"), SHEPHERD),
    row(
        "create a file in its own microVM's directory",
        Method::Open(Path::In("own", "injected"), libc::O_CREAT | libc::O_WRONLY),
        SHEPHERD,
    ),
    row(
        "create a file in `/`",
        Method::Open(Path::Literal("/new"), libc::O_CREAT | libc::O_WRONLY),
        NONE,
    ),
    read("list `/home`", Path::Literal("/home"), NONE),
    read("read `/proc/self/environ`", Path::Literal("/proc/self/environ"), NONE),
    read("read `/proc/1/root/etc/shadow`", Path::Literal("/proc/1/root/etc/shadow"), NONE),
    read(
        "read through `..` from the current directory",
        Path::Literal("../../../../../../etc/shadow"),
        NONE,
    ),
    row(
        "read through `..` from an open directory",
        Method::ValidCall(
            libc::SYS_openat,
            [Directory, Text(Path::Literal(UP)), ZERO, ZERO, ZERO, ZERO],
        ),
        NONE,
    ),
    row(
        "change to an open directory (`fchdir`)",
        Method::ValidCall(libc::SYS_fchdir, [Directory, ZERO, ZERO, ZERO, ZERO, ZERO]),
        NONE,
    ),
    call(
        "remove through `..` from an open directory",
        libc::SYS_unlinkat,
        [Directory, Text(Path::Literal("../no-such/file")), ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "rename through `..` from an open directory",
        libc::SYS_renameat2,
        [
            Directory,
            Text(Path::Literal("../no-such/file")),
            Directory,
            Text(Path::Literal("../no-such/other")),
            ZERO,
            ZERO,
        ],
    ),
    read("list `/proc/self/fd`", Path::Literal("/proc/self/fd"), NONE),
    read("list `/sys/fs/cgroup`", Path::Literal("/sys/fs/cgroup"), NONE),
    read("list `/run`", Path::Literal("/run"), NONE),
    read("read `/sys/kernel`", Path::Literal("/sys/kernel"), NONE),
    row("open `/dev/net/tun`", Method::Open(Path::Literal("/dev/net/tun"), libc::O_RDWR), NONE),
    row(
        "open `/dev/userfaultfd`",
        Method::Open(Path::Literal("/dev/userfaultfd"), libc::O_RDWR),
        NONE,
    ),
    row(
        "open `/dev/vhost-vsock`",
        Method::Open(Path::Literal("/dev/vhost-vsock"), libc::O_RDWR),
        NONE,
    ),
    row("open `/dev/tty`", Method::Open(Path::Literal("/dev/tty"), libc::O_RDWR), NONE),
    row("open `/dev/kmsg`", Method::Open(Path::Literal("/dev/kmsg"), libc::O_WRONLY), NONE),
    connect("connect to the daemon's socket", Peer::Path(Path::Parameter("daemon")), NONE),
    connect("connect to a shepherd's socket", Peer::Path(Path::Parameter("shepherd")), NONE),
    connect("connect to another named unix socket", Peer::Path(Path::Parameter("socket")), NONE),
    connect("connect to an abstract unix socket", Peer::Abstract, NONE),
    connect("connect to 127.0.0.1", Peer::Inet4, SHEPHERD),
    connect("connect to ::1", Peer::Inet6, SHEPHERD),
    connect("connect with `AF_VSOCK`", Peer::Vsock, NONE),
    connect("connect with `AF_NETLINK`", Peer::Netlink, NONE),
    socket("create a raw socket", libc::AF_INET, libc::SOCK_RAW, 1, NONE),
    socket("create a packet socket", libc::AF_PACKET, libc::SOCK_RAW, 3, NONE),
    socket("create an ICMP socket", libc::AF_INET, libc::SOCK_DGRAM, 1, NONE),
    socket("create an SCTP socket", libc::AF_INET, libc::SOCK_STREAM, 132, NONE),
    socket("create a multipath TCP socket", libc::AF_INET, libc::SOCK_STREAM, 262, NONE),
    socket("create a kernel crypto socket (`AF_ALG`)", libc::AF_ALG, libc::SOCK_SEQPACKET, 0, NONE),
    socket("create a unix stream socket", libc::AF_UNIX, libc::SOCK_STREAM, 0, VSOCK),
    socket("create a unix datagram socket", libc::AF_UNIX, libc::SOCK_DGRAM, 0, NONE),
    call("`ptrace`", libc::SYS_ptrace, [Number(3), Number(1), ZERO, Memory, ZERO, ZERO]),
    call(
        "`process_vm_readv`",
        libc::SYS_process_vm_readv,
        [Number(1), Memory, Number(0), Memory, Number(0), Number(1)],
    ),
    call(
        "`process_vm_writev`",
        libc::SYS_process_vm_writev,
        [Number(1), Memory, Number(0), Memory, Number(0), Number(1)],
    ),
    call("`pidfd_open`", libc::SYS_pidfd_open, [Number(1), Number(1), ZERO, ZERO, ZERO, ZERO]),
    call("`pidfd_getfd`", libc::SYS_pidfd_getfd, [BAD, ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`kcmp`", libc::SYS_kcmp, [Number(1), Number(1), Number(99), ZERO, ZERO, ZERO]),
    row(
        "signal process 1 of its namespace",
        Method::ValidCall(libc::SYS_kill, [Number(1), ZERO, ZERO, ZERO, ZERO, ZERO]),
        SHEPHERD,
    ),
    row(
        "signal the daemon by its process id on the host",
        Method::ValidCall(
            libc::SYS_kill,
            [Argument::Parameter("front"), ZERO, ZERO, ZERO, ZERO, ZERO],
        ),
        NONE,
    ),
    bare("`pidfd_send_signal`", libc::SYS_pidfd_send_signal),
    bare("`rt_sigqueueinfo`", libc::SYS_rt_sigqueueinfo),
    bare("`tkill`", libc::SYS_tkill),
    call(
        "signal a thread of another process",
        libc::SYS_tgkill,
        [Number(99), Number(99), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`execve`", libc::SYS_execve, [Text(Path::Literal("/")), BAD, BAD, ZERO, ZERO, ZERO]),
    call(
        "`execveat` of a descriptor",
        libc::SYS_execveat,
        [BAD, Text(Path::Literal("")), BAD, BAD, Number(0x1000), ZERO],
    ),
    // Invalid: `CLONE_SIGHAND` requires `CLONE_VM`, so the call creates no process.
    call("fork", libc::SYS_clone, [number(libc::CLONE_SIGHAND), ZERO, ZERO, ZERO, ZERO, ZERO]),
    bare("`clone3`", libc::SYS_clone3),
    operation(
        "create a thread in a new user namespace",
        libc::SYS_clone,
        (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_NEWUSER) as u64,
    ),
    operation("x32 system call", 0x4000_0000 | libc::SYS_getpid, 0),
    call(
        "`mount`",
        libc::SYS_mount,
        [
            Text(Path::Literal("none")),
            Text(Path::Literal("/none")),
            Text(Path::Literal("tmpfs")),
            ZERO,
            ZERO,
            ZERO,
        ],
    ),
    call("`fsopen`", libc::SYS_fsopen, [Text(Path::Literal("none")), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`pivot_root`",
        libc::SYS_pivot_root,
        [Text(Path::Literal("/none")), Text(Path::Literal("/none")), ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "`chroot`",
        libc::SYS_chroot,
        [Text(Path::Literal("/none")), ZERO, ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "`unshare` of a user namespace",
        libc::SYS_unshare,
        [number(libc::CLONE_NEWUSER), ZERO, ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "`unshare` of a network namespace",
        libc::SYS_unshare,
        [number(libc::CLONE_NEWNET), ZERO, ZERO, ZERO, ZERO, ZERO],
    ),
    bare("`umount2`", libc::SYS_umount2),
    bare("`open_tree`", libc::SYS_open_tree),
    bare("`move_mount`", libc::SYS_move_mount),
    bare("`mount_setattr`", libc::SYS_mount_setattr),
    bare("`openat2`", libc::SYS_openat2),
    bare("`fanotify_init`", libc::SYS_fanotify_init),
    bare("`inotify_init1`", libc::SYS_inotify_init1),
    bare("`finit_module`", libc::SYS_finit_module),
    bare("`kexec_load`", libc::SYS_kexec_load),
    bare("`reboot`", libc::SYS_reboot),
    bare("`swapon`", libc::SYS_swapon),
    bare("`syslog`", libc::SYS_syslog),
    bare("`acct`", libc::SYS_acct),
    bare("`sethostname`", libc::SYS_sethostname),
    bare("`clock_settime`", libc::SYS_clock_settime),
    bare("`quotactl`", libc::SYS_quotactl),
    bare("`setuid`", libc::SYS_setuid),
    bare("`setgroups`", libc::SYS_setgroups),
    bare("`capset`", libc::SYS_capset),
    bare("`personality`", libc::SYS_personality),
    bare("`ioperm`", libc::SYS_ioperm),
    bare("`modify_ldt`", libc::SYS_modify_ldt),
    call("`setns`", libc::SYS_setns, [BAD, ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`io_uring_setup`", libc::SYS_io_uring_setup, [Number(1), BAD, ZERO, ZERO, ZERO, ZERO]),
    bare("`io_uring_enter`", libc::SYS_io_uring_enter),
    bare("`io_uring_register`", libc::SYS_io_uring_register),
    bare("`process_madvise`", libc::SYS_process_madvise),
    bare("`migrate_pages`", libc::SYS_migrate_pages),
    bare("`vmsplice`", libc::SYS_vmsplice),
    bare("`shmget`", libc::SYS_shmget),
    bare("`msgget`", libc::SYS_msgget),
    bare("`mq_open`", libc::SYS_mq_open),
    row(
        "`memfd_create`",
        Method::InvalidCall(libc::SYS_memfd_create, [ZERO, BAD, ZERO, ZERO, ZERO, ZERO]),
        QEMU,
    ),
    bare("`memfd_secret`", libc::SYS_memfd_secret),
    operation("let its parent debug it (`PTRACE_TRACEME`)", libc::SYS_ptrace, 0),
    operation("let another process debug it (`PR_SET_PTRACER`)", libc::SYS_prctl, 0x5961_6d61),
    operation("make itself dumpable (`PR_SET_DUMPABLE`)", libc::SYS_prctl, 4),
    operation("keep capabilities (`PR_SET_KEEPCAPS`)", libc::SYS_prctl, 8),
    operation("change speculation control (`PR_SET_SPECULATION_CTRL`)", libc::SYS_prctl, 53),
    call("`userfaultfd`", libc::SYS_userfaultfd, [Number(1), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call("`bpf`", libc::SYS_bpf, [ZERO, BAD, Number(64), ZERO, ZERO, ZERO]),
    call("`perf_event_open`", libc::SYS_perf_event_open, [BAD, ZERO, ZERO, BAD, ZERO, ZERO]),
    call(
        "`keyctl`",
        libc::SYS_keyctl,
        [ZERO, Number((-3_i64).cast_unsigned()), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`add_key`", libc::SYS_add_key, [BAD, BAD, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`name_to_handle_at`",
        libc::SYS_name_to_handle_at,
        [BAD, Text(Path::Literal("x")), BAD, BAD, ZERO, ZERO],
    ),
    call("`open_by_handle_at`", libc::SYS_open_by_handle_at, [BAD, BAD, ZERO, ZERO, ZERO, ZERO]),
    two_paths(
        "create a symbolic link in its directory",
        libc::SYS_symlink,
        Path::Literal("/etc/shadow"),
        Path::In("own", "injected-link"),
    ),
    two_paths(
        "create a hard link in its directory",
        libc::SYS_link,
        Path::In("own", "events.jsonl"),
        Path::In("own", "injected-link"),
    ),
    call(
        "create a named pipe in its directory",
        libc::SYS_mknod,
        [Text(Path::In("own", "injected-pipe")), Number(0o010_600), ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "inject a key into a terminal (`TIOCSTI`)",
        libc::SYS_ioctl,
        [BAD, Number(0x5412), BAD, ZERO, ZERO, ZERO],
    ),
    call(
        "inject keys into a console (`TIOCLINUX`)",
        libc::SYS_ioctl,
        [BAD, Number(0x541c), BAD, ZERO, ZERO, ZERO],
    ),
    bare("create a directory in its directory", libc::SYS_mkdir),
    bare("change the mode of a file", libc::SYS_chmod),
    bare("change the mode of an open file", libc::SYS_fchmod),
    bare("change the owner of a file", libc::SYS_fchownat),
    bare("set an attribute of a file", libc::SYS_setxattr),
    bare("set the times of a file", libc::SYS_utimensat),
    bare("raise its priority", libc::SYS_setpriority),
    bare("change its scheduler", libc::SYS_sched_setscheduler),
    bare("change its processor affinity", libc::SYS_sched_setaffinity),
    call("raise its limits", libc::SYS_prlimit64, [ZERO, Number(7), BAD, ZERO, ZERO, ZERO]),
];

/// Returns the table of the security page.
pub(crate) fn table() -> String {
    let heading: Vec<_> = PROCESSES.iter().map(|(_, title)| *title).collect();
    let mut table = format!("| attempt | {} |\n|---|---|---|---|\n", heading.join(" | "));
    for attempt in ALL {
        let cells = PROCESSES.map(|(process, _)| attempt.cell(process));
        // Can't fail, as above.
        let _ = writeln!(table, "| {} | {} |", attempt.what, cells.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_names_are_unique() {
        let mut names: Vec<_> = ALL.iter().map(|attempt| attempt.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn exceptions_name_existing_rows() {
        for what in QEMU_ENDS.into_iter().chain(SETTING_ENDS.map(|(_, what)| what)) {
            assert!(ALL.iter().any(|attempt| attempt.what == what), "{what}");
        }
    }
}
