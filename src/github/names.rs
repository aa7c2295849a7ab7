//! The names that GitHub says its runners contact.

use serde::Deserialize;

use super::client::Client;
use super::error::CallError;
use super::wire::Ask;

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

impl Client {
    /// The names, as GitHub's own service lists them; none of another server, which has one name.
    pub async fn names(&self) -> Result<Option<Vec<String>>, CallError> {
        if !self.0.target.is_hosted() {
            return Ok(None);
        }
        let meta: Meta = self.read(&Ask::get("/meta")).await?;
        let names = meta.domains.actions_inbound.full_domains;
        Ok((!names.is_empty()).then_some(names))
    }
}
