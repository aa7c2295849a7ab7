//! The domain names that GitHub's runners contact, as GitHub publishes them.

use serde::Deserialize;

use super::client::GitHubClient;
use super::error::CallError;
use super::wire::ApiCall;

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    domains: Domains,
}

#[derive(Default, Deserialize)]
struct Domains {
    #[serde(default)]
    actions_inbound: Inbound,
}

#[derive(Default, Deserialize)]
struct Inbound {
    #[serde(default)]
    full_domains: Vec<String>,
}

impl GitHubClient {
    /// Returns the domain names that GitHub publishes; `None` for GitHub Enterprise Server, which
    /// has only its own name.
    pub async fn runner_domains(&self) -> Result<Option<Vec<String>>, CallError> {
        if !self.0.target.is_hosted() {
            return Ok(None);
        }
        let meta: Meta = self.read(&ApiCall::get("/meta")).await?;
        let domains = meta.domains.actions_inbound.full_domains;
        Ok((!domains.is_empty()).then_some(domains))
    }
}
