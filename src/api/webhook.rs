//! The listener for GitHub's webhooks.
//!
//! It checks the signature and passes deliveries on, unparsed; what they mean is for others to
//! say. GitHub waits ten seconds for an answer and never sends a delivery again by itself, so the
//! answer never waits for anything but the body: what can't be taken is refused, and polling or a
//! redelivery brings it later.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::serve;
use crate::telemetry::metrics::DELIVERIES;

/// The path that is listened on.
pub const PATH: &str = "/webhook";
/// How many deliveries wait for the daemon at most.
pub const CAPACITY: usize = 256;
/// GitHub sends no more (its documentation of webhook payloads).
const MAX_BODY: usize = 25 << 20;
/// What all bodies that are being read may have together is this many times [`MAX_BODY`].
const CONNECTIONS: usize = 16;
/// How long a body may take: GitHub gives up after ten seconds.
const BODY_TIME: Duration = Duration::from_secs(10);

/// A delivery whose signature is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Its GUID (`X-GitHub-Delivery`), the same when it is delivered again.
    pub id: String,
    /// What it is about (`X-GitHub-Event`).
    pub event: String,
    /// The body as it was signed.
    pub body: Bytes,
}

/// Says whether a signature (`X-Hub-Signature-256`) is that of a body, in constant time.
pub type Verify = Arc<dyn Fn(&[u8], &str) -> bool + Send + Sync>;

#[derive(Clone)]
struct Receiver {
    verify: Verify,
    deliveries: mpsc::Sender<Delivery>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Takes deliveries until `stop`.
pub async fn serve(
    listener: TcpListener,
    verify: Verify,
    deliveries: mpsc::Sender<Delivery>,
    stop: CancellationToken,
) {
    let router =
        Router::new().route(PATH, post(receive)).with_state(Receiver { verify, deliveries });
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

async fn receive(receiver: State<Receiver>, request: Request) -> StatusCode {
    let status = take(receiver, request).await;
    DELIVERIES.add([outcome(status)], 1);
    status
}

/// What an answer means, in a word.
fn outcome(status: StatusCode) -> &'static str {
    match status {
        StatusCode::ACCEPTED => "accepted",
        StatusCode::UNAUTHORIZED => "wrong_signature",
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        StatusCode::REQUEST_TIMEOUT => "too_slow",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "busy",
        _ => "malformed",
    }
}

async fn take(State(receiver): State<Receiver>, request: Request) -> StatusCode {
    let (head, body) = request.into_parts();
    let text = |name| header(&head.headers, name);
    let (Some(id), Some(event)) = (text("x-github-delivery"), text("x-github-event")) else {
        return StatusCode::BAD_REQUEST;
    };
    // Without a signature it isn't even read.
    let Some(signature) = text("x-hub-signature-256") else { return StatusCode::UNAUTHORIZED };
    let body = match read(&head.headers, body).await {
        Ok(body) => body,
        Err(status) => return status,
    };
    if !(receiver.verify)(&body, &signature) {
        tracing::warn!(delivery = id, "a webhook delivery with a wrong signature");
        return StatusCode::UNAUTHORIZED;
    }
    match receiver.deliveries.try_send(Delivery { id, event, body }) {
        Ok(()) => StatusCode::ACCEPTED,
        Err(mpsc::error::TrySendError::Full(_)) => StatusCode::TOO_MANY_REQUESTS,
        Err(mpsc::error::TrySendError::Closed(_)) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, StatusCode> {
    let length = header(headers, "content-length").and_then(|text| text.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        // Too long, or the connection was cut; then nobody reads this.
        Ok(Err(_)) => Err(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => Err(StatusCode::REQUEST_TIMEOUT),
    }
}

/// A header's value, if it is short plain text.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (1..=200).contains(&text.len()).then(|| text.to_owned())
}
