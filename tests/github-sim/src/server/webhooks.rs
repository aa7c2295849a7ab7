//! Sends webhooks when they are due: signed, and several at a time.

use std::time::Duration;

use axum::body::Bytes;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::SharedState;
use crate::state::hooks::{Delivery, signature};
use crate::state::settings::Hook;

/// How long GitHub waits for a response.
const TIMEOUT: Duration = Duration::from_secs(10);

type HttpClient = Client<HttpConnector, Full<Bytes>>;

/// Sends due deliveries, forever.
pub(super) async fn send(shared: &SharedState) {
    let client: HttpClient = Client::builder(TokioExecutor::new()).build_http();
    let mut underway = JoinSet::new();
    let mut changes = shared.subscribe();
    loop {
        changes.borrow_and_update();
        let (hook, due) = shared.change_without_notify(|state, now| {
            let hook = state.settings.hook.clone();
            let due = if hook.is_some() { state.take_due(now) } else { Vec::new() };
            (hook, due)
        });
        if let Some(hook) = hook {
            for delivery in due {
                underway.spawn(deliver(client.clone(), hook.clone(), delivery));
            }
        }
        tokio::select! {
            Some(Ok((id, status))) = underway.join_next() => {
                shared.change(|state, _| state.delivered(id, status));
            }
            changed = changes.changed() => if changed.is_err() { return },
        }
    }
}

/// Sends a delivery. Returns its ID and the response's status, 0 without a response.
async fn deliver(client: HttpClient, hook: Hook, delivery: Delivery) -> (u64, u16) {
    let body = delivery.body.into_bytes();
    let request = axum::http::Request::post(&hook.url)
        .header("content-type", "application/json")
        .header("user-agent", "GitHub-Hookshot/simulated")
        .header("x-github-event", "workflow_job")
        .header("x-github-delivery", &delivery.guid)
        .header("x-github-hook-id", "292430182")
        .header("x-github-hook-installation-target-type", "integration")
        .header("x-github-hook-installation-target-id", "4321")
        .header("x-hub-signature-256", signature(&hook.secret, &body))
        .body(Full::new(Bytes::from(body)));
    let Ok(request) = request else { return (delivery.id, 0) };
    let status = match timeout(TIMEOUT, client.request(request)).await {
        Ok(Ok(response)) => response.status().as_u16(),
        Ok(Err(_)) | Err(_) => 0,
    };
    (delivery.id, status)
}
