//! The listener for GitHub's webhooks.
//!
//! It checks the signature and passes deliveries on, unparsed; what they mean is for others to
//! say. GitHub never sends a delivery again by itself: what is answered with 202 is taken, and its
//! effect survives the daemon's end at any moment. So the answer waits until the effect is
//! recorded, a little less than the ten seconds that GitHub waits. What can't be taken is refused
//! with a cause that GitHub shows beside the delivery; polling or a redelivery brings it later.

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

/// How long the effect may take to be recorded.
const EFFECT_TIME: Duration = Duration::from_secs(8);
/// GitHub's default content type of a webhook.
const FORM: &str = "application/x-www-form-urlencoded";

/// A delivery whose signature is right.
#[derive(Debug)]
pub struct Delivery {
    /// Its GUID (`X-GitHub-Delivery`), the same when it is delivered again.
    pub id: String,
    /// What it is about (`X-GitHub-Event`).
    pub event: String,
    /// What it says: JSON.
    pub body: Bytes,
    /// Where it is told what became of it. Dropped, it was not taken.
    pub answer: oneshot::Sender<Answer>,
}

/// What became of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It has had its effect, now or earlier, or there is none for it to have.
    Taken,
    /// It can't be understood: why.
    Malformed(String),
}

/// A delivery that is not taken: what GitHub is told.
type Refused = (StatusCode, String);

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

async fn receive(receiver: State<Receiver>, request: Request) -> Response {
    let answer = take(receiver, request).await;
    let (status, text) = answer.err().unwrap_or((StatusCode::ACCEPTED, String::new()));
    DELIVERIES.add([outcome(status)], 1);
    (status, text).into_response()
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

async fn take(State(receiver): State<Receiver>, request: Request) -> Result<(), Refused> {
    let (head, body) = request.into_parts();
    let text = |name| header(&head.headers, name);
    let (Some(id), Some(event)) = (text("x-github-delivery"), text("x-github-event")) else {
        let why = "X-GitHub-Delivery or X-GitHub-Event is missing: this is for GitHub's webhooks";
        return Err((StatusCode::BAD_REQUEST, why.to_owned()));
    };
    // Without a signature it isn't even read.
    let Some(signature) = text("x-hub-signature-256") else {
        let why = "X-Hub-Signature-256 is missing: set the webhook's secret at GitHub";
        return Err((StatusCode::UNAUTHORIZED, why.to_owned()));
    };
    let body = read(&head.headers, body).await?;
    if !(receiver.verify)(&body, &signature) {
        tracing::warn!(delivery = id, "a webhook delivery with a wrong signature");
        let why = "the signature is wrong: GitHub and github.webhook must have the same secret";
        return Err((StatusCode::UNAUTHORIZED, why.to_owned()));
    }
    let body = payload(&head.headers, body).inspect_err(|(_, why)| {
        tracing::warn!(delivery = id, "a webhook delivery is refused: {why}");
    })?;
    let (answer, answered) = oneshot::channel();
    receiver.deliveries.try_send(Delivery { id, event, body, answer }).map_err(
        |error| match error {
            mpsc::error::TrySendError::Full(_) => {
                (StatusCode::TOO_MANY_REQUESTS, "too many deliveries wait".to_owned())
            }
            mpsc::error::TrySendError::Closed(_) => ending(),
        },
    )?;
    match tokio::time::timeout(EFFECT_TIME, answered).await {
        Ok(Ok(Answer::Taken)) => Ok(()),
        Ok(Ok(Answer::Malformed(why))) => Err((StatusCode::BAD_REQUEST, why)),
        Ok(Err(_)) => Err(ending()),
        Err(_) => {
            Err((StatusCode::SERVICE_UNAVAILABLE, "its effect was not recorded in time".to_owned()))
        }
    }
}

fn ending() -> Refused {
    (StatusCode::SERVICE_UNAVAILABLE, "the daemon is about to end".to_owned())
}

/// The JSON of a body: the body itself, or the `payload` of a form.
fn payload(headers: &HeaderMap, body: Bytes) -> Result<Bytes, Refused> {
    let kind = headers.get("content-type").map_or("application/json", |kind| {
        // What is no text is no type that is known.
        kind.to_str().unwrap_or("?").split(';').next().unwrap_or_default().trim()
    });
    let kind = kind.to_ascii_lowercase();
    match kind.as_str() {
        FORM => {
            let fields = form_urlencoded::parse(&body);
            let mut payloads = fields.filter(|(name, _)| name == "payload");
            match (payloads.next(), payloads.next()) {
                (Some((_, json)), None) => Ok(json.into_owned().into()),
                _ => Err((
                    StatusCode::BAD_REQUEST,
                    "a form must have one field \"payload\" with the event as JSON".to_owned(),
                )),
            }
        }
        "application/json" => Ok(body),
        kind if kind.starts_with("application/") && kind.ends_with("+json") => Ok(body),
        _ => Err((
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("the content type must be application/json or {FORM}: set it at the webhook"),
        )),
    }
}

async fn read(headers: &HeaderMap, body: Body) -> Result<Bytes, Refused> {
    let long = || (StatusCode::PAYLOAD_TOO_LARGE, format!("a body has {MAX_BODY} bytes at most"));
    let length = header(headers, "content-length").and_then(|text| text.parse::<usize>().ok());
    if length.is_some_and(|length| length > MAX_BODY) {
        return Err(long());
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(body, MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        // Too long, or the connection was cut; then nobody reads this.
        Ok(Err(_)) => Err(long()),
        Err(_) => Err((StatusCode::REQUEST_TIMEOUT, "the body took too long".to_owned())),
    }
}

/// A header's value, if it is short plain text.
fn header(headers: &HeaderMap, name: &str) -> Option<String> {
    let text = headers.get(name)?.to_str().ok()?;
    (1..=200).contains(&text.len()).then(|| text.to_owned())
}
