//! What a process that was taken over would try, and what is to come of it.

use std::fmt::Write as _;

use crate::attempt::{Argument, How, Outcome, Path, Peer};

/// The processes, by name and as the page calls them.
pub(crate) const PROCESSES: [(&str, &str); 3] =
    [("qemu", "QEMU"), ("vsock", "`vhost-device-vsock`"), ("shepherd", "shepherd")];

/// One row.
pub(crate) struct Attempt {
    pub(crate) what: &'static str,
    pub(crate) how: How,
    /// Who may.
    allowed: &'static [&'static str],
}

/// What QEMU's own filter (`-sandbox`), which lies on top of ours, ends the thread or the process
/// for; the fork that tries it has one thread.
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
    "a call by a number of x32",
];

/// Where a microVM's processes are: started by root or by an ordinary user, by the systemd unit, in a
/// container.
pub(crate) const SETTINGS: [&str; 4] = ["root", "user", "unit", "container"];

/// What the filter of a setting, which lies below ours, ends every process for.
const SETTING_ENDS: [(&str, &str); 2] =
    [("unit", "a call by a number of x32"), ("container", "a call by a number of x32")];

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

    /// A cell of the table: what is to come of it, and where it is something else.
    fn cell(&self, process: &str) -> String {
        let usual = self.expected(process, SETTINGS[0]);
        let mut cell = usual.word().to_owned();
        for setting in SETTINGS {
            let expected = self.expected(process, setting);
            if expected != usual {
                // A string takes every word.
                let _ = write!(cell, " ({setting}: {})", expected.word());
            }
        }
        cell
    }
}

use Argument::{Directory, Memory, Number, Text};

/// A file that is there, from any directory of a host.
const UP: &str = "../../../../../../../../../../../../../../../../etc/passwd";

const ZERO: Argument = Number(0);
const BAD: Argument = Number(u32::MAX as u64);

const fn number(number: libc::c_int) -> Argument {
    Number(number.cast_unsigned() as u64)
}

const fn row(what: &'static str, how: How, allowed: &'static [&'static str]) -> Attempt {
    Attempt { what, how, allowed }
}

const fn read(what: &'static str, path: Path, allowed: &'static [&'static str]) -> Attempt {
    row(what, How::Open(path, libc::O_RDONLY), allowed)
}

const fn connect(what: &'static str, peer: Peer, allowed: &'static [&'static str]) -> Attempt {
    row(what, How::Connect(peer), allowed)
}

const fn call(what: &'static str, call: libc::c_long, arguments: [Argument; 6]) -> Attempt {
    row(what, How::Call(call, arguments), NOBODY)
}

/// A call of which nothing is right but the number.
const fn bare(what: &'static str, number: libc::c_long) -> Attempt {
    call(what, number, [BAD, BAD, BAD, BAD, BAD, BAD])
}

/// A call whose first argument says what it does.
const fn first(what: &'static str, number: libc::c_long, first: u64) -> Attempt {
    call(what, number, [Number(first), BAD, BAD, BAD, BAD, BAD])
}

/// A call of one path and another.
const fn between(what: &'static str, number: libc::c_long, one: Path, other: Path) -> Attempt {
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
    row(what, How::Done(libc::SYS_socket, arguments), allowed)
}

const NOBODY: &[&str] = &[];
const QEMU: &[&str] = &["qemu"];
const VSOCK: &[&str] = &["vsock"];
const SHEPHERD: &[&str] = &["shepherd"];

/// All rows.
pub(crate) const ALL: &[Attempt] = &[
    read("read `/etc/shadow`", Path::Is("/etc/shadow"), NOBODY),
    read("read `/etc/passwd`", Path::Is("/etc/passwd"), NOBODY),
    read("read the resolver's `/etc/resolv.conf`", Path::Is("/etc/resolv.conf"), SHEPHERD),
    read("read the ledger", Path::Given("ledger"), NOBODY),
    read("read a token's file", Path::Given("token"), NOBODY),
    read("read the image's root file system by its name", Path::Given("image"), NOBODY),
    read("read another microVM's directory", Path::Given("other"), NOBODY),
    read("read its own microVM's directory", Path::Given("own"), SHEPHERD),
    row(
        "make a file in its own microVM's directory",
        How::Open(Path::In("own", "injected"), libc::O_CREAT | libc::O_WRONLY),
        SHEPHERD,
    ),
    row("make a file in `/`", How::Open(Path::Is("/new"), libc::O_CREAT | libc::O_WRONLY), NOBODY),
    read("list `/home`", Path::Is("/home"), NOBODY),
    read("read `/proc/self/environ`", Path::Is("/proc/self/environ"), NOBODY),
    read("read `/proc/1/root/etc/shadow`", Path::Is("/proc/1/root/etc/shadow"), NOBODY),
    read("read by a name with dots", Path::Is("../../../../../../etc/shadow"), NOBODY),
    row(
        "read by an open directory and dots",
        How::Done(libc::SYS_openat, [Directory, Text(Path::Is(UP)), ZERO, ZERO, ZERO, ZERO]),
        NOBODY,
    ),
    row(
        "go into an open directory",
        How::Done(libc::SYS_fchdir, [Directory, ZERO, ZERO, ZERO, ZERO, ZERO]),
        NOBODY,
    ),
    call(
        "remove by an open directory and dots",
        libc::SYS_unlinkat,
        [Directory, Text(Path::Is("../no-such/file")), ZERO, ZERO, ZERO, ZERO],
    ),
    call(
        "rename by an open directory and dots",
        libc::SYS_renameat2,
        [
            Directory,
            Text(Path::Is("../no-such/file")),
            Directory,
            Text(Path::Is("../no-such/other")),
            ZERO,
            ZERO,
        ],
    ),
    read("list `/proc/self/fd`", Path::Is("/proc/self/fd"), NOBODY),
    read("list `/sys/fs/cgroup`", Path::Is("/sys/fs/cgroup"), NOBODY),
    read("list `/run`", Path::Is("/run"), NOBODY),
    read("read `/sys/kernel`", Path::Is("/sys/kernel"), NOBODY),
    row("open `/dev/net/tun`", How::Open(Path::Is("/dev/net/tun"), libc::O_RDWR), NOBODY),
    row("open `/dev/userfaultfd`", How::Open(Path::Is("/dev/userfaultfd"), libc::O_RDWR), NOBODY),
    row("open `/dev/vhost-vsock`", How::Open(Path::Is("/dev/vhost-vsock"), libc::O_RDWR), NOBODY),
    row("open `/dev/tty`", How::Open(Path::Is("/dev/tty"), libc::O_RDWR), NOBODY),
    row("open `/dev/kmsg`", How::Open(Path::Is("/dev/kmsg"), libc::O_WRONLY), NOBODY),
    connect("connect to the daemon's socket", Peer::Path(Path::Given("daemon")), NOBODY),
    connect("connect to a shepherd's socket", Peer::Path(Path::Given("shepherd")), NOBODY),
    connect("connect to another socket with a path", Peer::Path(Path::Given("socket")), NOBODY),
    connect("connect to an abstract socket", Peer::Abstract, NOBODY),
    connect("connect to 127.0.0.1", Peer::Inet4, SHEPHERD),
    connect("connect to ::1", Peer::Inet6, SHEPHERD),
    connect("connect by `AF_VSOCK`", Peer::Vsock, NOBODY),
    connect("connect by `AF_NETLINK`", Peer::Netlink, NOBODY),
    socket("make a raw socket", libc::AF_INET, libc::SOCK_RAW, 1, NOBODY),
    socket("make a packet socket", libc::AF_PACKET, libc::SOCK_RAW, 3, NOBODY),
    socket("make a socket for ICMP", libc::AF_INET, libc::SOCK_DGRAM, 1, NOBODY),
    socket("make a socket for SCTP", libc::AF_INET, libc::SOCK_STREAM, 132, NOBODY),
    socket("make a socket for multipath TCP", libc::AF_INET, libc::SOCK_STREAM, 262, NOBODY),
    socket("make a socket of the kernel's ciphers", libc::AF_ALG, libc::SOCK_SEQPACKET, 0, NOBODY),
    socket("make a unix socket", libc::AF_UNIX, libc::SOCK_STREAM, 0, VSOCK),
    socket("make a unix socket for datagrams", libc::AF_UNIX, libc::SOCK_DGRAM, 0, NOBODY),
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
        "signal the first process of its namespace",
        How::Done(libc::SYS_kill, [Number(1), ZERO, ZERO, ZERO, ZERO, ZERO]),
        SHEPHERD,
    ),
    row(
        "signal the daemon by its number on the host",
        How::Done(libc::SYS_kill, [Argument::Given("front"), ZERO, ZERO, ZERO, ZERO, ZERO]),
        NOBODY,
    ),
    bare("`pidfd_send_signal`", libc::SYS_pidfd_send_signal),
    bare("`rt_sigqueueinfo`", libc::SYS_rt_sigqueueinfo),
    bare("`tkill`", libc::SYS_tkill),
    call(
        "signal a thread of another process",
        libc::SYS_tgkill,
        [Number(99), Number(99), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`execve`", libc::SYS_execve, [Text(Path::Is("/")), BAD, BAD, ZERO, ZERO, ZERO]),
    call(
        "`execveat` of a descriptor",
        libc::SYS_execveat,
        [BAD, Text(Path::Is("")), BAD, BAD, Number(0x1000), ZERO],
    ),
    // Threads must share memory, so that this is no process that could be made.
    call("fork", libc::SYS_clone, [number(libc::CLONE_SIGHAND), ZERO, ZERO, ZERO, ZERO, ZERO]),
    bare("`clone3`", libc::SYS_clone3),
    first(
        "a thread in a user namespace of its own",
        libc::SYS_clone,
        (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_NEWUSER) as u64,
    ),
    first("a call by a number of x32", 0x4000_0000 | libc::SYS_getpid, 0),
    call(
        "`mount`",
        libc::SYS_mount,
        [
            Text(Path::Is("none")),
            Text(Path::Is("/none")),
            Text(Path::Is("tmpfs")),
            ZERO,
            ZERO,
            ZERO,
        ],
    ),
    call("`fsopen`", libc::SYS_fsopen, [Text(Path::Is("none")), ZERO, ZERO, ZERO, ZERO, ZERO]),
    call(
        "`pivot_root`",
        libc::SYS_pivot_root,
        [Text(Path::Is("/none")), Text(Path::Is("/none")), ZERO, ZERO, ZERO, ZERO],
    ),
    call("`chroot`", libc::SYS_chroot, [Text(Path::Is("/none")), ZERO, ZERO, ZERO, ZERO, ZERO]),
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
        How::Call(libc::SYS_memfd_create, [ZERO, BAD, ZERO, ZERO, ZERO, ZERO]),
        QEMU,
    ),
    bare("`memfd_secret`", libc::SYS_memfd_secret),
    first("be its own debugger (`PTRACE_TRACEME`)", libc::SYS_ptrace, 0),
    first("let another debug it (`PR_SET_PTRACER`)", libc::SYS_prctl, 0x5961_6d61),
    first("be seen again (`PR_SET_DUMPABLE`)", libc::SYS_prctl, 4),
    first("keep capabilities (`PR_SET_KEEPCAPS`)", libc::SYS_prctl, 8),
    first("speculate (`PR_SET_SPECULATION_CTRL`)", libc::SYS_prctl, 53),
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
        [BAD, Text(Path::Is("x")), BAD, BAD, ZERO, ZERO],
    ),
    call("`open_by_handle_at`", libc::SYS_open_by_handle_at, [BAD, BAD, ZERO, ZERO, ZERO, ZERO]),
    between(
        "make a symbolic link in its directory",
        libc::SYS_symlink,
        Path::Is("/etc/shadow"),
        Path::In("own", "injected-link"),
    ),
    between(
        "make a hard link in its directory",
        libc::SYS_link,
        Path::In("own", "events.jsonl"),
        Path::In("own", "injected-link"),
    ),
    call(
        "make a named pipe in its directory",
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
    bare("make a directory in its directory", libc::SYS_mkdir),
    bare("change the mode of a file", libc::SYS_chmod),
    bare("change the mode of an open file", libc::SYS_fchmod),
    bare("change the owner of a file", libc::SYS_fchownat),
    bare("set an attribute of a file", libc::SYS_setxattr),
    bare("set the times of a file", libc::SYS_utimensat),
    bare("raise its priority", libc::SYS_setpriority),
    bare("choose its scheduler", libc::SYS_sched_setscheduler),
    bare("choose its processors", libc::SYS_sched_setaffinity),
    call("raise its limits", libc::SYS_prlimit64, [ZERO, Number(7), BAD, ZERO, ZERO, ZERO]),
];

/// The table of the security page.
pub(crate) fn table() -> String {
    let heading: Vec<_> = PROCESSES.iter().map(|(_, title)| *title).collect();
    let mut table = format!("| it tries to | {} |\n|---|---|---|---|\n", heading.join(" | "));
    for attempt in ALL {
        let cells = PROCESSES.map(|(process, _)| attempt.cell(process));
        // As above.
        let _ = writeln!(table, "| {} | {} |", attempt.what, cells.join(" | "));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_told_once_and_can_be_told_apart() {
        let mut names: Vec<_> = ALL.iter().map(|attempt| attempt.what).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn what_others_end_for_is_in_a_row() {
        for what in QEMU_ENDS.into_iter().chain(SETTING_ENDS.map(|(_, what)| what)) {
            assert!(ALL.iter().any(|attempt| attempt.what == what), "{what}");
        }
    }
}
