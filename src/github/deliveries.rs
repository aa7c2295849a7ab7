//! Webhook deliveries: listing attempts and requesting redelivery.

use std::time::SystemTime;

use hyper::Method;
use serde::Deserialize;

use super::classify::next_page;
use super::client::GitHubClient;
use super::error::CallError;
use super::job::{lenient, parse_time};
use super::settings::Hook;
use super::transport::Response;
use super::wire::{ApiCall, read};
use mayfly_config::github::Scope;

/// The maximum number of pages of 100 deliveries to read.
const MAX_PAGES: usize = 10;
/// The permission that an organization's or a repository's webhook needs.
const PERMISSION: &str =
    "Webhooks: write (App, fine-grained token), scope admin:org_hook or admin:repo_hook (classic)";

/// One attempt of GitHub to deliver an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryAttempt {
    /// The attempt's ID, for [`GitHubClient::redeliver`].
    pub id: u64,
    /// The event's GUID: the same for each attempt, and in the `X-GitHub-Delivery` header.
    pub guid: String,
    /// The event's type, e.g. `workflow_job`.
    pub event: String,
    /// When the attempt was made.
    pub delivered_at: Option<SystemTime>,
    /// Whether this attempt is a redelivery.
    pub redelivery: bool,
    /// The receiver's response status; 0 without a response.
    pub status_code: u16,
}

impl DeliveryAttempt {
    /// Whether the receiver accepted it (any 2xx).
    pub fn arrived(&self) -> bool {
        (200..300).contains(&self.status_code)
    }
}

#[derive(Deserialize)]
struct RawDeliveryAttempt {
    id: u64,
    guid: String,
    #[serde(default)]
    event: String,
    #[serde(default, deserialize_with = "lenient")]
    delivered_at: Option<String>,
    #[serde(default)]
    redelivery: bool,
    #[serde(default, deserialize_with = "lenient")]
    status_code: Option<u16>,
}

impl From<RawDeliveryAttempt> for DeliveryAttempt {
    fn from(raw: RawDeliveryAttempt) -> Self {
        Self {
            id: raw.id,
            guid: raw.guid,
            event: raw.event,
            delivered_at: raw.delivered_at.as_deref().and_then(parse_time),
            redelivery: raw.redelivery,
            status_code: raw.status_code.unwrap_or(0),
        }
    }
}

impl GitHubClient {
    /// Lists the configured webhook's delivery attempts since `since`, newest first, at most 1,000.
    /// Empty without a configured webhook. GitHub keeps them for 3 days.
    pub async fn deliveries(&self, since: SystemTime) -> Result<Vec<DeliveryAttempt>, CallError> {
        let Some(root) = self.hook_path() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut next = Some(format!("{root}?per_page=100"));
        for _ in 0..MAX_PAGES {
            let Some(path) = next.take() else { break };
            let call = ApiCall::get(path).needs(PERMISSION);
            let response = self.call_hook(&call).await?;
            let page: Vec<RawDeliveryAttempt> = read(&response, &call.name())?;
            let page = page.into_iter().map(DeliveryAttempt::from);
            let before = found.len();
            let mut total = 0;
            found.extend(page.inspect(|_| total += 1).filter(|delivery| {
                delivery.delivered_at.is_none_or(|delivered| delivered >= since)
            }));
            // They are listed newest first: one that is too old ends the list.
            if found.len() - before < total {
                break;
            }
            next = next_page(&response.headers).filter(|page| self.0.wire.is_api_url(page));
        }
        Ok(found)
    }

    /// Requests redelivery of an event.
    pub async fn redeliver(&self, id: u64) -> Result<(), CallError> {
        let Some(root) = self.hook_path() else { return Ok(()) };
        let call =
            ApiCall { method: Method::POST, ..ApiCall::get(format!("{root}/{id}/attempts")) }
                .needs(PERMISSION);
        self.call_hook(&call).await.map(drop)
    }

    fn hook_path(&self) -> Option<String> {
        match (self.0.hook?, &self.0.target.scope) {
            (Hook::App, _) => Some("/app/hook/deliveries".to_owned()),
            (Hook::Id(_), Scope::Enterprise(_)) => None,
            (Hook::Id(id), _) => Some(format!("{}/hooks/{id}/deliveries", self.0.target.path())),
        }
    }

    /// Sends a call about the webhook: as the App itself for its own webhook, otherwise as usual.
    async fn call_hook(&self, call: &ApiCall) -> Result<Response, CallError> {
        match self.0.hook {
            Some(Hook::App) => self.0.authorizer.call_as_app(&self.0.wire, call).await,
            _ => self.call(call).await,
        }
    }
}
