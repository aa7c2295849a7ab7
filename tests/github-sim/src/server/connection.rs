//! Requests: reads them, has them handled, and holds long polls.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{Request as HttpRequest, Response};
use axum::routing::get;
use futures_util::stream;
use tokio::time::{Instant, sleep, timeout_at};

use super::SharedState;
use crate::faults::Fault;
use crate::http::{self, Attempt, HandlerOutcome, Reply, ReplyOrWait, Request, bodies};
use crate::state::State;
use crate::time;

/// The maximum size of a request's body.
const MAX_BODY_BYTES: usize = 8 << 20;

/// Returns the router. All calls go to one handler, which dispatches them itself.
pub(super) fn router(shared: Arc<SharedState>) -> Router {
    let downloads = format!("{}{{file}}", bodies::DOWNLOADS);
    Router::new().route(&downloads, get(download)).fallback(serve).with_state(shared)
}

/// Serves the runner archive to callers with its download token. Not part of the API, so neither
/// counted nor recorded.
async fn download(
    Extracted(shared): Extracted<Arc<SharedState>>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let runner = shared.change_without_notify(|state, _| state.settings.runner.clone());
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    match runner {
        Some(runner) if header == Some(&format!("Bearer {}", runner.token)) => {
            Response::new(Body::from(runner.bytes))
        }
        _ => respond(&shared, Reply::error(404, "Not Found"), None),
    }
}

async fn serve(
    Extracted(shared): Extracted<Arc<SharedState>>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY_BYTES).await else {
        return respond(&shared, Reply::error(400, "can't read the body"), None);
    };
    let header = |(name, value): (&axum::http::HeaderName, &axum::http::HeaderValue)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    let request = Request {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers.iter().map(header).collect(),
        body: body.to_vec(),
    };
    let (reply, fault) = reply(&shared, &request).await;
    if fault == Some(Fault::LostAnswer) {
        let hold = shared.change(|state, _| state.settings.lost_answer_hold);
        sleep(Duration::from_millis(hold)).await;
    }
    respond(&shared, reply, fault)
}

/// Returns the reply; waits for it if the call is a long poll.
async fn reply(shared: &SharedState, request: &Request) -> (Reply, Option<Fault>) {
    let mut changes = shared.subscribe();
    let mut attempt = Attempt { is_first: true, is_final: false };
    let hold = shared.change(|state, _| state.settings.poll_hold);
    let deadline = Instant::now() + Duration::from_millis(hold);
    let mut fault = None;
    loop {
        changes.borrow_and_update();
        let handle = |state: &mut State, now| http::handle(state, request, attempt, now);
        let outcome = if request.method == "GET" {
            shared.change_without_notify(handle)
        } else {
            shared.change(handle)
        };
        let HandlerOutcome { reply, fault: drawn } = outcome;
        fault = fault.or(drawn);
        match reply {
            ReplyOrWait::Reply(reply) => return (reply, fault),
            ReplyOrWait::Wait => {}
        }
        attempt.is_first = false;
        // The change may not concern this poll; handle the request again.
        attempt.is_final = !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())));
    }
}

/// Builds the HTTP response: complete, or truncated by a fault.
fn respond(shared: &SharedState, reply: Reply, fault: Option<Fault>) -> Response<Body> {
    let length = reply.body.len();
    let body = match fault {
        Some(Fault::CutBody | Fault::LostAnswer) => truncated(&reply.body),
        _ => Body::from(reply.body),
    };
    let mut response = Response::new(body);
    if let Ok(status) = axum::http::StatusCode::from_u16(reply.status) {
        *response.status_mut() = status;
    }
    let id = shared.change_without_notify(|state, _| state.random_text(8));
    let mut headers = reply.headers;
    headers.push(("x-github-request-id", id));
    headers.push(("server", "github-sim".to_owned()));
    headers.push(("date", time::header(shared.now())));
    if matches!(fault, Some(Fault::CutBody | Fault::LostAnswer)) {
        // At least one byte is missing, even without a body.
        headers.push(("content-length", (length + 1).to_string()));
    }
    for (name, value) in headers {
        if let Ok(value) = axum::http::HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// Returns the first half of a body, followed by an error that closes the connection.
fn truncated(body: &str) -> Body {
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let error = std::io::Error::other("truncated by a fault");
    Body::from_stream(stream::iter([Ok(half), Err(error)]))
}
