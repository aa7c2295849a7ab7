//! What runs in a guest beside the job.

use mayfly_protocol::settings::Settings;

use crate::image::hardening::expect::Verdict;
use crate::image::hardening::{By, Control, Expect, Probe, Unless};

pub(super) const CONTROLS: &[Control] = &[
    Control {
        name: "system.nothing-listens",
        title: "Nothing listens on the network, and on a socket only the image's own services.",
        why: "A guest is a client. What a job starts to listen on is the job's.",
        reference: "CIS Debian 12, 2.1",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            // State 0A is LISTEN; a UDP socket that is bound is in 07. Of unix sockets, those that
            // accept connections have the flag 00010000 and a path.
            script: "awk '$4 == \"0A\" {print \"tcp\", $2}' /proc/net/tcp /proc/net/tcp6
                awk '$4 == \"07\" {print \"udp\", $2}' /proc/net/udp /proc/net/udp6
                awk '$4 == \"00010000\" {print \"unix\", $8}' /proc/net/unix",
            expect: Expect::Judged(only_services_listen),
        }),
    },
    Control {
        name: "system.no-login-server",
        title: "There is no SSH server and no other program by which one logs in.",
        why: "The only way in is the channel to the host.",
        reference: "CIS Debian 12, 5.1",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            script: "for name in sshd dropbear telnetd in.telnetd rlogind in.rlogind rshd in.rshd; do \
                 command -v $name; done",
            expect: Expect::Nothing,
        }),
    },
    Control {
        name: "system.no-daemons",
        title: "No process runs beside the agent, the kernel's own and the job.",
        why: "What does not run can't be attacked, and takes no memory.",
        reference: "CIS Debian 12, 2.1",
        unless: Unless::Never,
        measures: &[],
        probe: Some(Probe {
            by: By::Root,
            // Processes of other sessions than this one's that have a program.
            script: "own=$(cut -d ' ' -f 6 /proc/self/stat)
                for directory in /proc/[0-9]*; do
                    program=$(readlink $directory/exe) || continue
                    session=$(sed 's/.*) //' $directory/stat | cut -d ' ' -f 4)
                    [ $directory = /proc/1 ] || [ \"$session\" = \"$own\" ] || echo \"$program\"
                done",
            expect: Expect::Nothing,
        }),
    },
];

fn only_services_listen(settings: &Settings, lines: &[&str]) -> Verdict {
    let services = &settings.services;
    let is_service = |line: &str| {
        line.strip_prefix("unix ")
            .is_some_and(|path| services.iter().any(|service| service.socket == path))
    };
    let others: Vec<&str> = lines.iter().copied().filter(|line| !is_service(line)).collect();
    match (others.is_empty(), lines.is_empty()) {
        (true, true) => Verdict::pass("none"),
        (true, false) => Verdict::pass(lines.join(", ")),
        (false, _) => Verdict::fail(others.join(", ")),
    }
}
