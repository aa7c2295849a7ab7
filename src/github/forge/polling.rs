//! Polls of repositories: what each lists of its queued and running jobs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::GitHub;
use crate::forge::{Job, Said};
use crate::github::Snapshot;

/// Between two polls where the settings don't say, while the rate limit has room.
pub(super) const POLL: Duration = Duration::from_secs(15);
/// Between two polls where deliveries come, which polls only reconcile.
pub(super) const RECONCILE: Duration = Duration::from_secs(60);

/// Polls the repositories until it is cancelled, each time so long after the last.
pub(super) async fn poll(github: Arc<GitHub>, to: mpsc::Sender<Said>, cancel: CancellationToken) {
    let work = async {
        loop {
            let begun = Instant::now();
            let snapshot = github.client.waiting_jobs(&github.repositories).await;
            let calls = snapshot.calls;
            if tell(snapshot, begun, &github, &to).await.is_err() {
                return;
            }
            tokio::time::sleep(github.client.poll_interval(github.poll, calls)).await;
        }
    };
    cancel.run_until_cancelled(work).await;
}

async fn tell(
    snapshot: Snapshot,
    begun: Instant,
    github: &GitHub,
    to: &mpsc::Sender<Said>,
) -> Result<(), mpsc::error::SendError<Said>> {
    let Snapshot { queued, in_progress, problems, .. } = snapshot;
    for repository in &github.repositories {
        if problems.iter().any(|(failed, _)| failed == repository) {
            continue;
        }
        let name = repository.to_string();
        let its = |jobs: &[crate::github::Job]| {
            let own = jobs.iter().filter(|job| job.repository.eq_ignore_ascii_case(&name));
            own.cloned().map(Job::from).collect()
        };
        let (queued, running) = (its(&queued), its(&in_progress));
        to.send(Said::Listed { repository: name.clone(), begun, queued, running }).await?;
    }
    to.send(match problems.into_iter().next() {
        Some((_, error)) => Said::Fails(None, error.into()),
        None => Said::Answers,
    })
    .await
}
