//! Who there is in a guest, and what they may become.

use crate::image::hardening::{By, Control, Expect, Measure, Operation, Probe, Unless};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "accounts.root-locked",
        title: "Nobody can log in as root.",
        why: "A job is never root by a password; `mayfly run --user root` needs none.",
        reference: "CIS Debian 12, 5.4.2.4",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::LockPasswords)],
        probe: Some(Probe {
            by: By::Root,
            script: "sed -n 's/^root:\\([^:]*\\):.*/\\1/p' /etc/shadow",
            expect: Expect::Lines(&["*"]),
        }),
    },
    Control {
        name: "accounts.no-passwords",
        title: "No account has a password.",
        why: "There is nothing to guess, to leak or to reuse.",
        reference: "CIS Debian 12, 7.2.2",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::LockPasswords)],
        probe: Some(Probe {
            by: By::Root,
            // An account is locked by a `*` or a `!` alone; in /etc/passwd there is an `x`.
            script: "awk -F: '$2 !~ /^(\\*|!\\*?|!!)$/ {print \"shadow: \" $1}' /etc/shadow
                awk -F: '$2 != \"x\" {print \"passwd: \" $1}' /etc/passwd",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "accounts.one-root",
        title: "Root is the only account with the number 0.",
        why: "Another one would be root under a name that nobody looks for.",
        reference: "CIS Debian 12, 5.4.2.1",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "awk -F: '$3 == 0 {print $1}' /etc/passwd",
            expect: Expect::Lines(&["root"]),
        }),
    },
    Control {
        name: "accounts.no-system-shells",
        title: "The accounts of the system's programs have no shell.",
        why: "They own files or services; nobody works as one of them.",
        reference: "CIS Debian 12, 5.4.2.7",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::NoSystemShells)],
        probe: Some(Probe {
            by: By::Root,
            script: "awk -F: '($3 < 1000 || $3 > 60000) && $1 != \"root\" \
                && $7 !~ /\\/(nologin|false)$/ {print $1 \" \" $7}' /etc/passwd",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "accounts.no-privileges",
        title: "The job's user is in no group that is as good as root, and has no way to become \
                root.",
        why: "`sudo = true` in the recipe is for jobs that need it. The group `docker`, where an \
              image has the engine, is as good as root of the microVM, and is not looked at here.",
        reference: "CIS Debian 12, 5.2",
        unless: Unless::Sudo,
        measures: &[],
        probe: Some(Probe {
            by: By::Job,
            script: "id -Gn | tr ' ' '\\n' | \
                grep -xE 'root|sudo|wheel|adm|disk|shadow|kmem|tty|staff|kvm|lxd|staff|systemd-journal'
                sudo -n true 2>/dev/null && echo 'sudo works'
                [ \"$(id -u)\" != 0 ] || echo 'it is root'",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "accounts.private-homes",
        title: "No user can look into another's home directory.",
        why: "What a job leaves in its home is the job's.",
        reference: "CIS Debian 12, 7.2.9; Lynis HOME-9304",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::Mode("0700", &["/root"])), Measure::Operation(Operation::PrivateHomes)],
        probe: Some(Probe {
            by: By::Root,
            script: "awk -F: '$3 == 0 || $3 >= 1000 && $3 <= 60000 {print $6}' /etc/passwd | \
                while read -r home; do [ ! -d \"$home\" ] || find \"$home\" -maxdepth 0 -perm /0027; done",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "accounts.login-defaults",
        title: "Accounts that a job makes get the usual strict defaults.",
        why: "It costs nothing and spares a reader of another auditor's report the question: \
              nobody logs in to a microVM. Sessions of a login, which a job is not, get the umask \
              027.",
        reference: "CIS Debian 12, 5.4.1; Lynis AUTH-9230, AUTH-9286, AUTH-9328",
        unless: Unless::Never,
        measures: &[Measure::Operation(Operation::Keys(
            "/etc/login.defs",
            &[
                ("PASS_MAX_DAYS", "365"),
                ("PASS_MIN_DAYS", "1"),
                ("PASS_WARN_AGE", "7"),
                ("UMASK", "027"),
                ("ENCRYPT_METHOD", "SHA512"),
                ("SHA_CRYPT_MIN_ROUNDS", "65536"),
                ("SHA_CRYPT_MAX_ROUNDS", "65536"),
            ],
        ))],
        probe: Some(Probe {
            by: By::Root,
            script: "awk '/^(PASS_M|UMASK|SHA_CRYPT_M)/ {print $1, $2}' /etc/login.defs | sort",
            expect: Expect::Lines(&[
                "PASS_MAX_DAYS 365",
                "PASS_MIN_DAYS 1",
                "SHA_CRYPT_MAX_ROUNDS 65536",
                "SHA_CRYPT_MIN_ROUNDS 65536",
                "UMASK 027",
            ]),
        }),
    },
    Control {
        name: "accounts.sessions",
        title: "A person's shell ends after an hour in which nothing is typed, and what root makes \
                by hand others can't read.",
        why: "A forgotten session holds a microVM. It is about interactive shells alone: a job's \
              shell, a login shell included, is none, and whoever tries a step by hand as the job's \
              user makes files like the job does.",
        reference: "CIS Debian 12, 5.4.3.2 and 5.4.3.3; Lynis SHLL-6220, SHLL-6230, AUTH-9328, \
                    KRNL-5820",
        unless: Unless::Never,
        measures: &[
            Measure::Operation(Operation::Append("/etc/profile", SESSIONS)),
            Measure::Operation(Operation::Append("/etc/bash.bashrc", SESSIONS)),
        ],
        probe: Some(Probe {
            by: By::Root,
            script: "bash -ic 'echo ${TMOUT-none} $(umask) $(ulimit -c)' 2>/dev/null
                bash -lic 'echo ${TMOUT-none} $(umask) $(ulimit -c)' 2>/dev/null
                umask 022; bash -lc 'echo ${TMOUT-none} $(umask)'",
            expect: Expect::Lines(&["3600 0027 0", "3600 0027 0", "none 0022"]),
        }),
    },
];

/// A variable that is not exported: scripts' `read` would heed it, too.
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
