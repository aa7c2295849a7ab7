//! The names that a runner needs to reach, for comparison with a policy.

use super::{Pattern, sets};
use crate::host::HostName;
use crate::record::EgressReport;

/// One name that a runner contacts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredHost {
    /// The name, or a pattern where GitHub uses many names.
    pub host: String,
    /// A name that matches; the same as `host` where that is a name.
    pub probe: String,
    /// The purpose.
    pub purpose: &'static str,
    /// The built-in set that allows it, if any.
    pub set: Option<&'static str>,
}

/// The names that a runner of github.com contacts: name, purpose, and the built-in set that allows
/// it.
const GITHUB_COM: &[(&str, &str, &str)] = &[
    ("github.com", "checkout and registration", "github-core"),
    ("api.github.com", "API, and registration", "github-core"),
    ("*.actions.githubusercontent.com", "jobs, tokens, results, OIDC", "github-core"),
    ("codeload.github.com", "archives of actions", "github-core"),
    ("uploads.github.com", "files of a release", "github-core"),
    ("raw.githubusercontent.com", "single files of repositories", "github-core"),
    ("objects.githubusercontent.com", "files of releases", "github-core"),
    ("release-assets.githubusercontent.com", "files of releases", "github-core"),
    ("ghcr.io", "container actions and images", "github-core"),
    ("pkg-containers.githubusercontent.com", "layers of those images", "github-core"),
    ("*.pkg.github.com", "GitHub's own packages", "github-core"),
    ("github-cloud.githubusercontent.com", "Git LFS", "github-core"),
    ("github-cloud.s3.amazonaws.com", "Git LFS", "github-core"),
    ("dependabot-actions.githubapp.com", "Dependabot", "github-core"),
    (
        "productionresultssa[0-9]*.blob.core.windows.net",
        "logs, summaries, caches, artifacts",
        "github-results",
    ),
];

/// Returns the names that a runner of the server needs. `server` is as in `github.url`, without a
/// path.
pub fn required_hosts(server: &str) -> Vec<RequiredHost> {
    let host = server.split_once("://").map_or(server, |(_, rest)| rest);
    let host = host.split(['/', ':']).next().unwrap_or(host);
    if host == "github.com" {
        return GITHUB_COM.iter().map(|(host, purpose, set)| need(host, purpose, set)).collect();
    }
    let named =
        |host: String, probe: String, purpose| RequiredHost { host, probe, purpose, set: None };
    let own = named(host.to_owned(), host.to_owned(), "checkout, registration, jobs");
    if host.ends_with(".ghe.com") {
        let below = format!("*.{host}");
        return vec![
            own,
            named(below, format!("api.{host}"), "API, jobs, archives of actions, packages"),
            named("auth.ghe.com".into(), "auth.ghe.com".into(), "tokens"),
        ];
    }
    // A self-hosted server uses one name for everything, results included.
    vec![own]
}

/// A destination that a policy refused, as the guest named it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedDestination<'a> {
    /// The name or address.
    pub host: &'a str,
    /// The port; 0 if unknown.
    pub port: u16,
    /// The cause's code.
    pub cause: Option<&'a str>,
}

/// Returns a message about a name that a microVM's report lists as refused and that a runner of the
/// server needs, with the line that allows it.
pub fn explain_missing(server: &str, report: &EgressReport) -> Option<String> {
    let refused = report.rows.iter().filter(|row| row.verdict == "refused");
    explain_missing_for(
        server,
        refused.map(|row| RefusedDestination::new(&row.host, row.port, row.cause.as_deref())),
    )
}

impl<'a> RefusedDestination<'a> {
    /// Creates one from its parts.
    pub fn new(host: &'a str, port: u16, cause: Option<&'a str>) -> Self {
        Self { host, port, cause }
    }
}

/// Returns a message about a refused name that a runner of the server needs, with the line that
/// allows it.
pub fn explain_missing_for<'a>(
    server: &str,
    refused: impl IntoIterator<Item = RefusedDestination<'a>>,
) -> Option<String> {
    let needs = required_hosts(server);
    let (one, name, need) = refused.into_iter().find_map(|one| {
        let name = HostName::parse(one.host).ok()?;
        let is_of = |need: &&RequiredHost| {
            Pattern::parse(&need.host).is_ok_and(|pattern| pattern.matches(&name))
        };
        // A network failure is not a refusal by the policy.
        let by_policy = matches!(one.cause, Some("no-rule" | "port" | "denied"));
        let need = needs.iter().find(is_of)?;
        (by_policy && matches!(one.port, 0 | 443)).then_some((one, name, need))
    })?;
    let (host, purpose, remedy) = (one.host, need.purpose, remedy(one, &name, need.set));
    Some(format!("the egress policy refused {host}, which a runner needs ({purpose}); {remedy}"))
}

/// Returns what allows a refused name. GitHub uses names that the suggested set does not have.
fn remedy(refused: RefusedDestination<'_>, name: &HostName, set: Option<&str>) -> String {
    if refused.cause == Some("denied") {
        return "remove the `deny` rule that matches it from the policy".to_owned();
    }
    let line = match set.and_then(sets::find).filter(|set| set.has(name)) {
        Some(set) => format!("include = [\"{}\"]", set.name),
        None => format!("allow = [{{ host = \"{}\", ports = [443] }}]", refused.host),
    };
    format!("`{line}` in the policy allows it")
}

fn need(host: &str, purpose: &'static str, set: &'static str) -> RequiredHost {
    let probe = host.replace("[0-9]*", "0").replace("*.", "broker.");
    RequiredHost { host: host.to_owned(), probe, purpose, set: Some(set) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;
    use crate::host::Host;
    use crate::policy::{BUILT_IN_SETS, Policy, PolicyDraft};
    use crate::record::{EgressRow, EgressTotals};
    use mayfly_reference::assert_generated;

    fn of_set(set: &str) -> Policy {
        let draft = PolicyDraft { include: vec![set.into()], ..PolicyDraft::default() };
        Policy::check(Path::new("f"), "ci", &draft).unwrap()
    }

    fn passes(policy: &Policy, name: &str) -> bool {
        policy.decide(&Host::parse(name).unwrap(), 443).verdict.passes()
    }

    #[test]
    fn the_default_policy_and_the_sets_allow_what_a_runner_needs() {
        let github = of_set("github");
        for need in required_hosts("https://github.com") {
            assert!(passes(&github, &need.probe), "{need:?}");
            assert!(passes(&of_set(need.set.unwrap()), &need.probe), "{need:?}");
        }
    }

    #[test]
    fn only_refusals_of_required_names_are_reported() {
        let row = |host: &str, verdict: &str, cause: &str| EgressRow {
            host: host.into(),
            port: 443,
            verdict: verdict.into(),
            cause: Some(cause.into()),
            connections: 1,
            up: 0,
            down: 0,
        };
        let explain = |rows| {
            let totals = EgressTotals::default();
            explain_missing(
                "https://github.com",
                &EgressReport { rows, totals, omitted: 0, unrecorded: 0 },
            )
        };
        let results = "productionresultssa7.blob.core.windows.net";
        let message = explain(vec![row(results, "refused", "no-rule")]).unwrap();
        for part in [results, "logs, summaries", "`include = [\"github-results\"]`"] {
            assert!(message.contains(part), "{message}");
        }
        for rows in [
            vec![],
            vec![row(results, "allowed", "")],
            vec![row(results, "refused", "connect")],
            vec![row("evil.example", "refused", "no-rule")],
            vec![row("attacker.blob.core.windows.net", "refused", "no-rule")],
            vec![row("not a host", "refused", "no-rule")],
        ] {
            assert_eq!(explain(rows), None);
        }
    }

    fn explain_one(server: &str, host: &str, cause: &str) -> Option<String> {
        explain_missing_for(server, [RefusedDestination::new(host, 443, Some(cause))])
    }

    #[test]
    fn a_name_beyond_the_sets_is_reported_with_a_rule() {
        let new = "productionresultssa20.blob.core.windows.net";
        let message = explain_one("https://github.com", new, "no-rule").unwrap();
        let line = format!("`allow = [{{ host = \"{new}\", ports = [443] }}]`");
        assert!(message.contains(&line) && !message.contains("include"), "{message}");
    }

    #[test]
    fn a_hint_about_a_deny_rule_names_no_set() {
        for host in ["github.com", "productionresultssa7.blob.core.windows.net"] {
            let message = explain_one("https://github.com", host, "denied").unwrap();
            assert!(message.contains("remove the `deny` rule"), "{message}");
            assert!(!message.contains("include") && !message.contains("allow ="), "{message}");
        }
    }

    #[test]
    fn refusals_for_other_servers_are_reported_with_a_rule() {
        let refused = |host| [RefusedDestination::new(host, 443, Some("no-rule"))];
        let message =
            explain_missing_for("https://octo.ghe.com", refused("jobs.octo.ghe.com")).unwrap();
        let line = "`allow = [{ host = \"jobs.octo.ghe.com\", ports = [443] }]`";
        assert!(message.contains(line), "{message}");
        assert_eq!(explain_missing_for("https://octo.ghe.com", refused("github.com")), None);
    }

    #[test]
    fn other_servers_have_names_of_their_own() {
        let hosts =
            |server| required_hosts(server).into_iter().map(|need| need.host).collect::<Vec<_>>();
        assert_eq!(hosts("https://ghes.example.com:8443"), ["ghes.example.com"]);
        let tenant = ["octo.ghe.com", "*.octo.ghe.com", "auth.ghe.com"];
        assert_eq!(hosts("https://octo.ghe.com"), tenant);
    }

    #[test]
    fn the_reference_lists_each_name_with_its_verdicts() {
        let mut page = String::from(
            "# What a runner contacts\n\nUse this page to see whether a policy allows what a GitHub \
             runner needs: each name, and the verdict of each built-in set on port 443. The default \
             policy, `github`, includes the set of the same name.\n\n| name | what for |",
        );
        for set in BUILT_IN_SETS {
            _ = write!(page, " `{}` |", set.name);
        }
        page.push_str("\n|--|--|");
        page.push_str(&"--|".repeat(BUILT_IN_SETS.len()));
        page.push('\n');
        let strangers = [
            "attacker.blob.core.windows.net",
            "productionresultssa1x.blob.core.windows.net",
            "xproductionresultssa1.blob.core.windows.net",
            "productionresultssa1.blob.core.windows.net.example.org",
        ];
        let stranger = |host: &&str| RequiredHost {
            host: (*host).to_owned(),
            probe: (*host).to_owned(),
            purpose: "nothing: anybody's name",
            set: None,
        };
        let needs = required_hosts("https://github.com").into_iter();
        for RequiredHost { host, probe, purpose, .. } in needs.chain(strangers.iter().map(stranger))
        {
            _ = write!(page, "| `{host}` | {purpose} |");
            for set in BUILT_IN_SETS {
                let verdict = if passes(&of_set(set.name), &probe) { "allowed" } else { "refused" };
                _ = write!(page, " {verdict} |");
            }
            page.push('\n');
        }
        assert_generated("reference/names.md", &page);
    }
}
