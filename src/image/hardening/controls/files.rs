//! What lies in the root file system.

use crate::image::hardening::{By, Control, Expect, Measure, Operation, Probe, Unless};

/// The programs that are root when they run, where a recipe says `sudo = true`.
const SUDO: &[&str] = &["/usr/bin/sudo"];

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "files.no-set-id",
        title: "No program runs with the rights of its owner or group, but for sudo where the \
                recipe has it.",
        why: "Each is a way to root for whoever finds a mistake in it. A job that is root needs \
              none of them; `su`, `mount`, `passwd` and their like work for root only.",
        reference: "CIS Debian 12, 7.1.13",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::ClearSetIds(SUDO))],
        probe: Some(Probe {
            by: By::Root,
            script: "find / -xdev -type f -perm /6000",
            expect: Expect::Only(SUDO),
        }),
    },
    Control {
        name: "files.no-world-writable",
        title: "No file can be written by everybody, and a directory only where none removes \
                another's files.",
        why: "Whatever everybody may change, nobody can trust.",
        reference: "CIS Debian 12, 7.1.11",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "find / -xdev -type f -perm -0002; find / -xdev -type d -perm -0002 ! -perm -1000",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.owned",
        title: "Every file belongs to a user and a group that are there.",
        why: "The next user who gets the number would own it.",
        reference: "CIS Debian 12, 7.1.12",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "find / -xdev -nouser; find / -xdev -nogroup",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.no-devices",
        title: "No device node outside of /dev.",
        why: "The kernel makes those that there are.",
        reference: "",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "find / -xdev -type b -o -xdev -type c",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.account-files",
        title: "The files of accounts can be changed by root only, and those with secrets read by \
                root only.",
        why: "They say who is who.",
        reference: "CIS Debian 12, 7.1.1 to 7.1.8",
        unless: Unless::Never,
        measures: &[
            Measure::Operation(Operation::Mode("0644", &["/etc/passwd", "/etc/group"])),
            Measure::Operation(Operation::Mode("0640", &["/etc/shadow", "/etc/gshadow"])),
        ],
        probe: Some(Probe {
            by: By::Root,
            script: "stat -c '%n %a %U %G' /etc/passwd /etc/group /etc/shadow /etc/gshadow",
            expect: Expect::Lines(&[
                "/etc/passwd 644 root root",
                "/etc/group 644 root root",
                "/etc/shadow 640 root shadow",
                "/etc/gshadow 640 root shadow",
            ]),
        }),
    },
    Control {
        name: "files.private-schedules",
        title: "Directories of scheduled jobs are root's alone.",
        why: "Nothing runs them in a guest; another auditor asks all the same.",
        reference: "CIS Debian 12, 2.4.1; Lynis FILE-7524",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::Mode("0700", SCHEDULES))],
        probe: Some(Probe {
            by: By::Root,
            script: "find /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly \
                /etc/cron.monthly -maxdepth 0 -perm /0077 2>/dev/null",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.no-history",
        title: "No shell keeps a history.",
        why: "A command line may hold a secret, and the home may be copied out.",
        reference: "Lynis HOME-9310",
        unless: Unless::Never,
        measures: &[
            Measure::File(
                "/etc/profile.d/mayfly-history.sh",
                "# A job leaves no history.\nunset HISTFILE\n",
            ),
            Measure::Operation(Operation::Lines("/etc/bash.bashrc", &["unset HISTFILE"])),
            Measure::Operation(Operation::RemoveHistories),
        ],
        probe: Some(Probe {
            by: By::Root,
            script: "find / -xdev -name '.*_history' -type f
                [ ! -e /bin/bash ] || bash -ic 'echo ${HISTFILE-}' 2>/dev/null",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.no-identity",
        title: "The image has no identity: no machine id, no random seed, no host key.",
        why: "What every microVM shares is no secret, and what stands for one machine must not \
              stand for all. Each gets its randomness from the host, and makes a machine id of it.",
        reference: "",
        unless: Unless::Never,
        measures: &[
            Measure::Operation(Operation::Remove(&[
                "/var/lib/systemd/random-seed",
                "/var/lib/urandom/random-seed",
                "/var/lib/dbus/machine-id",
            ])),
            Measure::Operation(Operation::RemoveHostKeys),
        ],
        probe: Some(Probe {
            by: By::Root,
            script: "find /var/lib/dbus/machine-id -type f -size +0 2>/dev/null
                ls /var/lib/systemd/random-seed /var/lib/urandom/random-seed \
                /etc/ssh/ssh_host_*_key 2>/dev/null",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.no-agent",
        title: "The agent is in no file system.",
        why: "A job can neither change it nor take it apart.",
        reference: "",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "ls /init /settings /modules 2>/dev/null; find / -xdev -name 'mayfly-guest*'",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "files.banners",
        title: "A notice stands where a login would show one.",
        why: "It names no version, and another auditor asks for it.",
        reference: "CIS Debian 12, 1.6; Lynis BANN-7126, BANN-7130",
        unless: Unless::Never,
        measures: &[Measure::File("/etc/issue", BANNER), Measure::File("/etc/issue.net", BANNER)],
        probe: None,
    },
];

const SCHEDULES: &[&str] = &[
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
];

/// With the words that auditors look for.
const BANNER: &str = "\
This system is for authorized use only. It runs one job and is destroyed.
All activity is monitored and recorded; access without permission is prohibited
and may be prosecuted under the law.
";
