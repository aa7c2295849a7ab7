//! Controls of the kernel: disclosure, loading of code, self-protection.

use crate::hardening::expect::CheckResult;
use crate::hardening::{Conflict, Control, Expectation, Measure, Probe, ProbeUser};

/// Returns a control that consists of kernel parameters only.
const fn parameters(
    name: &'static str,
    title: &'static str,
    why: &'static str,
    reference: &'static str,
    measures: &'static [Measure],
) -> Control {
    Control { name, title, why, reference, conflict: Conflict::None, measures, probe: None }
}

pub(super) const CONTROLS: &[Control] = &[
    parameters(
        "kernel.pointers",
        "The kernel hides its addresses.",
        "An exploit of the kernel starts with an address.",
        "Lynis KRNL-6000",
        &[Measure::Parameter("kernel/kptr_restrict", "2")],
    ),
    parameters(
        "kernel.log",
        "Only root can read the kernel log.",
        "It contains addresses and device names.",
        "CIS Debian 12, 1.5; Lynis KRNL-6000",
        &[Measure::Parameter("kernel/dmesg_restrict", "1")],
    ),
    parameters(
        "kernel.tracing",
        "Only its parent can trace a process, and only root can use performance events.",
        "A step of a job can't read secrets from the runner's memory. A debugger still works for \
         the processes that it starts.",
        "CIS Debian 12, 1.5.2; Lynis KRNL-6000",
        &[
            Measure::Parameter("kernel/yama/ptrace_scope", "1"),
            Measure::Parameter("kernel/perf_event_paranoid", "3"),
        ],
    ),
    parameters(
        "kernel.bpf",
        "Only root can load BPF programs, and their code is hardened.",
        "Bugs of the verifier are the most common way into the kernel.",
        "Lynis KRNL-6000",
        &[
            Measure::Parameter("kernel/unprivileged_bpf_disabled", "1"),
            Measure::Parameter("net/core/bpf_jit_harden", "2"),
        ],
    ),
    parameters(
        "kernel.kexec",
        "No other kernel can be started.",
        "Not even by root: the kernel that was verified is the one that runs.",
        "kernel.org, sysctl/kernel",
        &[Measure::Parameter("kernel/kexec_load_disabled", "1")],
    ),
    parameters(
        "kernel.sysrq",
        "No key combination controls the kernel.",
        "A guest has no keyboard, but it has /proc/sysrq-trigger.",
        "Lynis KRNL-6000",
        &[Measure::Parameter("kernel/sysrq", "0"), Measure::Parameter("kernel/ctrl-alt-del", "0")],
    ),
    parameters(
        "kernel.links",
        "Links, FIFOs and files in world-writable directories are followed and opened by their \
         owners only.",
        "It prevents races that redirect a privileged program to another user's file.",
        "CIS Debian 12, 1.5; Lynis KRNL-6000",
        &[
            Measure::Parameter("fs/protected_symlinks", "1"),
            Measure::Parameter("fs/protected_hardlinks", "1"),
            Measure::Parameter("fs/protected_fifos", "2"),
            Measure::Parameter("fs/protected_regular", "2"),
        ],
    ),
    parameters(
        "kernel.memory-layout",
        "Programs are loaded at random addresses, with the largest range of the processor, and \
         never at the lowest ones.",
        "An exploit of a program must guess.",
        "CIS Debian 12, 1.5.1",
        &[
            Measure::Parameter("kernel/randomize_va_space", "2"),
            Measure::Parameter("vm/mmap_rnd_bits", "32"),
            Measure::Parameter("vm/mmap_rnd_compat_bits", "16"),
            Measure::Parameter("vm/mmap_min_addr", "65536"),
        ],
    ),
    parameters(
        "kernel.user-namespaces",
        "Only root can create user namespaces.",
        "They expose the kernel's interfaces for root to every user. Disable this control for jobs \
         that run rootless Docker, or the sandbox of Bazel or of a browser.",
        "Debian, kernel.unprivileged_userns_clone",
        &[Measure::Parameter("kernel/unprivileged_userns_clone", "0")],
    ),
    parameters(
        "kernel.io-uring",
        "Only root can use io_uring.",
        "It is a large and recent interface that jobs rarely need. Disable this control for jobs \
         that test it.",
        "kernel.org, sysctl/kernel",
        &[Measure::Parameter("kernel/io_uring_disabled", "1")],
    ),
    parameters(
        "kernel.interfaces",
        "Only root can use old and rare interfaces: line disciplines, injected keystrokes and \
         userfaultfd.",
        "Each has been part of exploits.",
        "Lynis KRNL-6000",
        &[
            Measure::Parameter("dev/tty/ldisc_autoload", "0"),
            Measure::Parameter("dev/tty/legacy_tiocsti", "0"),
            Measure::Parameter("vm/unprivileged_userfaultfd", "0"),
        ],
    ),
    Control {
        name: "kernel.modules-listed",
        title: "Modules of file systems and protocols that no job needs can't be loaded.",
        why: "The kernel loads them on demand for any user. The image does not contain them; the \
              control also covers those that a job installs.",
        reference: "CIS Debian 12, 1.1.1 and 3.2; Lynis FILE-6430, NETW-3200, USB-1000, STRG-1846",
        conflict: Conflict::None,
        measures: &[Measure::File("/etc/modprobe.d/mayfly.conf", UNLOADABLE)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "grep -wE 'cramfs|freevxfs|hfs|hfsplus|jffs2|squashfs|udf|usb_storage|dccp|sctp|rds|\
                tipc|firewire_core' /proc/modules /proc/filesystems",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "kernel.modules-locked",
        title: "After the image's own modules, no module can be loaded, not even by root.",
        why: "A job that is root must not run code in the kernel.",
        reference: "Lynis KRNL-6000, kernel.modules_disabled",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.lock_modules = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "cat /proc/sys/kernel/modules_disabled",
            expect: Expectation::Lines(&["1"]),
        }),
    },
    Control {
        name: "kernel.memory-zeroed",
        title: "The kernel zeroes memory at allocation.",
        why: "A process can't read data that another process or the kernel left in memory.",
        reference: "KSPP, kernel self-protection",
        conflict: Conflict::None,
        measures: &[Measure::Argument("init_on_alloc=1")],
        probe: None,
    },
    Control {
        name: "kernel.slabs-apart",
        title: "Different types of kernel objects share no memory, and pages are allocated in \
                random order.",
        why: "An overflow in one type does not reach the next.",
        reference: "KSPP, kernel self-protection",
        conflict: Conflict::None,
        measures: &[Measure::Argument("slab_nomerge"), Measure::Argument("page_alloc.shuffle=1")],
        probe: None,
    },
    Control {
        name: "kernel.stack-offset",
        title: "Each system call starts at a random stack offset.",
        why: "An exploit can't predict the addresses of kernel variables.",
        reference: "KSPP, kernel self-protection",
        conflict: Conflict::None,
        measures: &[Measure::Argument("randomize_kstack_offset=on")],
        probe: None,
    },
    Control {
        name: "kernel.no-vsyscall",
        title: "Processes have no code at a fixed address.",
        why: "Current programs don't use it; those from 2012 and earlier do.",
        reference: "KSPP, kernel self-protection",
        conflict: Conflict::None,
        measures: &[Measure::Argument("vsyscall=none")],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "grep vsyscall /proc/self/maps",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "kernel.lockdown",
        title: "Not even root can read or change the running kernel.",
        why: "It blocks /dev/mem, unsigned modules and kprobes, so that root of a guest does not \
              control its kernel.",
        reference: "kernel_lockdown(7)",
        conflict: Conflict::None,
        measures: &[Measure::Argument("lockdown=integrity")],
        probe: Some(Probe {
            user: ProbeUser::Root,
            // Only the lockdown refuses a raw read of /dev/mem, because root has all capabilities.
            script: "head -c 1 /dev/mem >/dev/null 2>&1 && echo readable || echo refused",
            expect: Expectation::Custom(|_, lines| match lines {
                ["refused"] => CheckResult::pass("/dev/mem is refused to root"),
                _ => CheckResult::fail("/dev/mem can be read"),
            }),
        }),
    },
];

/// `install … /bin/false` also applies to modules requested by their own names.
const UNLOADABLE: &str = "\
# File systems, protocols and buses that no job needs.
install cramfs /bin/false
install freevxfs /bin/false
install hfs /bin/false
install hfsplus /bin/false
install jffs2 /bin/false
install squashfs /bin/false
install udf /bin/false
install usb-storage /bin/false
install firewire-core /bin/false
install firewire-ohci /bin/false
install dccp /bin/false
install sctp /bin/false
install rds /bin/false
install tipc /bin/false
install n-hdlc /bin/false
install ax25 /bin/false
install x25 /bin/false
install can /bin/false
install atm /bin/false
blacklist cramfs
blacklist freevxfs
blacklist hfs
blacklist hfsplus
blacklist jffs2
blacklist squashfs
blacklist udf
blacklist usb-storage
blacklist firewire-core
blacklist firewire-ohci
blacklist dccp
blacklist sctp
blacklist rds
blacklist tipc
";
