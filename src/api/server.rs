//! The server of the API: requests become calls, answers become JSON.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as InPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use nix::fcntl::{Flock, FlockArg};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::call::{Answer, Call};
use super::guarded::Guarded;
use super::path::{Reachable, reachable};
use super::serve::User;
use super::status::{self, Pages};
use super::types::{DrainWish, JobFilter, JobId, Problem, ProblemKind, Submission};
use super::{log, serve, token};

/// The most bytes of a request: arguments and variables of a job.
const MAX_BODY: usize = 1 << 20;
/// How many clients are served at a time.
const CONNECTIONS: usize = 64;
/// How long the loop may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Where calls go.
#[derive(Debug, Clone)]
pub(super) struct Calls(pub(super) mpsc::Sender<Call>);

impl Calls {
    /// Makes a call and waits for its answer.
    pub(super) async fn ask<T>(&self, call: impl FnOnce(Answer<T>) -> Call) -> Result<T, Problem> {
        let unavailable = |message: &str| Problem::new(ProblemKind::Unavailable, message);
        let (answer, answered) = oneshot::channel();
        self.0.try_send(call(answer)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                unavailable("the daemon has too much to do").hint("Try again in a moment.")
            }
            mpsc::error::TrySendError::Closed(_) => unavailable("the daemon is about to end"),
        })?;
        match tokio::time::timeout(ANSWER_TIME, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(unavailable("the daemon is about to end")),
            Err(_) => Err(unavailable("the daemon does not answer")),
        }
    }
}

/// A bound unix socket's file: which one it is, so that it is removed by its owner only.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    // Held for its lock as long as the socket is used.
    _lock: Flock<File>,
}

impl Drop for SocketFile {
    /// A socket that nobody answers at would only make clients wonder; another's stays.
    fn drop(&mut self) {
        let own = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if own {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The lock of a socket's path: a `flock(2)` of a file beside it, which the kernel drops with the
/// process. It is not removed: whoever waits for it may have it open.
fn lock(reachable: &Reachable) -> io::Result<Flock<File>> {
    let name = reachable.directory.join(format!(".{}.lock", reachable.name));
    let file = File::options().create(true).append(true).mode(0o600).open(name)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::Error::EWOULDBLOCK => io::Error::new(
            io::ErrorKind::AddrInUse,
            "another daemon has this socket: give each its own host.socket",
        ),
        error => error.into(),
    })
}

/// Binds the unix socket with that mode, instead of one that a dead daemon has left there. One that
/// another daemon has, or a file that is no socket, is left alone.
pub fn bind(socket: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let reachable = reachable(socket)?;
    let lock = lock(&reachable)?;
    match std::fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            let text = "there is something that is no socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // One of a version that knew no lock, or of another program.
        Ok(_) => {
            match std::os::unix::net::UnixStream::connect(reachable.directory.join(&reachable.name))
            {
                Ok(_) => {
                    let text =
                        "something answers at this socket: give each daemon its own host.socket";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // Nothing else means that nobody has it.
                Err(error) => return Err(error),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound elsewhere first and then moved here: nobody connects before the mode is right.
    let beside = reachable.directory.join(format!(".{}.{}", reachable.name, std::process::id()));
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(mode))?;
    let found = std::fs::symlink_metadata(&beside)?;
    std::fs::rename(&beside, socket)?;
    let (path, device, inode) = (socket.to_owned(), found.dev(), found.ino());
    Ok((listener, SocketFile { path, device, inode, _lock: lock }))
}

/// Serves the whole API, and the status page beside it, on a unix socket until `stop`.
pub async fn serve(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
    pages: Pages,
    stop: CancellationToken,
) {
    let router = reading().merge(writing()).with_state(Calls(calls)).merge(status::routes(pages));
    match Guarded::new(listener) {
        Ok(listener) => serve::serve(listener, finish(router), CONNECTIONS, stop).await,
        Err(error) => {
            tracing::error!("the API serves nobody: /proc tells no namespaces: {error}");
            stop.cancelled().await;
        }
    }
}

/// Serves what changes nothing over TCP, to those who know the token, until `stop`.
pub async fn serve_tcp(
    listener: TcpListener,
    token: SecretString,
    calls: mpsc::Sender<Call>,
    stop: CancellationToken,
) {
    let check = middleware::from_fn_with_state(token::Token::new(token), token::check);
    let router = finish(reading().with_state(Calls(calls))).layer(check);
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

/// Binds the TCP address of the API or of webhooks.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn reading() -> Router<Calls> {
    Router::new()
        .route("/v1/status", get(daemon_status))
        .route("/v1/overview", get(overview))
        .route("/v1/jobs", get(jobs))
        .route("/v1/jobs/{job}", get(job))
        .route("/v1/jobs/{job}/log", get(log::log))
        .route("/v1/jobs/{job}/explanation", get(explain))
        .route("/v1/microvms", get(microvms))
        .route("/v1/pools", get(pools))
}

fn writing() -> Router<Calls> {
    Router::new()
        .route("/v1/jobs", post(submit))
        .route("/v1/jobs/{job}/cancel", post(cancel))
        .route("/v1/drain", post(drain))
        .route("/v1/reload", post(reload))
}

pub(super) fn finish(router: Router) -> Router {
    let not_found = || async { Problem::new(ProblemKind::NotFound, "there is no such path") };
    let not_allowed =
        || async { Problem::new(ProblemKind::NotAllowed, "this can't be done here, or not so") };
    router
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

type Reply<T> = Result<Json<T>, Problem>;

/// What a path, a query or a body turned out to be.
pub(super) fn valid<T, R: Into<Rejection>>(extracted: Result<T, R>) -> Result<T, Problem> {
    extracted.map_err(|rejection| {
        let Rejection { status, message } = rejection.into();
        let kind = match status {
            StatusCode::PAYLOAD_TOO_LARGE => ProblemKind::TooLarge,
            StatusCode::NOT_FOUND => ProblemKind::NotFound,
            _ => ProblemKind::Invalid,
        };
        Problem::new(kind, message)
    })
}

/// Why a request could not be read.
pub(super) struct Rejection {
    status: StatusCode,
    message: String,
}

macro_rules! rejection {
    ($($kind:ty),*) => {$(
        impl From<$kind> for Rejection {
            fn from(rejection: $kind) -> Self {
                Self { status: rejection.status(), message: rejection.body_text() }
            }
        }
    )*};
}
rejection!(JsonRejection, PathRejection, QueryRejection);

async fn submit(
    State(calls): State<Calls>,
    submission: Result<Json<Submission>, JsonRejection>,
) -> Result<(StatusCode, Json<impl Serialize>), Problem> {
    let Json(submission) = valid(submission)?;
    if submission.command.first().is_none_or(String::is_empty) {
        return Err(Problem::new(ProblemKind::Invalid, "a job needs a command"));
    }
    let zero = |text: &String| text.contains('\0');
    let named = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if submission.command.iter().any(zero)
        || submission.environment.iter().any(|(name, value)| named(name) || zero(value))
    {
        let message = "a command has no zero bytes, and a variable has a name";
        return Err(Problem::new(ProblemKind::Invalid, message));
    }
    let job = calls.ask(|answer| Call::Submit { submission, answer }).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

async fn jobs(
    State(calls): State<Calls>,
    filter: Result<Query<JobFilter>, QueryRejection>,
) -> Reply<impl Serialize> {
    let Query(filter) = valid(filter)?;
    calls.ask(|answer| Call::Jobs { filter, answer }).await.map(Json)
}

type JobPath = Result<InPath<JobId>, PathRejection>;

async fn job(State(calls): State<Calls>, job: JobPath) -> Reply<impl Serialize> {
    let InPath(job) = valid(job)?;
    calls.ask(|answer| Call::Job { job, answer }).await.map(Json)
}

async fn explain(State(calls): State<Calls>, job: JobPath) -> Reply<impl Serialize> {
    let InPath(job) = valid(job)?;
    calls.ask(|answer| Call::Explain { job, answer }).await.map(Json)
}

async fn cancel(
    State(calls): State<Calls>,
    Extension(User(user)): Extension<User>,
    job: JobPath,
) -> Reply<impl Serialize> {
    let InPath(job) = valid(job)?;
    calls.ask(|answer| Call::Cancel { job, user, answer }).await.map(Json)
}

async fn microvms(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.ask(|answer| Call::Microvms { answer }).await.map(Json)
}

async fn pools(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.ask(|answer| Call::Pools { answer }).await.map(Json)
}

async fn daemon_status(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.ask(|answer| Call::Status { answer }).await.map(Json)
}

async fn overview(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.ask(|answer| Call::Overview { answer }).await.map(Json)
}

async fn drain(
    State(calls): State<Calls>,
    Extension(User(user)): Extension<User>,
    wish: Result<Query<DrainWish>, QueryRejection>,
) -> Reply<impl Serialize> {
    let Query(wish) = valid(wish)?;
    calls.ask(|answer| Call::Drain { wish, user, answer }).await.map(Json)
}

async fn reload(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.ask(|answer| Call::Reload { answer }).await.map(Json)
}

/// `?follow=true`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogQuery {
    pub(super) follow: bool,
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ProblemKind::Invalid => StatusCode::BAD_REQUEST,
            ProblemKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ProblemKind::NotFound => StatusCode::NOT_FOUND,
            ProblemKind::NotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ProblemKind::Conflict => StatusCode::CONFLICT,
            ProblemKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ProblemKind::BadSettings => StatusCode::UNPROCESSABLE_ENTITY,
            ProblemKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ProblemKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}
