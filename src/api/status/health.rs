//! The health endpoints: whether the daemon is alive, and whether it can do its work.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Pages;
use crate::call::Call;
use crate::types::{ApiError, ApiErrorKind, Readiness};

/// How long the event loop may take: a decision takes microseconds, a probe waits for about a
/// second.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Health {
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Returns whether the event loop responds in time. It ignores readiness: a restart would not help
/// if GitHub is down.
pub(super) async fn healthz(State(pages): State<Pages>) -> Response {
    let (status, message) = match readiness(&pages).await {
        Ok(_) => (StatusCode::OK, None),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, Some(error.message)),
    };
    (status, Json(Health { healthy: message.is_none(), message })).into_response()
}

/// Returns the readiness checks.
pub(super) async fn readyz(State(pages): State<Pages>) -> Response {
    match readiness(&pages).await {
        Ok(readiness) if readiness.ready => Json(readiness).into_response(),
        Ok(readiness) => (StatusCode::SERVICE_UNAVAILABLE, Json(readiness)).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn readiness(pages: &Pages) -> Result<Readiness, ApiError> {
    let call = pages.calls.request(|responder| Call::Ready { responder });
    tokio::time::timeout(PROBE_TIMEOUT, call).await.unwrap_or_else(|_| {
        let limit = humantime::format_duration(PROBE_TIMEOUT);
        let message = format!("the daemon's event loop did not respond within {limit}");
        Err(ApiError::new(ApiErrorKind::Unavailable, message))
    })
}
