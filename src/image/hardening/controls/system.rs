//! Controls of the processes in a guest other than the job.

use mayfly_protocol::settings::GuestSettings;

use crate::hardening::expect::CheckResult;
use crate::hardening::{Conflict, Control, Expectation, Probe, ProbeUser};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "system.nothing-listens",
        title: "Nothing listens on the network, and only the image's own services listen on \
                sockets.",
        why: "A guest is a client. Sockets that a job opens belong to the job.",
        reference: "CIS Debian 12, 2.1",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            // State 0A is LISTEN; a bound UDP socket is in state 07. Unix sockets that accept
            // connections have the flag 00010000 and a path.
            script: "awk '$4 == \"0A\" {print \"tcp\", $2}' /proc/net/tcp /proc/net/tcp6
                awk '$4 == \"07\" {print \"udp\", $2}' /proc/net/udp /proc/net/udp6
                awk '$4 == \"00010000\" {print \"unix\", $8}' /proc/net/unix",
            expect: Expectation::Custom(only_services_listen),
        }),
    },
    Control {
        name: "system.no-login-server",
        title: "The image has no SSH server or other login server.",
        why: "The channel to the host is the only way in.",
        reference: "CIS Debian 12, 5.1",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            script: "for name in sshd dropbear telnetd in.telnetd rlogind in.rlogind rshd in.rshd; do \
                 command -v $name; done",
            expect: Expectation::Nothing,
        }),
    },
    Control {
        name: "system.no-daemons",
        title: "No processes run except the agent, kernel threads and the job.",
        why: "A process that does not run can't be attacked and uses no memory.",
        reference: "CIS Debian 12, 2.1",
        conflict: Conflict::None,
        measures: &[],
        probe: Some(Probe {
            user: ProbeUser::Root,
            // Processes of other sessions that have an executable.
            script: "own=$(cut -d ' ' -f 6 /proc/self/stat)
                for directory in /proc/[0-9]*; do
                    program=$(readlink $directory/exe) || continue
                    session=$(sed 's/.*) //' $directory/stat | cut -d ' ' -f 4)
                    [ $directory = /proc/1 ] || [ \"$session\" = \"$own\" ] || echo \"$program\"
                done",
            expect: Expectation::Nothing,
        }),
    },
];

fn only_services_listen(settings: &GuestSettings, lines: &[&str]) -> CheckResult {
    let services = &settings.services;
    let is_service = |line: &str| {
        line.strip_prefix("unix ")
            .is_some_and(|path| services.iter().any(|service| service.socket == path))
    };
    let others: Vec<&str> = lines.iter().copied().filter(|line| !is_service(line)).collect();
    match (others.is_empty(), lines.is_empty()) {
        (true, true) => CheckResult::pass("none"),
        (true, false) => CheckResult::pass(lines.join(", ")),
        (false, _) => CheckResult::fail(others.join(", ")),
    }
}
