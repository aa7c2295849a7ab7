//! Settings of the client: the target, the credentials and the proxies.

use std::time::Duration;

use secrecy::SecretString;

use mayfly_config::github::{ApiBase, Target};
use mayfly_host::web::Proxies;

/// The settings of a [`GitHubClient`](super::GitHubClient).
#[derive(Debug, Clone)]
pub struct GitHubSettings {
    /// The scope that runners are registered in.
    pub target: Target,
    /// The API's root, if it is not the target's default.
    pub api: Option<ApiBase>,
    /// The credentials for all calls.
    pub credentials: Credentials,
    /// The webhook whose missed deliveries are requested again; needs permissions of its own.
    pub hook: Option<Hook>,
    /// The proxies between this host and GitHub.
    pub proxies: Proxies,
    /// The minimum time between two mutating calls (GitHub recommends 1 s).
    pub mutation_gap: Duration,
}

/// The credentials for GitHub.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A GitHub App: short-lived tokens with only the permissions that Mayfly needs.
    App {
        /// Its client ID (`Iv…`, which GitHub recommends) or its App ID.
        id: String,
        /// Its RSA private key in PEM, PKCS#1 (as downloaded) or PKCS#8.
        private_key: SecretString,
        /// The installation's ID; looked up by target if `None`.
        installation: Option<u64>,
    },
    /// A personal access token.
    Token(SecretString),
}

/// The webhook that delivers `workflow_job` events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// The App's own webhook.
    App,
    /// A webhook of the organization or repository, by its ID.
    Id(u64),
}

impl GitHubSettings {
    /// Creates settings with defaults for everything else.
    pub fn new(target: Target, credentials: Credentials) -> Self {
        Self {
            target,
            api: None,
            credentials,
            hook: None,
            proxies: Proxies::from_environment(),
            mutation_gap: Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_contains_no_secret() {
        let target: Target = "https://github.com/octo".parse().unwrap();
        let token = Credentials::Token("ghp_verysecret".into());
        let app = Credentials::App {
            id: "Iv1".into(),
            private_key: "-----BEGIN verysecret".into(),
            installation: None,
        };
        for credentials in [token, app] {
            let text = format!("{:?}", GitHubSettings::new(target.clone(), credentials));
            assert!(!text.contains("verysecret"), "{text}");
        }
    }
}
