//! Controls of a job's processes: their rights and their visibility.

use crate::hardening::{Conflict, Control, Expectation, Measure, Probe, ProbeUser};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "job.no-new-privileges",
        title: "No program gives a job more privileges than it started with.",
        why: "Set-user-id bits and file capabilities have no effect in any file system, including \
              those of containers that the job mounts.",
        reference: "prctl(2), PR_SET_NO_NEW_PRIVS",
        conflict: Conflict::Sudo,
        measures: &[Measure::Setting(|settings| settings.no_new_privileges = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "grep NoNewPrivs /proc/self/status | tr -d '\\t'",
            expect: Expectation::Lines(&["NoNewPrivs:1"]),
        }),
    },
    Control {
        name: "job.umask",
        title: "Only a job's user can change the files that the job creates.",
        why: "The umask is 022 rather than 027: others read the containers and archives that a job \
              builds, and the microVM has no other users.",
        reference: "CIS Debian 12, 5.4.3.3",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.umask = Some(0o022))],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "umask",
            expect: Expectation::Lines(&["0022"]),
        }),
    },
    Control {
        name: "job.no-core-dumps",
        title: "Crashing processes leave no core dumps.",
        why: "A core dump contains the secrets of its process, and artifacts often include whole \
              directories.",
        reference: "CIS Debian 12, 1.5.3; Lynis KRNL-5820",
        conflict: Conflict::None,
        measures: &[
            Measure::Setting(|settings| settings.no_core_dumps = true),
            Measure::Parameter("fs/suid_dumpable", "0"),
            Measure::Parameter("kernel/core_uses_pid", "1"),
            Measure::Parameter("kernel/core_pattern", "|/bin/false"),
            Measure::File("/etc/security/limits.d/mayfly.conf", "* hard core 0\n* soft core 0\n"),
        ],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "ulimit -Hc; ulimit -Sc",
            expect: Expectation::Lines(&["0", "0"]),
        }),
    },
    Control {
        name: "job.agent-out-of-reach",
        title: "A job can't read the agent's memory, environment, files or binary.",
        why: "The agent is root and has held the job's secrets.",
        reference: "",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "for name in environ mem maps exe fd/0 root/etc/shadow; do
                    head -c 1 /proc/1/$name >/dev/null 2>&1 && echo \"$name can be read\"
                done
                ls /proc/1/fd /proc/1/task/1/fd 2>/dev/null",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "job.programs-logged",
        title: "Every program that a job executes is reported to the host, which logs it in the \
                black box.",
        why: "The log has the time, process, parent, user and path of each program, but no \
              arguments, which may contain secrets. Its size is limited, and dropped entries are \
              counted. A job that is root can stop the log, but can't change what was sent.",
        reference: "CIS Debian 12, 6.3.3; Lynis ACCT-9628",
        conflict: Conflict::None,
        measures: &[Measure::Setting(|settings| settings.log_programs = true)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            // The agent's proc connector socket: protocol 11, of process 1.
            script: "awk '$2 == 11 && $3 == 1 {print \"the agent listens\"}' /proc/net/netlink",
            expect: Expectation::Lines(&["the agent listens"]),
        }),
    },
];
