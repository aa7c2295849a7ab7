//! What a job's processes may do, and what is seen of them.

use crate::image::hardening::{By, Control, Expect, Measure, Probe, Unless};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "job.no-new-privileges",
        title: "No program gives a job more rights than it was started with.",
        why: "Neither a set-user-id bit nor a file capability counts, in whatever file system it \
              is, a container's that the job mounts itself included.",
        reference: "prctl(2), PR_SET_NO_NEW_PRIVS",
        unless: Unless::Sudo,
        measures: &[Measure::Setting(|settings| settings.no_new_privileges = true)],
        probe: Some(Probe {
            by: By::Root,
            script: "grep NoNewPrivs /proc/self/status | tr -d '\\t'",
            expect: Expect::Lines(&["NoNewPrivs:1"]),
        }),
    },
    Control {
        name: "job.umask",
        title: "What a job makes can be changed by its user only.",
        why: "022 and not 027: what a job builds goes into containers and archives where others \
              read it, and there is nobody else in the microVM to read it here.",
        reference: "CIS Debian 12, 5.4.3.3",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.umask = Some(0o022))],
        probe: Some(Probe { by: By::Root, script: "umask", expect: Expect::Lines(&["0022"]) }),
    },
    Control {
        name: "job.no-core-dumps",
        title: "A process that crashes leaves no memory behind.",
        why: "A core dump holds whatever secrets the process had, and artifacts are often whole \
              directories.",
        reference: "CIS Debian 12, 1.5.3; Lynis KRNL-5820",
        unless: Unless::Never,
        measures: &[
            Measure::Setting(|settings| settings.no_core_dumps = true),
            Measure::Parameter("fs/suid_dumpable", "0"),
            Measure::Parameter("kernel/core_uses_pid", "1"),
            Measure::Parameter("kernel/core_pattern", "|/bin/false"),
            Measure::File("/etc/security/limits.d/mayfly.conf", "* hard core 0\n* soft core 0\n"),
        ],
        probe: Some(Probe {
            by: By::Job,
            script: "ulimit -Hc; ulimit -Sc",
            expect: Expect::Lines(&["0", "0"]),
        }),
    },
    Control {
        name: "job.agent-out-of-reach",
        title: "A job can read nothing of the agent: not its memory, its variables, its files or \
                its binary.",
        why: "The agent has held the job's secrets, and it is root.",
        reference: "",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Job,
            script: "for name in environ mem maps exe fd/0 root/etc/shadow; do
                    head -c 1 /proc/1/$name >/dev/null 2>&1 && echo \"$name can be read\"
                done
                ls /proc/1/fd /proc/1/task/1/fd 2>/dev/null",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "job.programs-logged",
        title: "Every program that a job executes is told to the host, which writes it to the \
                black box.",
        why: "Time, process, parent, user and the program's path; never arguments, which may hold \
              secrets. The log is bounded, and what did not fit is counted. A job that is root \
              can blind it from then on, but not take back what was sent.",
        reference: "CIS Debian 12, 6.3.3; Lynis ACCT-9628",
        unless: Unless::Never,
        measures: &[Measure::Setting(|settings| settings.log_programs = true)],
        probe: Some(Probe {
            by: By::Root,
            // The agent's socket of the proc connector: protocol 11, of the process 1.
            script: "awk '$2 == 11 && $3 == 1 {print \"the agent listens\"}' /proc/net/netlink",
            expect: Expect::Lines(&["the agent listens"]),
        }),
    },
];
