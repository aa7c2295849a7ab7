//! Webhook deliveries: receiving, acknowledging once recorded, and requesting missed ones again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::GitHubError;
use crate::webhook::{JobAction, WebhookEvent, WorkflowJobEvent, parse, verify};
use crate::{CallError, GitHubClient};
use mayfly_api::webhook::{self, DeliveryOutcome, WebhookDelivery};
use mayfly_failure::chain;
use mayfly_forge::{ForgeEvent, JobChange, ListenRequest};

/// How far back missed deliveries are requested.
const REDELIVERY_WINDOW: Duration = Duration::from_secs(24 * 3600);
/// The wait before requesting missed deliveries. GitHub records a delivery as failed after ten
/// seconds without a response.
const FAILURE_RECORD_WAIT: Duration = Duration::from_secs(15);

/// Binds the webhook's address; also returns the check of a delivery's signature.
pub(super) async fn bind(
    hook: &mayfly_config::WebhookConfig,
) -> Result<(TcpListener, webhook::Verify), GitHubError> {
    let listener = super::bind(hook.listen).await?;
    let secret: SecretString = hook.secret.value.clone();
    tracing::info!(listen = %hook.listen, "webhook is listening");
    Ok((listener, Arc::new(move |body, signature| verify(&secret, body, signature))))
}

/// Forwards deliveries as events until their listener ends. Their signatures are already verified.
pub(super) async fn forward_deliveries(
    mut deliveries: mpsc::Receiver<WebhookDelivery>,
    events: mpsc::Sender<ForgeEvent>,
) {
    while let Some(delivery) = deliveries.recv().await {
        let WebhookDelivery { id: guid, event, body, responder } = delivery;
        let response = match parse(&event, &body) {
            Ok(WebhookEvent::WorkflowJob(change)) => {
                let delivery = job_delivery(guid, *change, responder);
                if events.send(ForgeEvent::JobDelivered(Box::new(delivery))).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(WebhookEvent::Ping) => {
                tracing::info!("the webhook received GitHub's ping");
                DeliveryOutcome::Accepted
            }
            Ok(WebhookEvent::Other(kind)) => {
                tracing::debug!(kind, "ignored an unused webhook event");
                DeliveryOutcome::Accepted
            }
            Err(error) => {
                tracing::warn!(delivery = guid, "{}", chain(&error));
                DeliveryOutcome::Malformed(chain(&error))
            }
        };
        // The listener may have given up waiting.
        let _ = responder.send(response);
    }
}

fn job_delivery(
    guid: String,
    change: WorkflowJobEvent,
    responder: tokio::sync::oneshot::Sender<DeliveryOutcome>,
) -> mayfly_forge::JobDelivery {
    mayfly_forge::JobDelivery {
        guid,
        change: match change.action {
            JobAction::Queued => Some(JobChange::Queued),
            JobAction::InProgress => Some(JobChange::Running),
            JobAction::Completed => Some(JobChange::Completed),
            JobAction::Waiting | JobAction::Other(_) => None,
        },
        job: change.job.into(),
        acknowledge: Box::new(|| {
            // The listener may have given up waiting; a redelivery then finds the effect recorded.
            let _ = responder.send(DeliveryOutcome::Accepted);
        }),
    }
}

/// Requests deliveries that failed while this process did not listen: before it started, and
/// whenever it was suspended.
pub(super) async fn redeliver(
    client: GitHubClient,
    mut listen_request: watch::Receiver<ListenRequest>,
    cancel: CancellationToken,
) {
    let work = async {
        let mut absences = listen_request.borrow_and_update().absences;
        loop {
            match redeliver_missed(&client).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "requested missed deliveries again"),
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!("can't request missed deliveries, relying on polls: {why}");
                }
            }
            let changed = listen_request.wait_for(|request| request.absences != absences).await;
            match changed.map(|request| request.absences) {
                Ok(count) => absences = count,
                Err(_) => return,
            }
            // GitHub may still wait for responses to deliveries from just before the process resumed.
            tokio::time::sleep(FAILURE_RECORD_WAIT).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn redeliver_missed(client: &GitHubClient) -> Result<usize, CallError> {
    let deliveries = client.deliveries(SystemTime::now() - REDELIVERY_WINDOW).await?;
    let arrived: HashSet<_> = deliveries
        .iter()
        .filter(|delivery| delivery.arrived())
        .map(|delivery| delivery.guid.clone())
        .collect();
    let mut requested = HashSet::new();
    for delivery in deliveries {
        let missed = delivery.event == "workflow_job" && !arrived.contains(&delivery.guid);
        if missed && requested.insert(delivery.guid.clone()) {
            client.redeliver(delivery.id).await?;
        }
    }
    Ok(requested.len())
}
