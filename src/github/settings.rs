//! What the client is told: where, as whom, and through which proxy.

use std::time::Duration;

use secrecy::SecretString;

use super::target::{ApiBase, Target};
use crate::host::web::Proxies;

/// How to reach GitHub, and as whom.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The scope that runners are registered in.
    pub target: Target,
    /// The root of the API, where it is not the one that belongs to the target.
    pub api: Option<ApiBase>,
    /// As whom.
    pub credentials: Credentials,
    /// Which hook's deliveries can be asked for again; needs rights of its own.
    pub hook: Option<Hook>,
    /// The proxies between here and GitHub.
    pub proxies: Proxies,
    /// The least time between two calls that change something (GitHub's advice is 1 s).
    pub mutation_gap: Duration,
}

/// As whom GitHub is called.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A GitHub App: short-lived tokens with the rights that are needed and no more.
    App {
        /// Its client id (`Iv…`, what GitHub recommends) or its number.
        id: String,
        /// Its RSA private key, PEM as downloaded (PKCS#1) or PKCS#8.
        private_key: SecretString,
        /// Which installation; found by the target if not given.
        installation: Option<u64>,
    },
    /// A personal access token.
    Token(SecretString),
}

/// The hook that GitHub delivers `workflow_job` events by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// That of the App itself.
    App,
    /// One of the organisation's or the repository's, by its number.
    Id(u64),
}

impl Settings {
    /// Settings with everything else as a person expects it.
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
    fn no_secret_is_in_the_debug_text() {
        let target: Target = "https://github.com/octo".parse().unwrap();
        let token = Credentials::Token("ghp_verysecret".into());
        let app = Credentials::App {
            id: "Iv1".into(),
            private_key: "-----BEGIN verysecret".into(),
            installation: None,
        };
        for credentials in [token, app] {
            let text = format!("{:?}", Settings::new(target.clone(), credentials));
            assert!(!text.contains("verysecret"), "{text}");
        }
    }
}
