//! Built-in sets of hosts, which policies include by name. Operators define their own sets under
//! `[egress.set.NAME]`.

use super::Pattern;
use crate::host::HostName;

/// A named list of host patterns, all on port 443.
#[derive(Debug, Clone, Copy)]
pub struct HostSet {
    /// The set's name under `include`.
    pub name: &'static str,
    /// The purpose, in one line.
    pub purpose: &'static str,
    hosts: &'static [&'static [&'static str]],
}

impl HostSet {
    /// Returns the patterns.
    pub fn hosts(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.hosts.iter().flat_map(|hosts| hosts.iter().copied())
    }

    /// Returns whether a pattern of the set matches the name.
    pub(super) fn has(&self, name: &HostName) -> bool {
        self.hosts().any(|host| Pattern::parse(host).is_ok_and(|pattern| pattern.matches(name)))
    }
}

/// What a runner contacts, and what GitHub serves itself.
pub(super) const CORE: &[&str] = &[
    "github.com",
    "api.github.com",
    "*.actions.githubusercontent.com",
    "codeload.github.com",
    "uploads.github.com",
    "raw.githubusercontent.com",
    "ghcr.io",
    "pkg-containers.githubusercontent.com",
    "*.pkg.github.com",
    "objects.githubusercontent.com",
    "objects-origin.githubusercontent.com",
    "github-releases.githubusercontent.com",
    "github-registry-files.githubusercontent.com",
    "release-assets.githubusercontent.com",
    "github-cloud.githubusercontent.com",
    "github-cloud.s3.amazonaws.com",
    "dependabot-actions.githubapp.com",
];

/// The storage accounts in which GitHub keeps logs, summaries, caches and artifacts, as published
/// by GitHub. Anyone can register accounts with similar names, so this lists exact names.
pub(super) const RESULTS: &[&str] = &[
    "productionresultssa0.blob.core.windows.net",
    "productionresultssa1.blob.core.windows.net",
    "productionresultssa2.blob.core.windows.net",
    "productionresultssa3.blob.core.windows.net",
    "productionresultssa4.blob.core.windows.net",
    "productionresultssa5.blob.core.windows.net",
    "productionresultssa6.blob.core.windows.net",
    "productionresultssa7.blob.core.windows.net",
    "productionresultssa8.blob.core.windows.net",
    "productionresultssa9.blob.core.windows.net",
    "productionresultssa10.blob.core.windows.net",
    "productionresultssa11.blob.core.windows.net",
    "productionresultssa12.blob.core.windows.net",
    "productionresultssa13.blob.core.windows.net",
    "productionresultssa14.blob.core.windows.net",
    "productionresultssa15.blob.core.windows.net",
    "productionresultssa16.blob.core.windows.net",
    "productionresultssa17.blob.core.windows.net",
    "productionresultssa18.blob.core.windows.net",
    "productionresultssa19.blob.core.windows.net",
];

/// All built-in sets.
pub const BUILT_IN_SETS: &[HostSet] = &[
    HostSet {
        name: "github",
        purpose: "all that ordinary workflows of GitHub Actions need: github-core and \
                  github-results",
        hosts: &[CORE, RESULTS],
    },
    HostSet {
        name: "github-core",
        purpose: "what a runner talks to, actions, releases, GitHub's own packages; no logs, \
                  caches or artifacts",
        hosts: &[CORE],
    },
    HostSet {
        name: "github-results",
        purpose: "logs, summaries, caches and artifacts: the storage accounts that GitHub names",
        hosts: &[RESULTS],
    },
    HostSet {
        name: "github-blobs",
        // Anyone can register a storage account and so a name under this wildcard: a job that may
        // reach it can send data anywhere.
        purpose: "any storage account (anyone can get a name under this wildcard: with it a job \
                  can send data to a stranger's storage account)",
        hosts: &[&["*.blob.core.windows.net"]],
    },
];

/// Returns the built-in set with the given name.
pub(super) fn find(name: &str) -> Option<&'static HostSet> {
    BUILT_IN_SETS.iter().find(|set| set.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::policy::Policies;

    #[test]
    fn squid_allows_the_hosts_of_the_github_set() {
        let allowed = include_str!("../../../packaging/container/allowed.txt");
        let allowed: Vec<_> = allowed.lines().filter(|line| !line.starts_with('#')).collect();
        let hosts = find("github").unwrap().hosts();
        let as_squid: Vec<_> = hosts.map(|host| host.trim_start_matches('*')).collect();
        assert_eq!(allowed, as_squid);
    }

    #[test]
    fn each_host_of_a_set_is_a_pattern() {
        for set in BUILT_IN_SETS {
            for host in set.hosts() {
                assert_eq!(Pattern::parse(host).unwrap().to_string(), host);
            }
        }
    }

    #[test]
    fn only_github_blobs_has_a_wildcard_that_anyone_can_register_under() {
        for set in BUILT_IN_SETS {
            let wild = set.hosts().any(|host| host.starts_with("*.blob."));
            assert_eq!(wild, set.name == "github-blobs", "{}", set.name);
        }
    }

    #[test]
    fn the_default_policy_allows_only_githubs_storage_accounts() {
        let policies = Policies::read(None).unwrap();
        let policy = policies.get("github").unwrap();
        let passes = |name: &str| policy.decide(&Host::parse(name).unwrap(), 443).verdict.passes();
        for account in 0..20 {
            assert!(passes(&format!("productionresultssa{account}.blob.core.windows.net")));
        }
        for name in [
            "attacker.blob.core.windows.net",
            "blob.core.windows.net",
            "productionresultssa.blob.core.windows.net",
            "productionresultssa20.blob.core.windows.net",
            "productionresultssa01.blob.core.windows.net",
            "productionresultssa1x.blob.core.windows.net",
            "xproductionresultssa1.blob.core.windows.net",
            "x.productionresultssa1.blob.core.windows.net",
            "productionresultssa1.blob.core.windows.net.example.org",
            "productionresultssa1.queue.core.windows.net",
            "productionresultssa1-secondary.blob.core.windows.net",
        ] {
            assert!(!passes(name), "{name}");
        }
    }
}
