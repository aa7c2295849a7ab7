//! The guest's side of its network.

use crate::image::hardening::{Control, Measure, Unless};

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
        "network.no-redirects",
        "Nobody tells the guest another way, nor does it tell others.",
        "Its one gateway is the microVM's own.",
        "CIS Debian 12, 3.3.2, 3.3.5 and 3.3.6; Lynis KRNL-6000",
        &[
            Measure::Parameter("net/ipv4/conf/all/accept_redirects", "0"),
            Measure::Parameter("net/ipv4/conf/default/accept_redirects", "0"),
            Measure::Parameter("net/ipv4/conf/all/secure_redirects", "0"),
            Measure::Parameter("net/ipv4/conf/default/secure_redirects", "0"),
            Measure::Parameter("net/ipv4/conf/all/send_redirects", "0"),
            Measure::Parameter("net/ipv4/conf/default/send_redirects", "0"),
            Measure::Parameter("net/ipv6/conf/all/accept_redirects", "0"),
            Measure::Parameter("net/ipv6/conf/default/accept_redirects", "0"),
        ],
    ),
    parameters(
        "network.no-source-routes",
        "Packets that name their own way, or come from where they can't, are dropped and logged.",
        "Nothing that a job needs sends them.",
        "CIS Debian 12, 3.3.7 to 3.3.9; Lynis KRNL-6000",
        &[
            Measure::Parameter("net/ipv4/conf/all/accept_source_route", "0"),
            Measure::Parameter("net/ipv4/conf/default/accept_source_route", "0"),
            Measure::Parameter("net/ipv6/conf/all/accept_source_route", "0"),
            Measure::Parameter("net/ipv6/conf/default/accept_source_route", "0"),
            Measure::Parameter("net/ipv4/conf/all/rp_filter", "1"),
            Measure::Parameter("net/ipv4/conf/default/rp_filter", "1"),
            Measure::Parameter("net/ipv4/conf/all/log_martians", "1"),
            Measure::Parameter("net/ipv4/conf/default/log_martians", "1"),
        ],
    ),
    parameters(
        "network.no-router-advertisements",
        "The guest takes no addresses and no ways from routers that announce themselves.",
        "Its network is set up by its host, once.",
        "CIS Debian 12, 3.3.11",
        &[
            Measure::Parameter("net/ipv6/conf/all/accept_ra", "0"),
            Measure::Parameter("net/ipv6/conf/default/accept_ra", "0"),
        ],
    ),
    parameters(
        "network.floods",
        "Floods of connections and false answers are dealt with cheaply.",
        "What the kernel has for it is switched on, whatever its defaults are.",
        "CIS Debian 12, 3.3.3, 3.3.4 and 3.3.10; Lynis KRNL-6000",
        &[
            Measure::Parameter("net/ipv4/tcp_syncookies", "1"),
            Measure::Parameter("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
            Measure::Parameter("net/ipv4/icmp_ignore_bogus_error_responses", "1"),
        ],
    ),
    parameters(
        "network.ping",
        "Everybody may ping without a privileged program.",
        "`ping` would need a set-user-id bit or a capability, which do not count here.",
        "icmp(7), ping_group_range",
        &[Measure::Parameter("net/ipv4/ping_group_range", "0 2147483647")],
    ),
];
