//! Controls of the guest's network.

use crate::hardening::{Conflict, Control, Measure};

/// Returns a control that consists of kernel parameters only.
const fn parameters(
    name: &'static str,
    title: &'static str,
    why: &'static str,
    reference: &'static str,
    measures: &'static [Measure],
) -> Control {
    Control { name, title, why, reference, conflict: Conflict::None, measures, probe: None }
}

pub(super) const CONTROLS: &[Control] = &[
    parameters(
        "network.no-redirects",
        "The guest neither accepts nor sends ICMP redirects.",
        "Its only gateway is that of the microVM.",
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
        "Source-routed packets and packets with impossible source addresses are dropped and \
         logged.",
        "No job needs them.",
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
        "The guest ignores router advertisements.",
        "The host configures its network once.",
        "CIS Debian 12, 3.3.11",
        &[
            Measure::Parameter("net/ipv6/conf/all/accept_ra", "0"),
            Measure::Parameter("net/ipv6/conf/default/accept_ra", "0"),
        ],
    ),
    parameters(
        "network.floods",
        "Connection floods and bogus ICMP responses are handled cheaply.",
        "The kernel's protections are enabled regardless of its defaults.",
        "CIS Debian 12, 3.3.3, 3.3.4 and 3.3.10; Lynis KRNL-6000",
        &[
            Measure::Parameter("net/ipv4/tcp_syncookies", "1"),
            Measure::Parameter("net/ipv4/icmp_echo_ignore_broadcasts", "1"),
            Measure::Parameter("net/ipv4/icmp_ignore_bogus_error_responses", "1"),
        ],
    ),
    parameters(
        "network.ping",
        "Every user can ping without a privileged program.",
        "`ping` would need a set-user-id bit or a capability, neither of which has an effect here.",
        "icmp(7), ping_group_range",
        &[Measure::Parameter("net/ipv4/ping_group_range", "0 2147483647")],
    ),
];
