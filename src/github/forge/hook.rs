//! The webhook's deliveries: taken in, acknowledged once they had their effect, and asked for again
//! where they may have been missed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::GitHubError;
use crate::api::webhook::{self, Answer, Delivery};
use crate::config;
use crate::failure::chain;
use crate::forge::{self, Change, Said, Wanted};
use crate::github::webhook::{Action, Event, WorkflowJob, parse, verify};
use crate::github::{CallError, Client};

/// How far back missed deliveries are asked for.
const MISSED: Duration = Duration::from_secs(24 * 3600);
/// GitHub notes a delivery as missed when it has waited ten seconds for an answer.
const NOTED: Duration = Duration::from_secs(15);

/// Listens where the settings say, and knows whose deliveries count.
pub(super) async fn bind(
    hook: &config::Webhook,
) -> Result<(TcpListener, webhook::Verify), GitHubError> {
    let listener = super::bind(hook.listen).await?;
    let secret: SecretString = hook.secret.value.clone();
    tracing::info!(listen = %hook.listen, "webhooks are taken here");
    Ok((listener, Arc::new(move |body, signature| verify(&secret, body, signature))))
}

/// Passes on deliveries, whose signature was verified when they came, until their listener ends.
pub(super) async fn deliveries(mut from: mpsc::Receiver<Delivery>, to: mpsc::Sender<Said>) {
    while let Some(delivery) = from.recv().await {
        let Delivery { id: guid, event, body, answer } = delivery;
        let said = match parse(&event, &body) {
            Ok(Event::WorkflowJob(change)) => {
                let delivery = said(guid, *change, answer);
                if to.send(Said::Delivered(Box::new(delivery))).await.is_err() {
                    return;
                }
                continue;
            }
            Ok(Event::Ping) => {
                tracing::info!("the webhook answers GitHub's ping");
                Answer::Taken
            }
            Ok(Event::Other(kind)) => {
                tracing::debug!(kind, "an event that was not asked for");
                Answer::Taken
            }
            Err(error) => {
                tracing::warn!(delivery = guid, "{}", chain(&error));
                Answer::Malformed(chain(&error))
            }
        };
        // The listener may have given up waiting.
        let _ = answer.send(said);
    }
}

fn said(
    guid: String,
    change: WorkflowJob,
    answer: tokio::sync::oneshot::Sender<Answer>,
) -> forge::Delivery {
    forge::Delivery {
        guid,
        change: match change.action {
            Action::Queued => Some(Change::Queued),
            Action::InProgress => Some(Change::Running),
            Action::Completed => Some(Change::Over),
            Action::Waiting | Action::Other(_) => None,
        },
        job: change.job.into(),
        acknowledge: Box::new(|| {
            // The listener may have given up waiting; a redelivery then finds that it is done.
            let _ = answer.send(Answer::Taken);
        }),
    }
}

/// Asks for deliveries that did not arrive while nobody listened: before this process, and whenever
/// it was absent.
pub(super) async fn redeliver(
    client: Client,
    mut wanted: watch::Receiver<Wanted>,
    cancel: CancellationToken,
) {
    let work = async {
        let mut absences = wanted.borrow_and_update().absences;
        loop {
            match ask(&client).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "asked for deliveries that were missed"),
                Err(error) => {
                    let why = chain(&error);
                    tracing::warn!("can't ask for missed deliveries, polls reconcile: {why}");
                }
            }
            let again = wanted.wait_for(|wanted| wanted.absences != absences).await;
            match again.map(|wanted| wanted.absences) {
                Ok(count) => absences = count,
                Err(_) => return,
            }
            // What came just before the end of the absence is still waited for there.
            tokio::time::sleep(NOTED).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn ask(client: &Client) -> Result<usize, CallError> {
    let deliveries = client.deliveries(SystemTime::now() - MISSED).await?;
    let arrived: HashSet<_> = deliveries
        .iter()
        .filter(|delivery| delivery.arrived())
        .map(|delivery| delivery.guid.clone())
        .collect();
    let mut asked = HashSet::new();
    for delivery in deliveries {
        let missed = delivery.event == "workflow_job" && !arrived.contains(&delivery.guid);
        if missed && asked.insert(delivery.guid.clone()) {
            client.redeliver(delivery.id).await?;
        }
    }
    Ok(asked.len())
}
