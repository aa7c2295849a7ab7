//! One connection's requests: read, answered from the state, held while there is nothing to say.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State as Extracted;
use axum::http::{Request as HttpRequest, Response};
use axum::routing::get;
use futures_util::stream;
use tokio::time::{Instant, sleep, timeout_at};

use super::Shared;
use crate::faults::Fault;
use crate::http::{self, Answer, Asking, Outcome, Reply, Request, bodies};
use crate::state::State;
use crate::time;

/// A larger body of a request is refused, in bytes.
const LARGEST_BODY: usize = 8 << 20;

/// Everything goes to one place: which call it is, is the state's business.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let downloads = format!("{}{{file}}", bodies::DOWNLOADS);
    Router::new().route(&downloads, get(download)).fallback(serve).with_state(shared)
}

/// The runner's archive, for those who have the token that was given with its address. Not part of
/// the API, so neither counted nor recorded.
async fn download(
    Extracted(shared): Extracted<Arc<Shared>>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let runner = shared.change_quietly(|state, _| state.settings.runner.clone());
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    match runner {
        Some(runner) if header == Some(&format!("Bearer {}", runner.token)) => {
            Response::new(Body::from(runner.bytes))
        }
        _ => respond(&shared, Reply::error(404, "Not Found"), None),
    }
}

async fn serve(
    Extracted(shared): Extracted<Arc<Shared>>,
    request: HttpRequest<Body>,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, LARGEST_BODY).await else {
        return respond(&shared, Reply::error(400, "the body can't be read"), None);
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

/// The answer, waited for where it is a long poll.
async fn reply(shared: &Shared, request: &Request) -> (Reply, Option<Fault>) {
    let mut changes = shared.follow();
    let mut asking = Asking { first: true, over: false };
    let hold = shared.change(|state, _| state.settings.poll_hold);
    let deadline = Instant::now() + Duration::from_millis(hold);
    let mut fault = None;
    loop {
        changes.borrow_and_update();
        let answer = |state: &mut State, now| http::answer(state, request, asking, now);
        let outcome = if request.method == "GET" {
            shared.change_quietly(answer)
        } else {
            shared.change(answer)
        };
        let Outcome { answer, fault: drawn } = outcome;
        fault = fault.or(drawn);
        match answer {
            Answer::Reply(reply) => return (reply, fault),
            Answer::Wait => {}
        }
        asking.first = false;
        // What changed says nothing about this poll; the state is asked again.
        asking.over = !matches!(timeout_at(deadline, changes.changed()).await, Ok(Ok(())));
    }
}

/// The answer as it goes out: whole, cut in the middle, or not at all.
fn respond(shared: &Shared, reply: Reply, fault: Option<Fault>) -> Response<Body> {
    let length = reply.body.len();
    let body = match fault {
        Some(Fault::CutBody | Fault::LostAnswer) => cut(&reply.body),
        _ => Body::from(reply.body),
    };
    let mut response = Response::new(body);
    if let Ok(status) = axum::http::StatusCode::from_u16(reply.status) {
        *response.status_mut() = status;
    }
    let id = shared.change_quietly(|state, _| state.random_text(8));
    let mut headers = reply.headers;
    headers.push(("x-github-request-id", id));
    headers.push(("server", "github-sim".to_owned()));
    headers.push(("date", time::header(shared.now())));
    if matches!(fault, Some(Fault::CutBody | Fault::LostAnswer)) {
        // At least one byte is missing, even of an answer without a body.
        headers.push(("content-length", (length + 1).to_string()));
    }
    for (name, value) in headers {
        if let Ok(value) = axum::http::HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// The first half, then the connection's end.
fn cut(body: &str) -> Body {
    let half = Bytes::copy_from_slice(&body.as_bytes()[..body.len() / 2]);
    let error = std::io::Error::other("cut on request");
    Body::from_stream(stream::iter([Ok(half), Err(error)]))
}
