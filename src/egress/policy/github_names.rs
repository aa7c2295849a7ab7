//! Names that GitHub publishes beyond those of the built-in sets.
//!
//! GitHub publishes its names (`domains` of `GET /meta`). A name is accepted only if it has a form
//! that GitHub alone controls: a wrong or forged list opens no other name.

use std::collections::BTreeSet;

use super::sets::{CORE, RESULTS};
use super::{Pattern, Policy, RuleOrigin};
use crate::host::HostName;

/// The zones that GitHub alone controls.
const ZONES: [&str; 3] = ["*.github.com", "*.githubusercontent.com", "*.githubapp.com"];

/// The pattern of the storage accounts for results.
const ACCOUNTS: &str = "productionresultssa[0-9]*.blob.core.windows.net";

/// Maximum number of accepted names.
const MAX_NAMES: usize = 256;

fn is_of(pattern: &str, name: &HostName) -> bool {
    Pattern::parse(pattern).is_ok_and(|pattern| pattern.matches(name))
}

/// Returns the listed names that are new and have a known form.
pub fn new_github_names<'a>(names: impl IntoIterator<Item = &'a str>) -> BTreeSet<String> {
    let parsed = names.into_iter().filter_map(|name| HostName::parse(name).ok());
    let known = |name: &HostName| CORE.iter().chain(RESULTS).any(|pattern| is_of(pattern, name));
    let has_form =
        |name: &HostName| is_of(ACCOUNTS, name) || ZONES.iter().any(|zone| is_of(zone, name));
    parsed
        .filter(|name| has_form(name) && !known(name))
        .map(|name| name.to_string())
        .take(MAX_NAMES)
        .collect()
}

impl Policy {
    /// Returns the policy with these names added, each beside the built-in set that it belongs to,
    /// if the policy includes that set.
    #[must_use]
    pub fn with_github_names(mut self, names: &BTreeSet<String>) -> Self {
        for name in names {
            let Ok(host) = Pattern::parse(name) else { continue };
            let is_account = HostName::parse(name).is_ok_and(|name| is_of(ACCOUNTS, &name));
            let set = if is_account { "github-results" } else { "github-core" };
            let includes = |origin: &RuleOrigin| match origin {
                RuleOrigin::Set(included) => included == set || included == "github",
                RuleOrigin::Allow(_) | RuleOrigin::Deny(_) => false,
            };
            if let Some(like) = self.allow.iter().find(|rule| includes(&rule.origin)).cloned() {
                self.allow.push(super::Rule { host, ..like });
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::host::Host;
    use crate::policy::PolicyDraft;

    const NEW: [&str; 2] =
        ["productionresultssa20.blob.core.windows.net", "new-thing.githubusercontent.com"];

    fn including(set: &str) -> Policy {
        let draft = PolicyDraft { include: vec![set.into()], ..PolicyDraft::default() };
        Policy::check(Path::new("f"), "ci", &draft).unwrap()
    }

    fn passes(policy: &Policy, name: &str) -> bool {
        policy.decide(&Host::parse(name).unwrap(), 443).verdict.passes()
    }

    #[test]
    fn only_new_names_that_github_controls_are_accepted() {
        let names = [
            "github.com",
            "productionresultssa3.blob.core.windows.net",
            "broker.actions.githubusercontent.com",
            "attacker.blob.core.windows.net",
            "productionresultssa1x.blob.core.windows.net",
            "xproductionresultssa1.blob.core.windows.net",
            "productionresultssa1.blob.core.windows.net.example.org",
            "githubusercontent.com.example.org",
            "anybody.github.io",
            "evilgithub.com",
            "*.githubusercontent.com",
            "10.0.0.1",
            "",
        ];
        let names = new_github_names(names.into_iter().chain(NEW));
        assert_eq!(names.iter().collect::<Vec<_>>(), [NEW[1], NEW[0]]);
        let many: Vec<_> = (0..1000).map(|number| format!("n{number}.github.com")).collect();
        assert_eq!(new_github_names(many.iter().map(String::as_str)).len(), MAX_NAMES);
    }

    #[test]
    fn a_policy_gets_the_names_of_the_sets_that_it_includes() {
        let names = new_github_names(NEW);
        for (set, expected) in [
            ("github", [true, true]),
            ("github-results", [true, false]),
            ("github-core", [false, true]),
        ] {
            let policy = including(set);
            assert!(NEW.iter().all(|name| !passes(&policy, name)), "{set}");
            let policy = policy.with_github_names(&names);
            assert_eq!(NEW.map(|name| passes(&policy, name)), expected, "{set}");
            assert!(!passes(&policy, "productionresultssa21.blob.core.windows.net"));
        }
        let own = Policy::check(Path::new("f"), "ci", &PolicyDraft::default()).unwrap();
        assert_eq!(own.clone().with_github_names(&names), own);
    }
}
