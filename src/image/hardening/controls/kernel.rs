//! The kernel: what it tells, what it lets be loaded, how it guards itself.

use crate::image::hardening::expect::Verdict;
use crate::image::hardening::{By, Control, Expect, Measure, Probe, Unless};

/// A control that is all kernel parameters.
const fn parameters(
    name: &'static str,
    title: &'static str,
    why: &'static str,
    reference: &'static str,
    measures: &'static [Measure],
) -> Control {
    Control { name, title, why, reference, unless: Unless::Never, measures, probe: None }
}

pub(super) const CONTROLS: &[Control] = &[
    parameters(
        "kernel.pointers",
        "The kernel tells nobody where it lies in memory.",
        "An exploit of the kernel starts with an address.",
        "Lynis KRNL-6000",
        &[Measure::Parameter("kernel/kptr_restrict", "2")],
    ),
    parameters(
        "kernel.log",
        "Only root reads the kernel's log.",
        "It has addresses and names of devices.",
        "CIS Debian 12, 1.5; Lynis KRNL-6000",
        &[Measure::Parameter("kernel/dmesg_restrict", "1")],
    ),
    parameters(
        "kernel.tracing",
        "A process is traced only by its parent, and performance events are root's.",
        "A debugger that a job starts works; one that takes up a process that it did not start \
         does not, so that a step of a job can't look into the runner's memory for its secrets.",
        "CIS Debian 12, 1.5.2; Lynis KRNL-6000",
        &[
            Measure::Parameter("kernel/yama/ptrace_scope", "1"),
            Measure::Parameter("kernel/perf_event_paranoid", "3"),
        ],
    ),
    parameters(
        "kernel.bpf",
        "Only root loads BPF programs, and their code is hardened.",
        "Mistakes of the verifier are the most usual way into the kernel.",
        "Lynis KRNL-6000",
        &[
            Measure::Parameter("kernel/unprivileged_bpf_disabled", "1"),
            Measure::Parameter("net/core/bpf_jit_harden", "2"),
        ],
    ),
    parameters(
        "kernel.kexec",
        "No other kernel can be started.",
        "Not even by root: the kernel that was measured is the one that runs.",
        "kernel.org, sysctl/kernel",
        &[Measure::Parameter("kernel/kexec_load_disabled", "1")],
    ),
    parameters(
        "kernel.sysrq",
        "No key combination commands the kernel.",
        "There is no keyboard, but there is /proc/sysrq-trigger.",
        "Lynis KRNL-6000",
        &[Measure::Parameter("kernel/sysrq", "0"), Measure::Parameter("kernel/ctrl-alt-del", "0")],
    ),
    parameters(
        "kernel.links",
        "Links, pipes and files in directories that everybody may write to are followed and \
         opened by their owners only.",
        "It ends the races in which a privileged program is led to another's file.",
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
        "Programs lie at random addresses, as many as the processor has, and none at the lowest.",
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
        "Only root makes user namespaces.",
        "They open the kernel's interfaces for root to everybody. Off for jobs that run Docker \
         without root, Bazel's sandbox or a browser's.",
        "Debian, kernel.unprivileged_userns_clone",
        &[Measure::Parameter("kernel/unprivileged_userns_clone", "0")],
    ),
    parameters(
        "kernel.io-uring",
        "Only root uses io_uring.",
        "A large and young interface, which programs of jobs do without. Off for jobs that test \
         it.",
        "kernel.org, sysctl/kernel",
        &[Measure::Parameter("kernel/io_uring_disabled", "1")],
    ),
    parameters(
        "kernel.interfaces",
        "Old and rare interfaces are root's: line disciplines, injected keystrokes, user faults.",
        "Each has been a part of exploits.",
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
        why: "The kernel loads them for whoever asks. The image has no such files in the first \
              place; this holds for those that a job installs, too.",
        reference: "CIS Debian 12, 1.1.1 and 3.2; Lynis FILE-6430, NETW-3200, USB-1000, STRG-1846",
        unless: Unless::Never,
        measures: &[Measure::File("/etc/modprobe.d/mayfly.conf", UNLOADABLE)],
        probe: Some(Probe {
            by: By::Root,
            script: "grep -wE 'cramfs|freevxfs|hfs|hfsplus|jffs2|squashfs|udf|usb_storage|dccp|sctp|rds|\
                tipc|firewire_core' /proc/modules /proc/filesystems",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "kernel.modules-locked",
        title: "Once the image's own modules are loaded, none can be, not even by root.",
        why: "Code in the kernel is what a job that is root must not get.",
        reference: "Lynis KRNL-6000, kernel.modules_disabled",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.lock_modules = true)],
        probe: Some(Probe {
            by: By::Root,
            script: "cat /proc/sys/kernel/modules_disabled",
            expect: Expect::Lines(&["1"]),
        }),
    },
    Control {
        name: "kernel.memory-zeroed",
        title: "The kernel zeroes memory when it hands it out.",
        why: "What one process, or the kernel, left in memory the next does not find.",
        reference: "KSPP, kernel self-protection",
        unless: Unless::Never,
        measures: &[Measure::Argument("init_on_alloc=1")],
        probe: None,
    },
    Control {
        name: "kernel.slabs-apart",
        title: "Kinds of the kernel's objects share no memory, and pages are handed out in a \
                random order.",
        why: "An overflow in one kind does not reach the next.",
        reference: "KSPP, kernel self-protection",
        unless: Unless::Never,
        measures: &[Measure::Argument("slab_nomerge"), Measure::Argument("page_alloc.shuffle=1")],
        probe: None,
    },
    Control {
        name: "kernel.stack-offset",
        title: "Each system call starts at a random place of its stack.",
        why: "An exploit can't count on where the kernel's variables lie.",
        reference: "KSPP, kernel self-protection",
        unless: Unless::Never,
        measures: &[Measure::Argument("randomize_kstack_offset=on")],
        probe: None,
    },
    Control {
        name: "kernel.no-vsyscall",
        title: "There is no code at a fixed address in every process.",
        why: "Programs of today don't use it; those of 2012 and before do.",
        reference: "KSPP, kernel self-protection",
        unless: Unless::Never,
        measures: &[Measure::Argument("vsyscall=none")],
        probe: Some(Probe {
            by: By::Job,
            script: "grep vsyscall /proc/self/maps",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "kernel.lockdown",
        title: "Not even root reads or changes the running kernel.",
        why: "Neither /dev/mem nor unsigned modules nor kprobes: with it, root of a guest is not \
              its kernel.",
        reference: "kernel_lockdown(7)",
        unless: Unless::Never,
        measures: &[Measure::Argument("lockdown=integrity")],
        probe: Some(Probe {
            by: By::Root,
            // A raw read of /dev/mem is refused by the lockdown alone: root has all capabilities.
            script: "head -c 1 /dev/mem >/dev/null 2>&1 && echo readable || echo refused",
            expect: Expect::Judged(|_, lines| match lines {
                ["refused"] => Verdict::pass("/dev/mem is refused to root"),
                _ => Verdict::fail("/dev/mem can be read"),
            }),
        }),
    },
];

/// `install … /bin/false` also holds where the module is asked for by its own name.
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
