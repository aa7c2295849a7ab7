//! Tests of `draft`, in a separate file for length.

use super::*;
use mayfly_failure::chain;

fn check(text: &str) -> Result<Policy, PolicyError> {
    Policy::check(Path::new("/etc/mayfly.toml"), "ci", &toml::from_str(text).unwrap())
}

#[test]
fn an_error_names_file_key_and_value() {
    for (text, message) in [
        (
            r#"allow = [{ host = "a.example" }, { host = "a.*.example" }]"#,
            "/etc/mayfly.toml: egress.policy.ci.allow[1].host = \"a.*.example\" can't be used: \
             `*` is allowed only as the leftmost part, as in `*.example.com`",
        ),
        (
            r#"deny = [{ host = "a.example", ports = [22, 0] }]"#,
            "/etc/mayfly.toml: egress.policy.ci.deny[0].ports = \"0\" can't be used: \
             a port must be a number from 1 to 65535",
        ),
        (
            r#"allow = [{ host = "a.example", ports = [] }]"#,
            "/etc/mayfly.toml: egress.policy.ci.allow[0].ports = \"[]\" can't be used: \
             a rule needs at least one port",
        ),
        (
            r#"deny = [{ host = "a.example", tls = "any" }]"#,
            "/etc/mayfly.toml: egress.policy.ci.deny[0].tls = \"any\" can't be used: \
             `deny` rules do not support this key",
        ),
        (
            r#"include = ["github", "gitlab"]"#,
            "/etc/mayfly.toml: egress.policy.ci.include[1] = \"gitlab\" can't be used: \
             unknown set",
        ),
        (
            r#"resolve = { "git.internal" = "localhost" }"#,
            "/etc/mayfly.toml: egress.policy.ci.resolve.\"git.internal\" = \"localhost\" can't be \
             used: the target must be ADDRESS or ADDRESS:PORT",
        ),
        (
            r#"resolve = { "git.internal:ssh" = "127.0.0.1" }"#,
            "/etc/mayfly.toml: egress.policy.ci.resolve.\"git.internal:ssh\" = \
             \"git.internal:ssh\" can't be used: a port must be a number from 1 to 65535",
        ),
        (
            r#"parent = "http://user:secret@squid:3128""#,
            "/etc/mayfly.toml: egress.policy.ci.parent = \"http://…@…\" can't be used: \
             the URL must not contain a user or password; set `parent_credentials` to a file \
             with them",
        ),
        (
            r#"parent_credentials = "/etc/squid.cred""#,
            "/etc/mayfly.toml: egress.policy.ci.parent_credentials = \"/etc/squid.cred\" can't be \
             used: `parent` is not set",
        ),
        (
            "mode = \"none\"\ninclude = [\"github\"]",
            "/etc/mayfly.toml: egress.policy.ci.mode = \"none\" can't be used: \
             `allow` and `include` have no effect in this mode",
        ),
    ] {
        assert_eq!(chain(&check(text).unwrap_err()), message, "{text}");
    }
}

#[test]
fn an_error_in_a_rate_names_file_key_and_value() {
    for (text, message) in [
        (
            r#"allow = [{ host = "a.example", max_rate = "10MB" }]"#,
            "/etc/mayfly.toml: egress.policy.ci.allow[0].max_rate = \"10MB\" can't be used: \
             a rate must be a whole number with a unit from B/s to GiB/s, e.g. `10MB/s`",
        ),
        (
            r#"allow = [{ host = "a.example", max_rate = "10B/s" }]"#,
            "/etc/mayfly.toml: egress.policy.ci.allow[0].max_rate = \"10B/s\" can't be used: \
             a rate must be at least 1000 B/s",
        ),
        (
            r#"deny = [{ host = "a.example", max_rate = "1MB/s" }]"#,
            "/etc/mayfly.toml: egress.policy.ci.deny[0].max_rate = \"1MB/s\" can't be used: \
             `deny` rules do not support this key",
        ),
    ] {
        assert_eq!(chain(&check(text).unwrap_err()), message, "{text}");
    }
}

#[test]
fn too_many_ports_are_refused() {
    let ports: Vec<_> = (1..=MAX_PORTS + 1).map(|port| port.to_string()).collect();
    let text = format!("allow = [{{ host = \"a.example\", ports = [{}] }}]", ports.join(","));
    assert_eq!(check(&text).unwrap_err().source, PolicyValueError::TooManyPorts);
}

#[test]
fn a_name_that_could_break_a_log_line_is_refused() {
    let draft = PolicyDraft::default();
    for name in ["", "a b", "a\nb", "ä", &"a".repeat(65)] {
        let error = Policy::check(Path::new("f"), name, &draft).unwrap_err();
        assert_eq!(error.source, PolicyValueError::Name, "{name:?}");
    }
}

#[test]
fn an_unknown_key_is_refused() {
    let error = toml::from_str::<PolicyDraft>("allows = []").unwrap_err();
    assert!(error.message().contains("allows"), "{error}");
    let error = toml::from_str::<PolicyDraft>("allow = [{ host = \"a\", port = 1 }]").unwrap_err();
    assert!(error.message().contains("port"), "{error}");
    let error = toml::from_str::<PolicyDraft>("mode = \"strict\"").unwrap_err();
    assert!(error.message().contains("strict"), "{error}");
}

#[test]
fn a_rule_without_ports_is_for_the_web() {
    let policy = check(r#"allow = [{ host = "a.example" }]"#).unwrap();
    assert_eq!(policy.ports(), [80, 443].into());
}

#[test]
fn an_override_with_the_port_goes_before_the_one_without() {
    let policy = check(
        r#"resolve = { "git.internal" = "10.0.0.1", "git.internal:443" = "127.0.0.1:8443" }"#,
    )
    .unwrap();
    let name = HostName::parse("git.internal").unwrap();
    assert_eq!(policy.resolve_override(&name, 443), "127.0.0.1:8443".parse().ok());
    assert_eq!(policy.resolve_override(&name, 22), "10.0.0.1:22".parse().ok());
    assert_eq!(policy.resolve_override(&HostName::parse("other").unwrap(), 22), None);
}

#[test]
fn a_parent_has_a_host_and_a_port() {
    let parent = |text: &str| check(&format!("parent = \"{text}\"")).map(|p| p.parent.unwrap());
    let squid = parent("http://squid:3128/").unwrap();
    assert_eq!((squid.host.to_string(), squid.port), ("squid".into(), 3128));
    for text in ["squid:3128", "https://squid:3128", "http://squid", "http://squid:3128/x"] {
        assert!(parent(text).is_err(), "{text}");
    }
}
