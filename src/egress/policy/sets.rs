//! Built-in sets of hosts that a policy includes by name.

/// A named list of host patterns, all on port 443.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    /// The name under `include`.
    pub name: &'static str,
    /// What it is for, in one line.
    pub purpose: &'static str,
    /// The patterns.
    pub hosts: &'static [&'static str],
}

/// Every set there is.
pub const SETS: &[Set] = &[
    Set {
        name: "github",
        purpose: "what a GitHub Actions runner must reach, and GitHub's own packages",
        hosts: &[
            "github.com",
            "api.github.com",
            "*.actions.githubusercontent.com",
            "codeload.github.com",
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
        ],
    },
    Set {
        name: "github-blobs",
        // Anyone can open a storage account and so get a name under this wildcard: a job that may
        // reach it can send anything anywhere. GitHub keeps logs, caches and artifacts there under
        // account names that it changes, so there is no shorter list.
        purpose: "logs, caches and artifacts (anyone can get a name under this wildcard: with it \
                  a job can send data to a stranger's storage account)",
        hosts: &["*.blob.core.windows.net"],
    },
];

/// The set of that name.
pub(super) fn find(name: &str) -> Option<&'static Set> {
    SETS.iter().find(|set| set.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::policy::pattern::Pattern;

    #[test]
    fn squid_allows_what_the_set_of_github_does() {
        let allowed = include_str!("../../../packaging/container/allowed.txt");
        let allowed: Vec<_> = allowed.lines().filter(|line| !line.starts_with('#')).collect();
        let hosts = find("github").unwrap().hosts.iter();
        let as_squid: Vec<_> = hosts.map(|host| host.trim_start_matches('*')).collect();
        assert_eq!(allowed, as_squid);
    }

    #[test]
    fn each_host_of_a_set_is_a_pattern() {
        for set in SETS {
            for host in set.hosts {
                assert_eq!(Pattern::parse(host).unwrap().to_string(), *host);
            }
        }
    }

    #[test]
    fn no_set_but_the_one_named_for_it_has_the_blob_wildcard() {
        let with_blobs =
            SETS.iter().filter(|set| set.hosts.iter().any(|h| h.contains("blob.core")));
        assert_eq!(with_blobs.map(|set| set.name).collect::<Vec<_>>(), ["github-blobs"]);
    }
}
