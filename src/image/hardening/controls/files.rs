//! Controls of the files in the root file system.

use crate::hardening::{Conflict, Control, Expectation, Measure, Operation, Probe, ProbeUser};

/// The set-user-id programs where a recipe says `sudo = true`.
const SUDO: &[&str] = &["/usr/bin/sudo"];

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "files.no-set-id",
        title: "No program has a set-user-id or set-group-id bit, except sudo where the recipe \
                enables it.",
        why: "Each such program is a way to root for anyone who finds a bug in it. A job that is \
              root needs none of them; `su`, `mount`, `passwd` and the like work for root only.",
        reference: "CIS Debian 12, 7.1.13",
        conflict: Conflict::None,
        measures: &[Measure::Operation(Operation::ClearSetIds(SUDO))],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find / -xdev -type f -perm /6000",
            expect: Expectation::Only(SUDO),
        }),
    },
    Control {
        name: "files.no-world-writable",
        title: "No file is world-writable, and every world-writable directory is sticky.",
        why: "World-writable files can't be trusted.",
        reference: "CIS Debian 12, 7.1.11",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find / -xdev -type f -perm -0002; find / -xdev -type d -perm -0002 ! -perm -1000",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.owned",
        title: "Every file belongs to an existing user and group.",
        why: "Otherwise the next user with the same id would own it.",
        reference: "CIS Debian 12, 7.1.12",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find / -xdev -nouser; find / -xdev -nogroup",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.no-devices",
        title: "No device node exists outside of /dev.",
        why: "The kernel creates all device nodes that a guest needs.",
        reference: "",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find / -xdev -type b -o -xdev -type c",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.account-files",
        title: "Only root can change the account files, and only root can read those with secrets.",
        why: "They define all users and their rights.",
        reference: "CIS Debian 12, 7.1.1 to 7.1.8",
        conflict: Conflict::None,
        measures: &[
            Measure::Operation(Operation::Mode("0644", &["/etc/passwd", "/etc/group"])),
            Measure::Operation(Operation::Mode("0640", &["/etc/shadow", "/etc/gshadow"])),
        ],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "stat -c '%n %a %U %G' /etc/passwd /etc/group /etc/shadow /etc/gshadow",
            expect: Expectation::Lines(&[
                "/etc/passwd 644 root root",
                "/etc/group 644 root root",
                "/etc/shadow 640 root shadow",
                "/etc/gshadow 640 root shadow",
            ]),
        }),
    },
    Control {
        name: "files.private-schedules",
        title: "Only root can access the directories of scheduled jobs.",
        why: "Nothing runs them in a guest, but other auditors check them.",
        reference: "CIS Debian 12, 2.4.1; Lynis FILE-7524",
        conflict: Conflict::None,
        measures: &[Measure::Operation(Operation::Mode("0700", SCHEDULES))],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly \
                /etc/cron.monthly -maxdepth 0 -perm /0077 2>/dev/null",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.no-history",
        title: "Shells keep no history.",
        why: "A command line may contain a secret, and the home directory may be copied out.",
        reference: "Lynis HOME-9310",
        conflict: Conflict::None,
        measures: &[
            Measure::File(
                "/etc/profile.d/mayfly-history.sh",
                "# A job leaves no history.\nunset HISTFILE\n",
            ),
            Measure::Operation(Operation::Lines("/etc/bash.bashrc", &["unset HISTFILE"])),
            Measure::Operation(Operation::RemoveHistories),
        ],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find / -xdev -name '.*_history' -type f
                [ ! -e /bin/bash ] || bash -ic 'echo ${HISTFILE-}' 2>/dev/null",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.no-identity",
        title: "The image has no identity: no machine id, random seed or host key.",
        why: "Data shared by all microVMs is not secret, and the identity of a machine must be \
              unique. Each microVM gets its randomness from the host and derives a machine id from \
              it.",
        reference: "",
        conflict: Conflict::None,
        measures: &[
            Measure::Operation(Operation::Remove(&[
                "/var/lib/systemd/random-seed",
                "/var/lib/urandom/random-seed",
                "/var/lib/dbus/machine-id",
            ])),
            Measure::Operation(Operation::RemoveHostKeys),
        ],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "find /var/lib/dbus/machine-id -type f -size +0 2>/dev/null
                ls /var/lib/systemd/random-seed /var/lib/urandom/random-seed \
                /etc/ssh/ssh_host_*_key 2>/dev/null",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "files.no-agent",
        title: "The agent's binary is in no file system.",
        why: "A job can neither change nor analyze it.",
        reference: "",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "ls /init /settings /modules 2>/dev/null; find / -xdev -name 'mayfly-guest*'",
            expect: Expectation::Nothing,
        }),
    },
];

const SCHEDULES: &[&str] = &[
    "/etc/cron.d",
    "/etc/cron.hourly",
    "/etc/cron.daily",
    "/etc/cron.weekly",
    "/etc/cron.monthly",
];
