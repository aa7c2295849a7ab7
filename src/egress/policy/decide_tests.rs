//! Tests of `decide`, in a separate file for length.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::policy::{PolicyDraft, RuleDraft};

fn parse(text: &str) -> Policy {
    Policy::check(Path::new("f"), "ci", &toml::from_str(text).unwrap()).unwrap()
}

fn verdict(policy: &Policy, host: &str, port: u16) -> Verdict {
    policy.decide(&Host::parse(host).unwrap(), port).verdict
}

#[test]
fn enforce_allows_what_a_rule_names_and_nothing_else() {
    let policy = parse(
        r#"
        include = ["github"]
        allow = [{ host = "git.example", ports = [22] }, { host = "*.example.com" }]
        deny = [{ host = "bad.example.com" }, { host = "odd.example.com", ports = [80] }]
        "#,
    );
    for (host, port, expected) in [
        ("github.com", 443, Verdict::Allowed),
        ("x.actions.githubusercontent.com", 443, Verdict::Allowed),
        ("github.com", 22, Verdict::Refused(RefusalCause::Port)),
        ("git.example", 22, Verdict::Allowed),
        ("git.example", 443, Verdict::Refused(RefusalCause::Port)),
        ("a.example.com", 80, Verdict::Allowed),
        ("example.com", 443, Verdict::Refused(RefusalCause::NoRule)),
        (
            "bad.example.com",
            443,
            Verdict::Refused(RefusalCause::Denied("deny[0] bad.example.com".into())),
        ),
        ("odd.example.com", 443, Verdict::Allowed),
        (
            "odd.example.com",
            80,
            Verdict::Refused(RefusalCause::Denied("deny[1] odd.example.com ports 80".into())),
        ),
        ("x.blob.core.windows.net", 443, Verdict::Refused(RefusalCause::NoRule)),
        ("1.1.1.1", 443, Verdict::Refused(RefusalCause::Literal)),
        ("169.254.169.254", 80, Verdict::Refused(RefusalCause::Address(AddressClass::LinkLocal))),
    ] {
        assert_eq!(verdict(&policy, host, port), expected, "{host}:{port}");
    }
}

#[test]
fn audit_allows_what_enforce_refuses_except_forbidden_addresses() {
    let policy = parse("mode = \"audit\"\ndeny = [{ host = \"bad.example\" }]");
    for (host, expected) in [
        ("any.example", Verdict::WouldRefuse(RefusalCause::NoRule)),
        ("bad.example", Verdict::WouldRefuse(RefusalCause::Denied("deny[0] bad.example".into()))),
        ("1.1.1.1", Verdict::WouldRefuse(RefusalCause::Literal)),
        ("10.0.0.1", Verdict::Refused(RefusalCause::Address(AddressClass::Private))),
        ("169.254.169.254", Verdict::Refused(RefusalCause::Address(AddressClass::LinkLocal))),
    ] {
        assert_eq!(verdict(&policy, host, 443), expected, "{host}");
    }
}

#[test]
fn a_deny_rule_opens_no_special_use_name() {
    let policy = parse(
        r#"
        mode = "audit"
        deny = [{ host = "localhost" }, { host = "*.google.internal" }, { host = "bad.test" }]
        "#,
    );
    for name in ["localhost", "metadata.google.internal", "bad.test"] {
        let refused = Verdict::Refused(RefusalCause::SpecialName);
        assert_eq!(verdict(&policy, name, 80), refused, "{name}");
        assert_eq!(policy.decide_lookup(&HostName::parse(name).unwrap()), refused, "{name}");
    }
}

#[test]
fn open_allows_any_public_destination_except_denied_names() {
    let policy = parse("mode = \"open\"\ndeny = [{ host = \"bad.example\" }]");
    for (host, expected) in [
        ("any.example", Verdict::Allowed),
        ("1.1.1.1", Verdict::Allowed),
        ("[2606:4700::1111]", Verdict::Allowed),
        ("bad.example", Verdict::Refused(RefusalCause::Denied("deny[0] bad.example".into()))),
        ("192.168.0.1", Verdict::Refused(RefusalCause::Address(AddressClass::Private))),
        ("[fd00:ec2::254]", Verdict::Refused(RefusalCause::Address(AddressClass::Metadata))),
    ] {
        assert_eq!(verdict(&policy, host, 1234), expected, "{host}");
    }
    let private = parse("mode = \"open\"\nallow_private = true");
    assert_eq!(verdict(&private, "192.168.0.1", 1), Verdict::Allowed);
    assert!(!verdict(&private, "127.0.0.1", 1).passes());
}

#[test]
fn none_refuses_everything() {
    let policy = parse("mode = \"none\"");
    for host in ["github.com", "1.1.1.1", "127.0.0.1"] {
        assert_eq!(verdict(&policy, host, 443), Verdict::Refused(RefusalCause::NoEgress), "{host}");
    }
    let name = HostName::parse("github.com").unwrap();
    assert_eq!(policy.decide_lookup(&name), Verdict::Refused(RefusalCause::NoEgress));
}

#[test]
fn the_port_and_the_rule_determine_the_expected_protocol() {
    let policy = parse(
        r#"
        allow = [
            { host = "a.example", ports = [80, 443, 22] },
            { host = "b.example", ports = [80, 443], tls = "any" },
            { host = "c.example", ports = [8443], tls = "sni-must-match" },
        ]
        "#,
    );
    for (host, port, expected) in [
        ("a.example", 443, Inspection::Enforce(ExpectedProtocol::Tls)),
        ("a.example", 80, Inspection::Enforce(ExpectedProtocol::Http)),
        ("a.example", 22, Inspection::Enforce(ExpectedProtocol::TlsForNameOrOther)),
        ("b.example", 443, Inspection::Skip),
        ("b.example", 80, Inspection::Skip),
        ("c.example", 8443, Inspection::Enforce(ExpectedProtocol::Tls)),
    ] {
        let decision = policy.decide(&Host::parse(host).unwrap(), port);
        assert_eq!(decision.inspection, expected, "{host}:{port}");
    }
}

#[test]
fn a_lookup_is_allowed_if_any_port_is_allowed() {
    let policy = parse(
        r#"
        allow = [{ host = "*.example", ports = [22] }]
        deny = [{ host = "bad.example" }, { host = "odd.example", ports = [22] }]
        "#,
    );
    let lookup = |name: &str| policy.decide_lookup(&HostName::parse(name).unwrap());
    assert_eq!(lookup("a.example"), Verdict::Allowed);
    assert_eq!(lookup("odd.example"), Verdict::Allowed);
    assert_eq!(lookup("example"), Verdict::Refused(RefusalCause::NoRule));
    assert!(!lookup("bad.example").passes());
}

/// Few labels and ports, so that rules and requests often match.
fn label() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
}

fn name() -> impl Strategy<Value = String> {
    prop::collection::vec(label(), 1..4).prop_map(|labels| format!("{}.example", labels.join(".")))
}

fn port() -> impl Strategy<Value = u16> {
    prop::sample::select(vec![22, 80, 443])
}

fn rule() -> impl Strategy<Value = RuleDraft> {
    (name(), any::<bool>(), prop::option::of(prop::collection::vec(port(), 1..3))).prop_map(
        |(name, below, ports)| RuleDraft {
            host: if below { format!("*.{name}") } else { name },
            ports,
            ..RuleDraft::default()
        },
    )
}

fn draft() -> impl Strategy<Value = PolicyDraft> {
    (prop::collection::vec(rule(), 0..4), prop::collection::vec(rule(), 0..3))
        .prop_map(|(allow, deny)| PolicyDraft { allow, deny, ..PolicyDraft::default() })
}

fn in_mode(draft: &PolicyDraft, mode: PolicyMode) -> Policy {
    Policy::check(Path::new("f"), "ci", &PolicyDraft { mode, ..draft.clone() }).unwrap()
}

proptest! {
    #[test]
    fn what_enforce_allows_the_looser_modes_allow(draft in draft(), name in name(), port in port()) {
        let enforced = verdict(&in_mode(&draft, PolicyMode::Enforce), &name, port);
        let audited = verdict(&in_mode(&draft, PolicyMode::Audit), &name, port);
        match enforced {
            Verdict::Allowed => {
                prop_assert_eq!(audited, Verdict::Allowed);
                prop_assert_eq!(verdict(&in_mode(&draft, PolicyMode::Open), &name, port), Verdict::Allowed);
            }
            Verdict::Refused(cause) => prop_assert_eq!(audited, Verdict::WouldRefuse(cause)),
            Verdict::WouldRefuse(cause) => prop_assert!(false, "enforce only audited: {cause}"),
        }
    }

    #[test]
    fn deny_beats_allow(draft in draft(), name in name(), port in port()) {
        let policy = in_mode(&draft, PolicyMode::Enforce);
        let host = HostName::parse(&name).unwrap();
        if policy.denied(&host, port).is_some() {
            prop_assert!(matches!(
                verdict(&policy, &name, port), Verdict::Refused(RefusalCause::Denied(_))));
        }
    }

    /// Whatever the mode, a `deny` rule for a name makes no more of it pass.
    #[test]
    fn a_deny_rule_lets_nothing_more_pass(
        draft in draft(), port in port(),
        name in prop::sample::select(vec!["localhost", "x.test", "metadata.google.internal", "db"]),
        mode in prop::sample::select(vec![PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Open]),
    ) {
        let deny = RuleDraft { host: name.into(), ..RuleDraft::default() };
        let denied = PolicyDraft {
            deny: draft.deny.iter().cloned().chain([deny]).collect(), ..draft.clone()
        };
        let (without, with) = (in_mode(&draft, mode), in_mode(&denied, mode));
        let host = HostName::parse(name).unwrap();
        prop_assert!(
            verdict(&without, name, port).passes() || !verdict(&with, name, port).passes());
        prop_assert!(
            without.decide_lookup(&host).passes() || !with.decide_lookup(&host).passes());
    }

    #[test]
    fn names_that_allow_connections_allow_lookups(
        draft in draft(), name in name(), port in port()
    ) {
        let policy = in_mode(&draft, PolicyMode::Enforce);
        if verdict(&policy, &name, port).passes() {
            prop_assert!(policy.decide_lookup(&HostName::parse(&name).unwrap()).passes());
            prop_assert!(policy.ports().contains(&port));
        }
    }

    #[test]
    fn spelling_changes_no_verdict(draft in draft(), name in name(), port in port()) {
        let policy = in_mode(&draft, PolicyMode::Enforce);
        let loud = format!("{}.", name.to_uppercase());
        prop_assert_eq!(verdict(&policy, &name, port), verdict(&policy, &loud, port));
    }

    #[test]
    fn no_mode_allows_an_address_that_is_neither_global_nor_private(
        draft in draft(), address in any::<u32>(), port in port()
    ) {
        let address = std::net::Ipv4Addr::from(address);
        let class = address::classify(address.into());
        for mode in [PolicyMode::Enforce, PolicyMode::Audit, PolicyMode::Open] {
            let policy = in_mode(&PolicyDraft { allow_private: true, ..draft.clone() }, mode);
            let passes = policy.decide(&Host::Address(address.into()), port).verdict.passes();
            prop_assert!(!passes || matches!(class, AddressClass::Global | AddressClass::Private));
        }
    }
}
