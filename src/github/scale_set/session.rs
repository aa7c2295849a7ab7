//! A scale set's message session.

use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::recover::{Fault, Step, fault, pause, step};
use super::service::{Call, Client, headers};
use super::types::{Listed, Message, RawMessage, Statistics};
use crate::github::error::CallError;
use crate::github::job::lenient;
use crate::github::target::ApiBase;
use crate::github::transport::{Answer, DEADLINE, Question, header, secret_header};
use crate::github::wire::read;

/// The service holds a poll for about 50 s.
const POLL_DEADLINE: Duration = Duration::from_secs(70);
const POLL: &str = "GET scale set message";

/// The one session of a scale set.
pub struct Session {
    client: Client,
    set: u64,
    id: String,
    queue: Queue,
    /// The last message that was acknowledged.
    last: Option<u64>,
    statistics: Statistics,
    /// Polls in a row that brought nothing and did not wait either.
    failures: u32,
}

/// What a poll brought.
#[derive(Debug)]
pub enum Polled {
    /// Nothing within the service's wait (about 50 s).
    Nothing,
    /// A message; to be acknowledged once what it says is recorded.
    Message(Message),
    /// The session is gone (deleted, conflict, unknown): open a new one, after this long.
    SessionLost(Duration),
    /// The scale set is gone: make it again, then open a new session.
    ScaleSetLost,
}

/// Where messages are, and what for.
struct Queue {
    address: String,
    token: HeaderValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSession {
    session_id: String,
    /// Seen empty: the service was not ready.
    #[serde(default)]
    message_queue_url: String,
    message_queue_access_token: SecretString,
    #[serde(default, deserialize_with = "lenient")]
    statistics: Option<Statistics>,
}

impl RawSession {
    fn queue(&self) -> Result<Queue, CallError> {
        let unusable = |what: &'static str| CallError::Ambiguous {
            call: "scale set session".to_owned(),
            source: what.into(),
        };
        let address = &self.message_queue_url;
        let plain = address.split('?').next().unwrap_or_default();
        if !address.is_empty() && plain.parse::<ApiBase>().is_err() {
            return Err(unusable("the message queue's address can't be used"));
        }
        let token = self.message_queue_access_token.expose_secret();
        let token = secret_header(&format!("Bearer {token}"))
            .ok_or_else(|| unusable("the queue's token is no header's value"))?;
        Ok(Queue { address: address.clone(), token })
    }
}

impl Session {
    pub(super) fn new(client: Client, set: u64, raw: RawSession) -> Result<Self, CallError> {
        Ok(Self {
            client,
            set,
            queue: raw.queue()?,
            id: raw.session_id,
            last: None,
            statistics: raw.statistics.unwrap_or_default(),
            failures: 0,
        })
    }

    /// What the service counted when the session was opened or last heard of. The wanted number of
    /// runners is `min(max, min_idle + assigned_jobs)`.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// Waits for a message, up to about 50 s. `capacity` is the most runners that there may be
    /// (a total); 0 only while draining. Safe to drop and to call again at once, whatever it
    /// answered: it pauses by itself after failures.
    pub async fn poll(&mut self, capacity: u32) -> Result<Polled, CallError> {
        tokio::time::sleep(pause(self.failures)).await;
        let mut refreshed = false;
        loop {
            let fault = match self.queue.address.is_empty() {
                true if refreshed => return Ok(self.fruitless()),
                true => Fault::Expired,
                false => match self.receive(capacity).await {
                    Ok(answer) => return self.received(&answer),
                    Err(error) => match fault(&error) {
                        Fault::Elsewhere => return Err(self.failed(error)),
                        fault => fault,
                    },
                },
            };
            if let Some(polled) = lost(fault, refreshed) {
                return Ok(polled);
            }
            refreshed = true;
            if let Err(error) = self.refresh().await {
                return lost(self::fault(&error), true).ok_or_else(|| self.failed(error));
            }
        }
    }

    /// Says that a message need not come again. Call once it is recorded.
    pub async fn acknowledge(&mut self, message: u64) -> Result<(), CallError> {
        let mut end = self.delete_message(message).await;
        if matches!(end, Err(CallError::Unauthorized { .. })) {
            self.refresh().await?;
            end = self.delete_message(message).await;
        }
        match end {
            // Gone already: an acknowledgement whose answer was lost.
            Ok(_) | Err(CallError::NotFound { .. }) => {
                self.last = self.last.max(Some(message));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes jobs that were offered (`ItemKind::Available`); answers the ids that were given.
    pub async fn acquire(&mut self, requests: &[u64]) -> Result<Vec<u64>, CallError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        match self.acquire_once(requests).await {
            Err(CallError::Unauthorized { .. }) => {
                self.refresh().await?;
                self.acquire_once(requests).await
            }
            end => end,
        }
    }

    /// Ends the session, so that the next one need not wait for this one's end.
    pub async fn close(self) -> Result<(), CallError> {
        match self.client.call(&Call::new(Method::DELETE, self.path()).set(self.set)).await {
            Ok(_) | Err(CallError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn receive(&self, capacity: u32) -> Result<Answer, CallError> {
        let address = &self.queue.address;
        let address = match self.last {
            Some(last) => {
                let separator = if address.contains('?') { '&' } else { '?' };
                format!("{address}{separator}lastMessageId={last}")
            }
            None => address.clone(),
        };
        let mut headers = headers(&self.queue.token, Some(self.set));
        headers.extend(header("x-scalesetmaxcapacity", &capacity.to_string()));
        let question =
            Question { method: Method::GET, address, headers, body: None, deadline: POLL_DEADLINE };
        self.client.exchange(question, POLL).await
    }

    async fn delete_message(&self, message: u64) -> Result<Answer, CallError> {
        let (path, query) = match self.queue.address.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (self.queue.address.as_str(), String::new()),
        };
        let question = Question {
            method: Method::DELETE,
            address: format!("{}/{message}{query}", path.trim_end_matches('/')),
            headers: headers(&self.queue.token, Some(self.set)),
            body: None,
            deadline: DEADLINE,
        };
        self.client.exchange(question, "DELETE scale set message").await
    }

    fn received(&mut self, answer: &Answer) -> Result<Polled, CallError> {
        if answer.status == 202 {
            self.failures = 0;
            return Ok(Polled::Nothing);
        }
        if answer.body.is_empty() {
            return Ok(self.fruitless());
        }
        let message = read::<RawMessage>(answer, POLL).and_then(|raw| {
            raw.read()
                .map_err(|error| CallError::Ambiguous { call: POLL.into(), source: error.into() })
        });
        match message {
            Ok(message) => {
                self.failures = 0;
                self.statistics = message.statistics.unwrap_or(self.statistics);
                Ok(Polled::Message(message))
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    fn fruitless(&mut self) -> Polled {
        self.failures = self.failures.saturating_add(1);
        Polled::Nothing
    }

    fn failed(&mut self, error: CallError) -> CallError {
        self.failures = self.failures.saturating_add(1);
        error
    }

    async fn acquire_once(&self, requests: &[u64]) -> Result<Vec<u64>, CallError> {
        let path = format!("_apis/runtime/runnerscalesets/{}/acquirejobs", self.set);
        let call = Call::new(Method::POST, path)
            .set(self.set)
            .token(&self.queue.token)
            .body(json!(requests));
        Ok(self.client.read::<Listed<u64>>(call).await?.value)
    }

    async fn refresh(&mut self) -> Result<(), CallError> {
        let call = Call::new(Method::PATCH, self.path()).set(self.set);
        let raw: RawSession = self.client.read(call).await?;
        self.queue = raw.queue()?;
        self.statistics = raw.statistics.unwrap_or(self.statistics);
        Ok(())
    }

    fn path(&self) -> String {
        format!("_apis/runtime/runnerscalesets/{}/sessions/{}", self.set, self.id)
    }
}

/// Whether a fault ends the session, and how; `None` if a refresh may mend it.
fn lost(fault: Fault, refreshed: bool) -> Option<Polled> {
    match step(fault, refreshed) {
        Step::Reopen(wait) => Some(Polled::SessionLost(wait)),
        Step::RemakeSet => Some(Polled::ScaleSetLost),
        Step::Refresh | Step::Report => None,
    }
}
