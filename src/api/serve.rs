//! The HTTP server on a listener: connection limits, timeouts and shutdown.
//!
//! A client may be hostile, and has shown no token or signature yet. So every wait for a client has
//! a timeout: for the head of a request, for the whole request, and for the client to read the
//! response. Each source of connections is limited to a share of them
//! ([`admission`](super::admission)).

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::task::{Id, JoinSet};
use tokio::time::{interval, timeout};
use tokio_util::sync::CancellationToken;
use tower_service::Service;

use super::admission::{AdmissionDecision, ClientSource, OpenConnection, decide};
use super::client_stream::{Activity, ClientStream, TimedStream};

/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request, with its body, may take until its response starts.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum size of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long the shutdown waits for requests in progress.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// The maximum number of queued connections. A further one replaces the oldest of the source that
/// has the most.
const MAX_QUEUED: usize = 128;
/// How often the queue is checked, in addition to whenever a connection ends.
const ADMIT_INTERVAL: Duration = Duration::from_millis(250);

/// Serves until `stop`; then accepts no new connections, and returns when the open ones have ended
/// or after a grace period. Serves at most `connections` at a time.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) where
    L::Io: ClientStream,
{
    let mut server = Server {
        router,
        max_connections: connections,
        stop: stop.clone(),
        tasks: JoinSet::new(),
        open: HashMap::new(),
        queued: VecDeque::new(),
    };
    let mut admit_tick = interval(ADMIT_INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = server.tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                server.open.remove(&id);
                server.admit();
            }
            _ = admit_tick.tick(), if !server.queued.is_empty() => server.admit(),
            (stream, _) = listener.accept() => {
                server.queue(stream);
                server.admit();
            }
        }
    }
    drop(listener);
    let mut open = server.tasks;
    let ended = async { while open.join_next().await.is_some() {} };
    // Followers of a log don't end by themselves: dropping the set ends them.
    let _ = timeout(SHUTDOWN_GRACE, ended).await;
}

/// The user ID of the requesting process, a request extension for the handlers.
#[derive(Debug, Clone, Copy)]
pub(super) struct User(pub(super) Option<u32>);

/// The connections of a listener.
struct Server<S> {
    router: Router,
    max_connections: usize,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    open: HashMap<Id, Connection>,
    queued: VecDeque<(ClientSource, S)>,
}

/// A connection that is being served.
struct Connection {
    source: ClientSource,
    activity: Arc<Activity>,
    end: CancellationToken,
}

impl<S: ClientStream> Server<S> {
    fn queue(&mut self, stream: S) {
        stream.prepare();
        self.queued.push_back((stream.source(), stream));
        if self.queued.len() > MAX_QUEUED {
            let mut counts = HashMap::<ClientSource, usize>::new();
            for (source, _) in &self.queued {
                *counts.entry(*source).or_default() += 1;
            }
            // Of sources with equally many, the one whose connection is the oldest.
            let most = counts.values().max();
            let oldest = self.queued.iter().position(|(source, _)| counts.get(source) == most);
            _ = oldest.and_then(|at| self.queued.remove(at));
        }
    }

    /// Serves queued connections as far as the limits allow.
    fn admit(&mut self) {
        for (source, stream) in std::mem::take(&mut self.queued) {
            let open = self.open.iter().map(|(key, connection)| OpenConnection {
                key: *key,
                source: connection.source,
                blocked: connection.activity.blocked(),
                is_ending: connection.end.is_cancelled(),
            });
            match decide(source, open, self.max_connections) {
                AdmissionDecision::Serve => self.serve(source, stream),
                AdmissionDecision::Replace(other) => {
                    if let Some(other) = self.open.get(&other) {
                        other.end.cancel();
                    }
                    self.queued.push_back((source, stream));
                }
                AdmissionDecision::Wait => self.queued.push_back((source, stream)),
            }
        }
    }

    fn serve(&mut self, source: ClientSource, stream: S) {
        let (activity, end) = (Activity::new(), CancellationToken::new());
        let connection = run(
            stream,
            self.router.clone(),
            Arc::clone(&activity),
            [self.stop.clone(), end.clone()],
        );
        let task = self.tasks.spawn(connection);
        self.open.insert(task.id(), Connection { source, activity, end });
    }
}

/// Serves one connection.
async fn run<S: ClientStream>(
    stream: S,
    router: Router,
    activity: Arc<Activity>,
    [stop, end]: [CancellationToken; 2],
) {
    let user = User(stream.user());
    let stream = TimedStream::new(stream, Arc::clone(&activity));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(user);
        let (router, activity) = (router.clone(), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(respond(router, request, &activity).await) }
    });
    // One request per connection, so that cheap requests hold none of the limited connections.
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error here is the client's, e.g. hanging up.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = end.cancelled() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn respond(mut router: Router, request: Request<Incoming>, activity: &Activity) -> Response {
    // Without a body the request is complete.
    activity.set_idle(request.body().is_end_stream());
    let response = timeout(REQUEST_TIMEOUT, router.call(request.map(Body::new))).await;
    activity.set_idle(true);
    match response {
        Ok(Ok(response)) => response,
        Err(_) => {
            let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
            (StatusCode::REQUEST_TIMEOUT, close).into_response()
        }
    }
}
