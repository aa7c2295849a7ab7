//! The API server: turns requests into calls and responses into JSON.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router, middleware};
use nix::fcntl::Flock;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::call::{Call, Responder};
use super::checked_listener::CheckedListener;
use super::serve::User;
use super::socket_path::{ShortPath, shorten};
use super::status::{self, Pages};
use super::types::{ApiError, ApiErrorKind, DrainRequest, JobFilter, JobId, Submission};
use super::{log, serve, token};
use mayfly_host::lock::try_exclusive;

/// The maximum size of a request body: the arguments and variables of a job.
const MAX_BODY: usize = 1 << 20;
/// The maximum number of connections served at a time.
const CONNECTIONS: usize = 64;
/// How long the loop may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// The sender for calls.
#[derive(Debug, Clone)]
pub(super) struct Calls(pub(super) mpsc::Sender<Call>);

impl Calls {
    /// Makes a call and waits for its response.
    pub(super) async fn request<T>(
        &self,
        call: impl FnOnce(Responder<T>) -> Call,
    ) -> Result<T, ApiError> {
        let unavailable = |message: &str| ApiError::new(ApiErrorKind::Unavailable, message);
        let (responder, response) = oneshot::channel();
        self.0.try_send(call(responder)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                unavailable("the daemon is overloaded").hint("Try again in a moment.")
            }
            mpsc::error::TrySendError::Closed(_) => unavailable("the daemon is shutting down"),
        })?;
        match tokio::time::timeout(RESPONSE_TIMEOUT, response).await {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Err(unavailable("the daemon is shutting down")),
            Err(_) => Err(unavailable("the daemon's event loop did not respond in time")),
        }
    }
}

/// The file of a bound Unix socket. It remembers the inode, so that only its owner removes it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    // Holds the lock as long as the socket is used.
    _lock: Flock<File>,
}

impl Drop for SocketFile {
    /// Removes the socket, so that clients find no dead one. Another process's socket at the same
    /// path stays.
    fn drop(&mut self) {
        let own = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if own {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Locks a socket path with a `flock(2)` of a file beside it, which the kernel drops with the
/// process. The file stays: another process may wait for it and have it open.
fn lock(path: &ShortPath) -> io::Result<Flock<File>> {
    let name = path.directory.join(format!(".{}.lock", path.name));
    let file = File::options().create(true).append(true).mode(0o600).open(name)?;
    try_exclusive(file)?.ok_or_else(|| {
        let text = "another daemon uses this socket: set a different host.socket for each daemon";
        io::Error::new(io::ErrorKind::AddrInUse, text)
    })
}

/// Binds the Unix socket with `mode`, replacing one that a dead daemon left. Fails if another
/// daemon has the socket or the path is not a socket.
pub fn bind(socket: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let short = shorten(socket)?;
    let lock = lock(&short)?;
    match std::fs::symlink_metadata(socket) {
        Ok(found) if !found.file_type().is_socket() => {
            let text = "the path exists and is not a socket";
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        // A socket without the lock: of an older version, or of another program.
        Ok(_) => {
            match std::os::unix::net::UnixStream::connect(short.directory.join(&short.name)) {
                Ok(_) => {
                    let text = "another process uses this socket: set a different host.socket";
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                // Any other error does not prove that the socket is unused.
                Err(error) => return Err(error),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bind under another name first and rename it: no client connects before the mode is right.
    let temporary = short.directory.join(format!(".{}.{}", short.name, std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary)?;
    std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
    let found = std::fs::symlink_metadata(&temporary)?;
    std::fs::rename(&temporary, socket)?;
    let (path, device, inode) = (socket.to_owned(), found.dev(), found.ino());
    Ok((listener, SocketFile { path, device, inode, _lock: lock }))
}

/// Serves the whole API and the status page on a Unix socket until `stop`.
pub async fn serve(
    listener: UnixListener,
    calls: mpsc::Sender<Call>,
    pages: Pages,
    stop: CancellationToken,
) {
    let router =
        read_routes().merge(write_routes()).with_state(Calls(calls)).merge(status::routes(pages));
    match CheckedListener::new(listener) {
        Ok(listener) => serve::serve(listener, finish(router), CONNECTIONS, stop).await,
        Err(error) => {
            tracing::error!("can't serve the API: reading namespaces from /proc failed: {error}");
            stop.cancelled().await;
        }
    }
}

/// Serves the read-only part of the API over TCP to clients with the token, until `stop`.
pub async fn serve_tcp(
    listener: TcpListener,
    token: SecretString,
    calls: mpsc::Sender<Call>,
    stop: CancellationToken,
) {
    let check = middleware::from_fn_with_state(token::Token::new(token), token::check);
    let router = finish(read_routes().with_state(Calls(calls))).layer(check);
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

/// Binds the TCP address of the API or of webhooks.
pub async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

fn read_routes() -> Router<Calls> {
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

fn write_routes() -> Router<Calls> {
    Router::new()
        .route("/v1/jobs", post(submit))
        .route("/v1/jobs/{job}/cancel", post(cancel))
        .route("/v1/drain", post(drain))
        .route("/v1/reload", post(reload))
}

pub(super) fn finish(router: Router) -> Router {
    let not_found = || async { ApiError::new(ApiErrorKind::NotFound, "no such path") };
    let not_allowed = || async {
        ApiError::new(ApiErrorKind::NotAllowed, "this method is not allowed on this path")
    };
    router
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

type Reply<T> = Result<Json<T>, ApiError>;

/// Returns an extracted value, or the rejection as an API error.
pub(super) fn valid<T, R: Into<Rejection>>(extracted: Result<T, R>) -> Result<T, ApiError> {
    extracted.map_err(|rejection| {
        let Rejection { status, message } = rejection.into();
        let kind = match status {
            StatusCode::PAYLOAD_TOO_LARGE => ApiErrorKind::TooLarge,
            StatusCode::NOT_FOUND => ApiErrorKind::NotFound,
            _ => ApiErrorKind::Invalid,
        };
        ApiError::new(kind, message)
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
) -> Result<(StatusCode, Json<impl Serialize>), ApiError> {
    let Json(submission) = valid(submission)?;
    if submission.command.first().is_none_or(String::is_empty) {
        return Err(ApiError::new(
            ApiErrorKind::Invalid,
            "the command is empty: name a program to run",
        ));
    }
    let zero = |text: &String| text.contains('\0');
    let named = |name: &String| name.is_empty() || name.contains(['=', '\0']);
    if submission.command.iter().any(zero)
        || submission.environment.iter().any(|(name, value)| named(name) || zero(value))
    {
        let message = "a zero byte in the command, or an invalid variable name";
        return Err(ApiError::new(ApiErrorKind::Invalid, message));
    }
    let job = calls.request(|responder| Call::Submit { submission, responder }).await?;
    Ok((StatusCode::CREATED, Json(job)))
}

async fn jobs(
    State(calls): State<Calls>,
    filter: Result<Query<JobFilter>, QueryRejection>,
) -> Reply<impl Serialize> {
    let Query(filter) = valid(filter)?;
    calls.request(|responder| Call::Jobs { filter, responder }).await.map(Json)
}

type JobPath = Result<UrlPath<JobId>, PathRejection>;

async fn job(State(calls): State<Calls>, job: JobPath) -> Reply<impl Serialize> {
    let UrlPath(job) = valid(job)?;
    calls.request(|responder| Call::Job { job, responder }).await.map(Json)
}

async fn explain(State(calls): State<Calls>, job: JobPath) -> Reply<impl Serialize> {
    let UrlPath(job) = valid(job)?;
    calls.request(|responder| Call::Explain { job, responder }).await.map(Json)
}

async fn cancel(
    State(calls): State<Calls>,
    Extension(User(user)): Extension<User>,
    job: JobPath,
) -> Reply<impl Serialize> {
    let UrlPath(job) = valid(job)?;
    calls.request(|responder| Call::Cancel { job, user, responder }).await.map(Json)
}

async fn microvms(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.request(|responder| Call::Microvms { responder }).await.map(Json)
}

async fn pools(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.request(|responder| Call::Pools { responder }).await.map(Json)
}

async fn daemon_status(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.request(|responder| Call::Status { responder }).await.map(Json)
}

async fn overview(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.request(|responder| Call::Overview { responder }).await.map(Json)
}

async fn drain(
    State(calls): State<Calls>,
    Extension(User(user)): Extension<User>,
    request: Result<Query<DrainRequest>, QueryRejection>,
) -> Reply<impl Serialize> {
    let Query(request) = valid(request)?;
    calls.request(|responder| Call::Drain { request, user, responder }).await.map(Json)
}

async fn reload(State(calls): State<Calls>) -> Reply<impl Serialize> {
    calls.request(|responder| Call::Reload { responder }).await.map(Json)
}

/// The query `?follow=true`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LogQuery {
    pub(super) follow: bool,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match self.kind {
            ApiErrorKind::Invalid => StatusCode::BAD_REQUEST,
            ApiErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
            ApiErrorKind::NotFound => StatusCode::NOT_FOUND,
            ApiErrorKind::NotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ApiErrorKind::Conflict => StatusCode::CONFLICT,
            ApiErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ApiErrorKind::BadSettings => StatusCode::UNPROCESSABLE_ENTITY,
            ApiErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            ApiErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(self)).into_response()
    }
}
