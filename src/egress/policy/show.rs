//! Text output of policies, for `mayfly egress check` and `mayfly egress show`.

use std::fmt::Write as _;

use super::decide::{ExpectedProtocol, Inspection};
use super::{Policy, Rule, Tls};
use crate::host::Host;
use crate::verdict::{CauseChain, Verdict};

/// Returns one line: the verdict on a destination, the rule that decides, and further checks.
pub fn explain(policy: &Policy, host: &Host, port: u16) -> String {
    let decision = policy.decide(host, port);
    let mut line = format!("{host}:{port} {}", decision.verdict.code());
    match (&decision.verdict, decision.rule) {
        (Verdict::Allowed, Some(rule)) => _ = write!(line, " by {rule}"),
        (Verdict::Allowed, None) => _ = write!(line, " by mode {}", policy.mode),
        (Verdict::WouldRefuse(cause) | Verdict::Refused(cause), _) => {
            _ = write!(line, ": {}", CauseChain(cause));
        }
    }
    if !decision.verdict.passes() {
        return line;
    }
    line.push_str(match decision.inspection {
        Inspection::Enforce(ExpectedProtocol::Tls) => "; must be TLS with that server name",
        Inspection::Enforce(ExpectedProtocol::TlsForNameOrOther) => {
            "; any protocol, TLS only with that server name"
        }
        Inspection::Enforce(ExpectedProtocol::Http) => "; must be HTTP with that Host",
        Inspection::Skip => "; any protocol",
        Inspection::Observe(_) => "",
    });
    if let Some(rule) = decision.rule {
        line.push_str(&limits(rule));
    }
    let override_address = host.name().and_then(|name| policy.resolve_override(name, port));
    match (override_address, &policy.parent) {
        (Some(address), _) => _ = write!(line, "; at {address} by `resolve`"),
        (None, Some(parent)) => {
            _ = write!(line, "; through http://{}:{}", parent.host, parent.port);
        }
        (None, None) if decision.allow_private => line.push_str("; may be private"),
        (None, None) => {}
    }
    line
}

/// Returns the limits of a rule's connections.
fn limits(rule: &Rule) -> String {
    let mut text = String::new();
    if let Some(bytes) = rule.max_bytes {
        _ = write!(text, "; at most {bytes} bytes");
    }
    if let Some(rate) = rule.max_rate {
        _ = write!(text, "; at most {rate}");
    }
    text
}

/// Returns the effective policy, one rule per line.
pub fn show(policy: &Policy) -> String {
    let mut text = format!("policy {}\nmode {}\n", policy.name, policy.mode);
    if policy.allow_private {
        text.push_str("private addresses allowed\n");
    }
    if let Some(parent) = &policy.parent {
        _ = write!(text, "parent http://{}:{}", parent.host, parent.port);
        text.push_str(if parent.credentials.is_some() { " with credentials\n" } else { "\n" });
    }
    for rule in policy.deny.iter().chain(&policy.allow) {
        _ = write!(text, "{rule}");
        text.push_str(match rule.tls {
            Some(Tls::Any) => " tls any",
            Some(Tls::SniMustMatch) => " tls sni-must-match",
            None => "",
        });
        if rule.allow_private && !policy.allow_private {
            text.push_str(" private");
        }
        if let Some(bytes) = rule.max_bytes {
            _ = write!(text, " max {bytes} bytes");
        }
        if let Some(rate) = rule.max_rate {
            _ = write!(text, " max {rate}");
        }
        text.push('\n');
    }
    for ((name, port), target) in &policy.resolve {
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let target = match target.port {
            Some(port) => std::net::SocketAddr::new(target.address, port).to_string(),
            None => target.address.to_string(),
        };
        _ = writeln!(text, "resolve {name}{port} at {target}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn policy() -> Policy {
        let draft = toml::from_str(
            r#"
            allow = [
                { host = "git.example", ports = [22, 443], tls = "any", max_bytes = 1000 },
                { host = "*.corp.example", allow_private = true, max_rate = "2MB/s" },
            ]
            deny = [{ host = "bad.corp.example" }]
            parent = "http://squid:3128"
            parent_credentials = "/etc/credentials"
            resolve = { "git.example:443" = "127.0.0.1:8443", "git.example" = "10.0.0.1" }
            "#,
        );
        Policy::check(Path::new("f"), "ci", &draft.unwrap()).unwrap()
    }

    #[test]
    fn an_explanation_names_the_verdict_the_rule_and_further_checks() {
        let policy = policy();
        for (target, expected) in [
            (
                "git.example:443",
                "git.example:443 allowed by allow[0] git.example ports 22,443; any protocol; \
                 at most 1000 bytes; at 127.0.0.1:8443 by `resolve`",
            ),
            (
                "a.corp.example:443",
                "a.corp.example:443 allowed by allow[1] *.corp.example ports 80,443; \
                 must be TLS with that server name; at most 2MB/s; through http://squid:3128",
            ),
            (
                "bad.corp.example:80",
                "bad.corp.example:80 refused: the rule deny[0] bad.corp.example denies it",
            ),
            ("evil.example:1", "evil.example:1 refused: no rule allows the name"),
            ("1.1.1.1:1", "1.1.1.1:1 refused: the policy decides by name, but this is an address"),
        ] {
            let (host, port) = Host::parse_with_port(target, None).unwrap();
            assert_eq!(explain(&policy, &host, port), expected);
        }
    }

    #[test]
    fn the_effective_policy_has_a_line_per_rule() {
        assert_eq!(
            show(&policy()),
            "policy ci\n\
             mode enforce\n\
             parent http://squid:3128 with credentials\n\
             deny[0] bad.corp.example\n\
             allow[0] git.example ports 22,443 tls any max 1000 bytes\n\
             allow[1] *.corp.example ports 80,443 private max 2MB/s\n\
             resolve git.example at 10.0.0.1\n\
             resolve git.example:443 at 127.0.0.1:8443\n"
        );
    }
}
