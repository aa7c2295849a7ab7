//! What probes ask for: whether the daemon lives, and whether it can do its work.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Pages;
use crate::api::call::Call;
use crate::api::types::{Problem, ProblemKind, Readiness};

/// How long the loop may take: a decision takes microseconds, a probe waits for a second or so.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Health {
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Whether the loop answers in time. Says nothing of what it could do: a restart would not help
/// against GitHub's being away.
pub(super) async fn healthz(State(pages): State<Pages>) -> Response {
    let (status, message) = match ask(&pages).await {
        Ok(_) => (StatusCode::OK, None),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, Some(problem.message)),
    };
    (status, Json(Health { healthy: message.is_none(), message })).into_response()
}

/// Whether the daemon can do its work, and what it is that it can't.
pub(super) async fn readyz(State(pages): State<Pages>) -> Response {
    match ask(&pages).await {
        Ok(readiness) if readiness.ready => Json(readiness).into_response(),
        Ok(readiness) => (StatusCode::SERVICE_UNAVAILABLE, Json(readiness)).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn ask(pages: &Pages) -> Result<Readiness, Problem> {
    let asked = pages.calls.ask(|answer| Call::Ready { answer });
    tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(DEADLINE);
        let message = format!("the daemon's loop has not answered within {limit}");
        Err(Problem::new(ProblemKind::Unavailable, message))
    })
}
