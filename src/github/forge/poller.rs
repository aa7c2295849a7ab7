//! The poller: lists the queued and running jobs of repositories.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::GitHubForge;
use crate::JobSnapshot;
use mayfly_forge::{ForgeEvent, RemoteJob};

/// The default time between two polls, while the rate limit allows it.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// The default time between two polls that only reconcile webhook deliveries.
pub(super) const RECONCILE_INTERVAL: Duration = Duration::from_secs(60);

/// Polls the repositories at the poll interval until it is canceled.
pub(super) async fn poll(
    github: Arc<GitHubForge>,
    events: mpsc::Sender<ForgeEvent>,
    cancel: CancellationToken,
) {
    let work = async {
        loop {
            let requested_at = Instant::now();
            let snapshot = github.client.waiting_jobs(&github.repositories).await;
            let calls = snapshot.calls;
            if send(snapshot, requested_at, &github, &events).await.is_err() {
                return;
            }
            tokio::time::sleep(github.client.poll_interval(github.poll_interval, calls)).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn send(
    snapshot: JobSnapshot,
    requested_at: Instant,
    github: &GitHubForge,
    events: &mpsc::Sender<ForgeEvent>,
) -> Result<(), mpsc::error::SendError<ForgeEvent>> {
    let JobSnapshot { queued, in_progress, failures, .. } = snapshot;
    for repository in &github.repositories {
        if failures.iter().any(|(failed, _)| failed == repository) {
            continue;
        }
        let name = repository.to_string();
        let jobs_of = |jobs: &[crate::WorkflowJob]| {
            let own = jobs.iter().filter(|job| job.repository.eq_ignore_ascii_case(&name));
            own.cloned().map(RemoteJob::from).collect()
        };
        let (queued, running) = (jobs_of(&queued), jobs_of(&in_progress));
        events
            .send(ForgeEvent::JobsListed {
                repository: name.clone(),
                requested_at,
                queued,
                running,
            })
            .await?;
    }
    events
        .send(match failures.into_iter().next() {
            Some((_, error)) => ForgeEvent::Failed(None, error.into()),
            None => ForgeEvent::Reachable,
        })
        .await
}
