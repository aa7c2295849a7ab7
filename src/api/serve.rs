//! An HTTP server on a listener: how many connections, how long, and its end.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long a client may take to send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long requests that are being served are waited for at the end.
const GRACE: Duration = Duration::from_secs(2);

/// Serves until `stop`; then takes no new connections, and returns when the open ones have ended,
/// or after a grace period. More than `connections` at a time wait in the kernel's queue.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(connections));
    let mut open = JoinSet::new();
    loop {
        let accepted = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok();
            (permit, listener.accept().await.0)
        };
        let (permit, stream) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => continue,
            accepted = accepted => accepted,
        };
        let service = TowerToHyperService::new(router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), service);
        let stop = stop.clone();
        open.spawn(async move {
            let _permit = permit;
            let mut connection = std::pin::pin!(connection);
            // What a client does wrong, e.g. hanging up, concerns nobody else.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        });
    }
    drop(listener);
    let ended = async { while open.join_next().await.is_some() {} };
    // Followers of a log don't end by themselves; dropping the set ends them.
    let _ = tokio::time::timeout(GRACE, ended).await;
}
