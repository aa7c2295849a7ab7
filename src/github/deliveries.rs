//! Webhook deliveries that did not arrive, and asking for them again.

use std::time::SystemTime;

use hyper::Method;
use serde::Deserialize;

use super::classify::next_page;
use super::client::Client;
use super::error::CallError;
use super::job::{lenient, time};
use super::settings::Hook;
use super::target::Scope;
use super::transport::Answer;
use super::wire::{Ask, read};

/// The most pages of 100 deliveries that are read.
const MOST_PAGES: usize = 10;
/// The right that an organisation's or a repository's hook needs.
const RIGHT: &str =
    "Webhooks: write (App, fine-grained token), scope admin:org_hook or admin:repo_hook (classic)";

/// One try of GitHub's to deliver an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The try's number, for [`Client::redeliver`].
    pub id: u64,
    /// The event's GUID: the same for each try (and in the `X-GitHub-Delivery` header).
    pub guid: String,
    /// The event's kind, e.g. `workflow_job`.
    pub event: String,
    /// When it was tried.
    pub delivered_at: Option<SystemTime>,
    /// Whether this try is itself a redelivery.
    pub redelivery: bool,
    /// What the receiver answered; 0 if nothing did.
    pub status_code: u16,
}

impl Delivery {
    /// Whether the receiver took it (any 2xx).
    pub fn arrived(&self) -> bool {
        (200..300).contains(&self.status_code)
    }
}

#[derive(Deserialize)]
struct RawDelivery {
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

impl From<RawDelivery> for Delivery {
    fn from(raw: RawDelivery) -> Self {
        Self {
            id: raw.id,
            guid: raw.guid,
            event: raw.event,
            delivered_at: raw.delivered_at.as_deref().and_then(time),
            redelivery: raw.redelivery,
            status_code: raw.status_code.unwrap_or(0),
        }
    }
}

impl Client {
    /// What the configured hook tried to deliver since then, newest first; bounded (1,000).
    /// Nothing without a configured hook. GitHub keeps 3 days.
    pub async fn deliveries(&self, since: SystemTime) -> Result<Vec<Delivery>, CallError> {
        let Some(root) = self.hook_path() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let mut next = Some(format!("{root}?per_page=100"));
        for _ in 0..MOST_PAGES {
            let Some(path) = next.take() else { break };
            let ask = Ask::get(path).needs(RIGHT);
            let answer = self.ask_of_hook(&ask).await?;
            let page: Vec<RawDelivery> = read(&answer, &ask.name())?;
            let page = page.into_iter().map(Delivery::from);
            let before = found.len();
            let mut total = 0;
            found.extend(page.inspect(|_| total += 1).filter(|delivery| {
                delivery.delivered_at.is_none_or(|delivered| delivered >= since)
            }));
            // They come newest first: one that is too old ends the list.
            if found.len() - before < total {
                break;
            }
            next = next_page(&answer.headers).filter(|page| self.0.wire.is_ours(page));
        }
        Ok(found)
    }

    /// Asks GitHub to deliver that event again.
    pub async fn redeliver(&self, id: u64) -> Result<(), CallError> {
        let Some(root) = self.hook_path() else { return Ok(()) };
        let ask =
            Ask { method: Method::POST, ..Ask::get(format!("{root}/{id}/attempts")) }.needs(RIGHT);
        self.ask_of_hook(&ask).await.map(drop)
    }

    fn hook_path(&self) -> Option<String> {
        match (self.0.hook?, &self.0.target.scope) {
            (Hook::App, _) => Some("/app/hook/deliveries".to_owned()),
            (Hook::Id(_), Scope::Enterprise(_)) => None,
            (Hook::Id(id), _) => Some(format!("{}/hooks/{id}/deliveries", self.0.target.path())),
        }
    }

    /// An App's own hook is asked for by the App itself, any other by its installation.
    async fn ask_of_hook(&self, ask: &Ask) -> Result<Answer, CallError> {
        match self.0.hook {
            Some(Hook::App) => self.0.authority.ask_as_app(&self.0.wire, ask).await,
            _ => self.ask(ask).await,
        }
    }
}
