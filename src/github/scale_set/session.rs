//! A scale set's message session.

use std::time::Duration;

use hyper::Method;
use hyper::header::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::recovery::{RecoveryStep, SessionFault, classify_fault, next_step, poll_pause};
use super::service::{ScaleSetClient, ServiceCall, headers};
use super::types::{ListResponse, RawMessage, ScaleSetStatistics, SessionMessage};
use crate::error::CallError;
use crate::job::lenient;
use crate::transport::{DEADLINE, HttpRequest, Response, header, secret_header};
use crate::wire::read;
use mayfly_config::github::ApiBase;

/// The deadline of a poll. The service holds one for about 50 s.
const POLL_DEADLINE: Duration = Duration::from_secs(70);
const POLL: &str = "GET scale set message";

/// The only message session of a scale set.
pub(crate) struct MessageSession {
    client: ScaleSetClient,
    set: u64,
    id: String,
    queue: MessageQueue,
    /// The ID of the last acknowledged message.
    last_message: Option<u64>,
    statistics: ScaleSetStatistics,
    /// The number of consecutive polls that returned nothing without waiting.
    failures: u32,
}

/// The result of a poll.
#[derive(Debug)]
pub(crate) enum PollResult {
    /// Nothing within the service's wait (about 50 s).
    Nothing,
    /// A message; acknowledge it once its content is recorded.
    Message(SessionMessage),
    /// The session ended (deleted, conflict, unknown): open a new one after this long.
    SessionLost(Duration),
    /// The scale set is gone: create it again, then open a new session.
    ScaleSetLost,
}

/// The message queue's URL and token.
struct MessageQueue {
    url: String,
    token: HeaderValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawSession {
    session_id: String,
    /// Sometimes empty: the service is not ready.
    #[serde(default)]
    message_queue_url: String,
    message_queue_access_token: SecretString,
    #[serde(default, deserialize_with = "lenient")]
    statistics: Option<ScaleSetStatistics>,
}

impl RawSession {
    fn queue(&self) -> Result<MessageQueue, CallError> {
        let unusable = |what: &'static str| CallError::Ambiguous {
            call: "scale set session".to_owned(),
            source: what.into(),
        };
        let url = &self.message_queue_url;
        let base = url.split('?').next().unwrap_or_default();
        if !url.is_empty() && base.parse::<ApiBase>().is_err() {
            return Err(unusable("the message queue's URL is not valid"));
        }
        let token = self.message_queue_access_token.expose_secret();
        let token = secret_header(&format!("Bearer {token}"))
            .ok_or_else(|| unusable("the message queue's token is not a valid header value"))?;
        Ok(MessageQueue { url: url.clone(), token })
    }
}

impl MessageSession {
    pub(super) fn new(
        client: ScaleSetClient,
        set: u64,
        raw: RawSession,
    ) -> Result<Self, CallError> {
        Ok(Self {
            client,
            set,
            queue: raw.queue()?,
            id: raw.session_id,
            last_message: None,
            statistics: raw.statistics.unwrap_or_default(),
            failures: 0,
        })
    }

    /// Returns the latest statistics of the service. The desired number of runners is
    /// `min(max, min_idle + assigned_jobs)`.
    pub(crate) fn statistics(&self) -> ScaleSetStatistics {
        self.statistics
    }

    /// Waits for a message, up to about 50 s. `capacity` is the maximum total number of runners; 0
    /// only while draining. Safe to cancel and to call again at once, whatever it returned: it
    /// pauses by itself after failures.
    pub(crate) async fn poll(&mut self, capacity: u32) -> Result<PollResult, CallError> {
        tokio::time::sleep(poll_pause(self.failures)).await;
        let mut refreshed = false;
        loop {
            let fault = match self.queue.url.is_empty() {
                true if refreshed => return Ok(self.empty_poll()),
                true => SessionFault::Expired,
                false => match self.receive(capacity).await {
                    Ok(response) => return self.parse(&response),
                    Err(error) => match classify_fault(&error) {
                        SessionFault::Unrelated => return Err(self.count_failure(error)),
                        fault => fault,
                    },
                },
            };
            if let Some(polled) = lost_session(fault, refreshed) {
                return Ok(polled);
            }
            refreshed = true;
            if let Err(error) = self.refresh().await {
                return lost_session(classify_fault(&error), true)
                    .ok_or_else(|| self.count_failure(error));
            }
        }
    }

    /// Acknowledges a message, so that it is not sent again. Call it once the message is recorded.
    pub(crate) async fn acknowledge(&mut self, message: u64) -> Result<(), CallError> {
        let mut result = self.delete_message(message).await;
        if matches!(result, Err(CallError::Unauthorized { .. })) {
            self.refresh().await?;
            result = self.delete_message(message).await;
        }
        match result {
            // Already gone: the response to an earlier acknowledgement was lost.
            Ok(_) | Err(CallError::NotFound { .. }) => {
                self.last_message = self.last_message.max(Some(message));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Acquires offered jobs (`JobMessageKind::Available`); returns the IDs of the acquired ones.
    pub(crate) async fn acquire(&mut self, requests: &[u64]) -> Result<Vec<u64>, CallError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        match self.acquire_once(requests).await {
            Err(CallError::Unauthorized { .. }) => {
                self.refresh().await?;
                self.acquire_once(requests).await
            }
            result => result,
        }
    }

    /// Closes the session, so that the next one need not wait for it to expire.
    pub(crate) async fn close(self) -> Result<(), CallError> {
        match self.client.call(&ServiceCall::new(Method::DELETE, self.path()).set(self.set)).await {
            Ok(_) | Err(CallError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn receive(&self, capacity: u32) -> Result<Response, CallError> {
        let url = &self.queue.url;
        let url = match self.last_message {
            Some(last) => {
                let separator = if url.contains('?') { '&' } else { '?' };
                format!("{url}{separator}lastMessageId={last}")
            }
            None => url.clone(),
        };
        let mut headers = headers(&self.queue.token, Some(self.set));
        headers.extend(header("x-scalesetmaxcapacity", &capacity.to_string()));
        let request =
            HttpRequest { method: Method::GET, url, headers, body: None, deadline: POLL_DEADLINE };
        self.client.exchange(request, POLL).await
    }

    async fn delete_message(&self, message: u64) -> Result<Response, CallError> {
        let (path, query) = match self.queue.url.split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (self.queue.url.as_str(), String::new()),
        };
        let request = HttpRequest {
            method: Method::DELETE,
            url: format!("{}/{message}{query}", path.trim_end_matches('/')),
            headers: headers(&self.queue.token, Some(self.set)),
            body: None,
            deadline: DEADLINE,
        };
        self.client.exchange(request, "DELETE scale set message").await
    }

    fn parse(&mut self, response: &Response) -> Result<PollResult, CallError> {
        if response.status == 202 {
            self.failures = 0;
            return Ok(PollResult::Nothing);
        }
        if response.body.is_empty() {
            return Ok(self.empty_poll());
        }
        let message = read::<RawMessage>(response, POLL).and_then(|raw| {
            raw.read()
                .map_err(|error| CallError::Ambiguous { call: POLL.into(), source: error.into() })
        });
        match message {
            Ok(message) => {
                self.failures = 0;
                self.statistics = message.statistics.unwrap_or(self.statistics);
                Ok(PollResult::Message(message))
            }
            Err(error) => Err(self.count_failure(error)),
        }
    }

    fn empty_poll(&mut self) -> PollResult {
        self.failures = self.failures.saturating_add(1);
        PollResult::Nothing
    }

    fn count_failure(&mut self, error: CallError) -> CallError {
        self.failures = self.failures.saturating_add(1);
        error
    }

    async fn acquire_once(&self, requests: &[u64]) -> Result<Vec<u64>, CallError> {
        let path = format!("_apis/runtime/runnerscalesets/{}/acquirejobs", self.set);
        let call = ServiceCall::new(Method::POST, path)
            .set(self.set)
            .token(&self.queue.token)
            .body(json!(requests));
        Ok(self.client.read::<ListResponse<u64>>(call).await?.value)
    }

    async fn refresh(&mut self) -> Result<(), CallError> {
        let call = ServiceCall::new(Method::PATCH, self.path()).set(self.set);
        let raw: RawSession = self.client.read(call).await?;
        self.queue = raw.queue()?;
        self.statistics = raw.statistics.unwrap_or(self.statistics);
        Ok(())
    }

    fn path(&self) -> String {
        format!("_apis/runtime/runnerscalesets/{}/sessions/{}", self.set, self.id)
    }
}

/// Returns how a fault ends the session; `None` if a refresh may fix it.
fn lost_session(fault: SessionFault, refreshed: bool) -> Option<PollResult> {
    match next_step(fault, refreshed) {
        RecoveryStep::Reopen(wait) => Some(PollResult::SessionLost(wait)),
        RecoveryStep::RemakeSet => Some(PollResult::ScaleSetLost),
        RecoveryStep::Refresh | RecoveryStep::Report => None,
    }
}
