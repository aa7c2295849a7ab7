//! The tasks that listen for GitHub's waiting jobs: polls and the webhook's deliveries. Each only
//! says what it heard; what follows from it is decided elsewhere.

use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use super::happening::{self, Happening, Hint};
use super::registrar::GitHub;
use crate::api::webhook::{Answer, Delivery};
use crate::failure::chain;
use crate::github::webhook::{Event, parse};
use crate::github::{CallError, Client, Snapshot};

/// Between two polls where the settings don't say, while the rate limit has room.
pub(super) const POLL: Duration = Duration::from_secs(15);
/// Between two polls where deliveries come, which polls only reconcile.
pub(super) const RECONCILE: Duration = Duration::from_secs(60);
/// How far back missed deliveries are asked for.
const MISSED: Duration = Duration::from_secs(24 * 3600);

/// Polls the repositories until it is cancelled, each time so long after the last.
pub(super) async fn poll(
    github: GitHub,
    clock: Clock,
    every: Duration,
    to: mpsc::Sender<Happening>,
    cancel: CancellationToken,
) {
    let work = async {
        loop {
            let begun = clock.now();
            let snapshot = github.client.waiting_jobs(&github.repositories).await;
            let calls = snapshot.calls;
            if tell(snapshot, begun, &github, &to).await.is_err() {
                return;
            }
            tokio::time::sleep(github.client.poll_interval(every, calls)).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn tell(
    snapshot: Snapshot,
    begun: super::millis::Millis,
    github: &GitHub,
    to: &mpsc::Sender<Happening>,
) -> Result<(), mpsc::error::SendError<Happening>> {
    let Snapshot { queued, in_progress, problems, .. } = snapshot;
    for repository in &github.repositories {
        if problems.iter().any(|(failed, _)| failed == repository) {
            continue;
        }
        let name = repository.to_string();
        let its = |jobs: &[crate::github::Job]| {
            let own = jobs.iter().filter(|job| job.repository.eq_ignore_ascii_case(&name));
            own.cloned().collect()
        };
        let (queued, running) = (its(&queued), its(&in_progress));
        let hint = Hint::Snapshot { repository: name.clone(), begun, queued, running };
        to.send(Happening::Hint(hint)).await?;
    }
    let problem = problems.into_iter().next().map(|(_, error)| error);
    to.send(Happening::Source(None, problem)).await
}

/// Passes on deliveries, whose signature was verified when they came, until their listener ends.
pub(super) async fn deliveries(mut from: mpsc::Receiver<Delivery>, to: mpsc::Sender<Happening>) {
    while let Some(delivery) = from.recv().await {
        let Delivery { id: guid, event, body, answer } = delivery;
        let said = match parse(&event, &body) {
            Ok(Event::WorkflowJob(change)) => {
                let delivery = happening::Delivery { guid, change: *change, recorded: answer };
                if to.send(Happening::Hint(Hint::Delivery(Box::new(delivery)))).await.is_err() {
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

/// Asks once for deliveries that did not arrive while nobody listened.
pub(super) async fn redeliver(client: Client, cancel: CancellationToken) {
    let work = async {
        let deliveries = client.deliveries(SystemTime::now() - MISSED).await?;
        let arrived: std::collections::HashSet<_> = deliveries
            .iter()
            .filter(|delivery| (200..300).contains(&delivery.status_code))
            .map(|delivery| delivery.guid.clone())
            .collect();
        let mut asked = std::collections::HashSet::new();
        for delivery in deliveries {
            let missed = delivery.event == "workflow_job" && !arrived.contains(&delivery.guid);
            if missed && asked.insert(delivery.guid.clone()) {
                client.redeliver(delivery.id).await?;
            }
        }
        Ok::<_, CallError>(asked.len())
    };
    match cancel.run_until_cancelled(work).await {
        Some(Ok(0)) | None => {}
        Some(Ok(count)) => tracing::info!(count, "asked for deliveries that were missed"),
        Some(Err(error)) => {
            tracing::warn!("can't ask for missed deliveries, polls reconcile: {}", chain(&error));
        }
    }
}
