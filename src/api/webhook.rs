//! The listener for GitHub's webhooks.
//!
//! It checks the signature and passes deliveries on unparsed. GitHub never sends a delivery again
//! by itself: after a 202 response, the effect of a delivery must survive the daemon's end at any
//! moment. So the response waits until the effect is recorded, for a little less than the ten
//! seconds that GitHub waits. Everything else is rejected with a cause that GitHub shows beside the
//! delivery; polling or a redelivery makes up for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::serve;
use mayfly_telemetry::metrics::DELIVERIES;

/// The path of the webhook.
pub const PATH: &str = "/webhook";
/// The maximum number of deliveries that wait for the daemon.
pub const CAPACITY: usize = 256;
/// The maximum size of a payload (GitHub's documentation of webhook payloads).
const MAX_BODY: usize = 25 << 20;
/// The maximum number of connections. Together their bodies take at most this many times
/// [`MAX_BODY`].
const CONNECTIONS: usize = 16;
/// How long receiving a body may take. GitHub gives up after ten seconds.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long recording the effect may take.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(8);
/// GitHub's default content type of a webhook.
const FORM_TYPE: &str = "application/x-www-form-urlencoded";

/// A delivery with a valid signature.
#[derive(Debug)]
pub struct WebhookDelivery {
    /// The GUID (`X-GitHub-Delivery`). A redelivery has the same one.
    pub id: String,
    /// The event type (`X-GitHub-Event`).
    pub event: String,
    /// The payload: JSON.
    pub body: Bytes,
    /// Receives the outcome. Dropping it means that the delivery was not processed.
    pub responder: oneshot::Sender<DeliveryOutcome>,
}

/// The outcome of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// Its effect is recorded, now or earlier, or it has none.
    Accepted,
    /// The payload is malformed, with the reason.
    Malformed(String),
}

/// The response to a rejected delivery.
type Rejection = (StatusCode, String);

/// Returns whether a signature (`X-Hub-Signature-256`) matches a body, in constant time.
pub type Verify = Arc<dyn Fn(&[u8], &str) -> bool + Send + Sync>;

#[derive(Clone)]
struct Receiver {
    verify: Verify,
    deliveries: mpsc::Sender<WebhookDelivery>,
}

impl fmt::Debug for Receiver {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// Serves the webhook until `stop`.
pub async fn serve(
    listener: TcpListener,
    verify: Verify,
    deliveries: mpsc::Sender<WebhookDelivery>,
    stop: CancellationToken,
) {
    let router =
        Router::new().route(PATH, post(receive)).with_state(Receiver { verify, deliveries });
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

async fn receive(receiver: State<Receiver>, request: Request) -> Response {
    let result = accept(receiver, request).await;
    let (status, text) = result.err().unwrap_or((StatusCode::ACCEPTED, String::new()));
    DELIVERIES.add([outcome(status)], 1);
    (status, text).into_response()
}

/// Returns the metric label of a response.
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

async fn accept(State(receiver): State<Receiver>, request: Request) -> Result<(), Rejection> {
    let (head, body) = request.into_parts();
    let text = |name| header(&head.headers, name);
    let (Some(id), Some(event)) = (text("x-github-delivery"), text("x-github-event")) else {
        let why = "missing header X-GitHub-Delivery or X-GitHub-Event: not a GitHub webhook";
        return Err((StatusCode::BAD_REQUEST, why.to_owned()));
    };
    // Without a signature, the body is not read.
    let Some(signature) = text("x-hub-signature-256") else {
        let why = "missing header X-Hub-Signature-256: set the webhook's secret at GitHub";
        return Err((StatusCode::UNAUTHORIZED, why.to_owned()));
    };
    let body = read(&head.headers, body).await?;
    if !(receiver.verify)(&body, &signature) {
        tracing::warn!(delivery = id, "rejected a webhook delivery: wrong signature");
        let why = "wrong signature: GitHub and github.webhook must have the same secret";
        return Err((StatusCode::UNAUTHORIZED, why.to_owned()));
    }
    let body = payload(&head.headers, body).inspect_err(|(_, why)| {
        tracing::warn!(delivery = id, "rejected a webhook delivery: {why}");
    })?;
    let (responder, response) = oneshot::channel();
    receiver.deliveries.try_send(WebhookDelivery { id, event, body, responder }).map_err(
        |error| match error {
            mpsc::error::TrySendError::Full(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "too many deliveries are waiting".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => shutting_down(),
        },
    )?;
    match tokio::time::timeout(EFFECT_TIMEOUT, response).await {
        Ok(Ok(DeliveryOutcome::Accepted)) => Ok(()),
        Ok(Ok(DeliveryOutcome::Malformed(why))) => Err((StatusCode::BAD_REQUEST, why)),
        Ok(Err(_)) => Err(shutting_down()),
        Err(_) => Err((
            StatusCode::SERVICE_UNAVAILABLE,
            "recording the delivery took too long".to_owned(),
        )),
    }
}

fn shutting_down() -> Rejection {
    (StatusCode::SERVICE_UNAVAILABLE, "the daemon is shutting down".to_owned())
}

/// Returns the JSON of a body: the body itself, or the field `payload` of a form.
fn payload(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Rejection> {
    let kind = headers.get("content-type").map_or("application/json", |kind| {
        // A value that is not text matches no known type.
        kind.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim()
    });
    let kind = kind.to_ascii_lowercase();
    match kind.as_str() {
        FORM_TYPE => {
            let fields = form_urlencoded::parse(&body);
            let mut payloads = fields.filter(|(name, _)| name == "payload");
            match (payloads.next(), payloads.next()) {
                (Some((_, json)), None) => Ok(json.into_owned().into()),
                _ => Err((
                    StatusCode::BAD_REQUEST,
                    "the form must have exactly one field \"payload\" with the event as JSON"
                        .to_owned(),
                )),
            }
        }
        "application/json" => Ok(body),
        kind if kind.starts_with("application/") && kind.ends_with("+json") => Ok(body),
        _ => Err((
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!(
                "unsupported content type: set the webhook's to application/json or {FORM_TYPE}"
            ),
        )),
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Rejection> {
    let too_large =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {MAX_BODY} bytes"));
    let length = header(headers, "content-length").and_then(|text| text.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        // Too large, or the connection broke; then the response reaches nobody.
        Ok(Err(_)) => Err(too_large()),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "receiving the body took too long".to_owned())),
    }
}

/// Returns a header's value if it is text of 1 to 200 bytes.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (1..=200).contains(&text.len()).then(|| text.to_owned())
}
