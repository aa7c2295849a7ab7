//! An HTTP server on a listener: whom it serves, how long, and its end.
//!
//! Whoever connects may be hostile, also before it has shown a token or a signature. So each wait for
//! a client has an end: for the head of a request, for the whole request, and for the client to take
//! the answer; and each source of connections has a share of them ([`admission`](super::admission)).

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

use super::admission::{Decision, Open, Source, decide};
use super::patience::{Activity, Client, Timed};

/// How long a client may take to send the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long a request may take until its answer begins, body included.
const REQUEST_TIME: Duration = Duration::from_secs(30);
/// The most bytes of a request's head.
const MAX_HEAD: usize = 16 << 10;
/// How long requests that are being served are waited for at the end.
const GRACE: Duration = Duration::from_secs(2);
/// How many connections wait to be served, half of them of one source at the most: one more takes the
/// place of the one of its source that has waited longest. More in all wait in the kernel's queue.
const WAITING: usize = 128;
/// How often those that wait are looked at, beside the end of others.
const LOOK: Duration = Duration::from_millis(250);

/// Serves until `stop`; then takes no new connections, and returns when the open ones have ended,
/// or after a grace period. At most `connections` are served at a time.
pub(super) async fn serve<L: Listener>(
    mut listener: L,
    router: Router,
    connections: usize,
    stop: CancellationToken,
) where
    L::Io: Client,
{
    let mut server = Server {
        router,
        most: connections,
        stop: stop.clone(),
        tasks: JoinSet::new(),
        open: HashMap::new(),
        waiting: VecDeque::new(),
    };
    let mut look = interval(LOOK);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(ended) = server.tasks.join_next_with_id() => {
                let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
                server.open.remove(&id);
                server.admit();
            }
            _ = look.tick(), if !server.waiting.is_empty() => server.admit(),
            (stream, _) = listener.accept(), if server.waiting.len() < WAITING => {
                server.queue(stream);
                server.admit();
            }
        }
    }
    drop(listener);
    let mut open = server.tasks;
    let ended = async { while open.join_next().await.is_some() {} };
    // Followers of a log don't end by themselves; dropping the set ends them.
    let _ = timeout(GRACE, ended).await;
}

/// The user whose process made a request, as handlers find it among its extensions.
#[derive(Debug, Clone, Copy)]
pub(super) struct User(pub(super) Option<u32>);

/// The connections of one listener.
struct Server<S> {
    router: Router,
    most: usize,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    open: HashMap<Id, Connection>,
    waiting: VecDeque<(Source, S)>,
}

/// One that is served.
struct Connection {
    source: Source,
    activity: Arc<Activity>,
    end: CancellationToken,
}

impl<S: Client> Server<S> {
    fn queue(&mut self, stream: S) {
        let source = stream.source();
        let own = |(other, _): &(Source, S)| *other == source;
        if self.waiting.iter().filter(|one| own(one)).count() >= WAITING / 2
            && let Some(oldest) = self.waiting.iter().position(own)
        {
            self.waiting.remove(oldest);
        }
        stream.prepare();
        self.waiting.push_back((source, stream));
    }

    /// Serves those that wait as far as they may be.
    fn admit(&mut self) {
        for (source, stream) in std::mem::take(&mut self.waiting) {
            let open = self.open.iter().map(|(key, connection)| Open {
                key: *key,
                source: connection.source,
                blocked: connection.activity.blocked(),
                ending: connection.end.is_cancelled(),
            });
            match decide(source, open, self.most) {
                Decision::Serve => self.serve(source, stream),
                Decision::Instead(other) => {
                    if let Some(other) = self.open.get(&other) {
                        other.end.cancel();
                    }
                    self.waiting.push_back((source, stream));
                }
                Decision::Wait => self.waiting.push_back((source, stream)),
            }
        }
    }

    fn serve(&mut self, source: Source, stream: S) {
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
async fn run<S: Client>(
    stream: S,
    router: Router,
    activity: Arc<Activity>,
    [stop, end]: [CancellationToken; 2],
) {
    let user = User(stream.user());
    let stream = Timed::new(stream, Arc::clone(&activity));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(user);
        let (router, activity) = (router.clone(), Arc::clone(&activity));
        async move { Ok::<_, Infallible>(respond(router, request, &activity).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // What a client does wrong, e.g. hanging up, concerns nobody else.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = end.cancelled() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

async fn respond(mut router: Router, request: Request<Incoming>, activity: &Activity) -> Response {
    // Without a body the client has said all that is waited for.
    activity.answered(request.body().is_end_stream());
    let answer = timeout(REQUEST_TIME, router.call(request.map(Body::new))).await;
    activity.answered(true);
    match answer {
        Ok(Ok(response)) => response,
        Err(_) => {
            let close = [(header::CONNECTION, HeaderValue::from_static("close"))];
            (StatusCode::REQUEST_TIMEOUT, close).into_response()
        }
    }
}
