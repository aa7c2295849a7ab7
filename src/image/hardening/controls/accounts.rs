//! Controls of the accounts in a guest.

use crate::hardening::{Conflict, Control, Expectation, Measure, Operation, Probe, ProbeUser};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "accounts.root-locked",
        title: "Root has no password and can't log in.",
        why: "Jobs never use a password of root; `mayfly run --user root` needs none.",
        reference: "CIS Debian 12, 5.4.2.4",
        conflict: Conflict::None,
        measures: &[Measure::Operation(Operation::LockPasswords)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "sed -n 's/^root:\\([^:]*\\):.*/\\1/p' /etc/shadow",
            expect: Expectation::Lines(&["*"]),
        }),
    },
    Control {
        name: "accounts.no-passwords",
        title: "No account has a password.",
        why: "A password that does not exist can't be guessed, leaked or reused.",
        reference: "CIS Debian 12, 7.2.2",
        conflict: Conflict::None,
        measures: &[Measure::Operation(Operation::LockPasswords)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            // An account is locked by `*` or `!`; /etc/passwd has `x` as the password.
            script: "awk -F: '$2 !~ /^(\\*|!\\*?|!!)$/ {print \"shadow: \" $1}' /etc/shadow
                awk -F: '$2 != \"x\" {print \"passwd: \" $1}' /etc/passwd",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "accounts.one-root",
        title: "Root is the only account with user id 0.",
        why: "A second one would be root under an inconspicuous name.",
        reference: "CIS Debian 12, 5.4.2.1",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "awk -F: '$3 == 0 {print $1}' /etc/passwd",
            expect: Expectation::Lines(&["root"]),
        }),
    },
    Control {
        name: "accounts.no-system-shells",
        title: "System accounts have no login shell.",
        why: "They own files or run services, and are not for logging in.",
        reference: "CIS Debian 12, 5.4.2.7",
        conflict: Conflict::None,
        measures: &[Measure::Operation(Operation::NoSystemShells)],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "awk -F: '($3 < 1000 || $3 > 60000) && $1 != \"root\" \
                && $7 !~ /\\/(nologin|false)$/ {print $1 \" \" $7}' /etc/passwd",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "accounts.no-privileges",
        title: "The job's user is in no group equivalent to root and can't become root.",
        why: "`sudo = true` in the recipe is for jobs that need root. The group `docker`, in \
              images with the engine, is equivalent to root of the microVM and is not checked \
              here.",
        reference: "CIS Debian 12, 5.2",
        conflict: Conflict::Sudo,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Job,
            script: "id -Gn | tr ' ' '\\n' | \
                grep -xE 'root|sudo|wheel|adm|disk|shadow|kmem|tty|staff|kvm|lxd|staff|systemd-journal'
                sudo -n true 2>/dev/null && echo 'sudo works'
                [ \"$(id -u)\" != 0 ] || echo 'it is root'",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "accounts.private-homes",
        title: "Users can't read each other's home directories.",
        why: "Files that a job leaves in its home are private.",
        reference: "CIS Debian 12, 7.2.9; Lynis HOME-9304",
        conflict: Conflict::None,
        measures: &[
            Measure::Operation(Operation::Mode("0700", &["/root"])),
            Measure::Operation(Operation::PrivateHomes),
        ],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "awk -F: '$3 == 0 || $3 >= 1000 && $3 <= 60000 {print $6}' /etc/passwd | \
                while read -r home; do [ ! -d \"$home\" ] || find \"$home\" -maxdepth 0 -perm /0027; done",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "accounts.sessions",
        title: "Interactive shells exit after an hour without input, and those of root have the \
                umask 027.",
        why: "A forgotten session keeps a microVM running. Only interactive shells are affected. A \
              job's shell is not interactive, even if it is a login shell. A step tried by hand as \
              the job's user creates files with the job's umask.",
        reference: "CIS Debian 12, 5.4.3.2 and 5.4.3.3; Lynis SHLL-6220, SHLL-6230, AUTH-9328, \
                    KRNL-5820",
        conflict: Conflict::None,
        measures: &[
            Measure::Operation(Operation::Append("/etc/profile", SESSIONS)),
            Measure::Operation(Operation::Append("/etc/bash.bashrc", SESSIONS)),
        ],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "bash -ic 'echo ${TMOUT-none} $(umask) $(ulimit -c)' 2>/dev/null
                bash -lic 'echo ${TMOUT-none} $(umask) $(ulimit -c)' 2>/dev/null
                umask 022; bash -lc 'echo ${TMOUT-none} $(umask)'",
            expect: Expectation::Lines(&["3600 0027 0", "3600 0027 0", "none 0022"]),
        }),
    },
];

/// Not exported, because scripts' `read` would respect the variable, too.
const SESSIONS: &str = "\
# Sessions of people, which jobs are not.
case $- in *i*)
    if [ \"$(id -u)\" = 0 ]; then
        umask 027
    fi
    ulimit -c 0
    TMOUT=3600
    ;;
esac
";
