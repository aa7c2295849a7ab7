//! The API client of the command line.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, Request, Response, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::socket_path::shorten;
use super::types::{
    ApiError, ApiErrorKind, DaemonStatus, DrainReport, DrainRequest, Explanation, JobFilter, JobId,
    JobView, MicrovmView, PoolView, ReloadReport, Submission,
};
use mayfly_failure::{Code, Failure};

/// How long the daemon may take to respond: a little longer than the server's own limit.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
/// The maximum size of a response that is read into memory.
const MAX_RESPONSE: usize = 16 << 20;

/// A failed call to the daemon.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon listens on the socket.
    #[error("no daemon listens on {}", socket.display())]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// The error of the connection attempt.
        #[source]
        source: io::Error,
    },
    /// The daemon returned an error.
    #[error("{}", error.message)]
    Refused {
        /// The error.
        error: ApiError,
    },
    /// The connection failed.
    #[error("the connection to the daemon broke")]
    Connection(#[source] hyper::Error),
    /// The response does not parse.
    #[error("can't parse the daemon's response: {0}")]
    InvalidResponse(String),
    /// The daemon did not respond in time.
    #[error("the daemon did not respond in time")]
    TimedOut,
    /// The received data can't be written.
    #[error("can't write the daemon's response to standard output")]
    Write(#[source] io::Error),
}

impl Failure for ClientError {
    fn code(&self) -> Code {
        match self {
            Self::NoDaemon { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::Forbidden
            }
            Self::NoDaemon { .. } | Self::Connection(_) | Self::TimedOut => Code::Unavailable,
            Self::Refused { error } => match error.kind {
                ApiErrorKind::Invalid | ApiErrorKind::TooLarge => Code::Usage,
                ApiErrorKind::Unauthorized | ApiErrorKind::NotAllowed => Code::Forbidden,
                ApiErrorKind::NotFound => Code::NotFound,
                ApiErrorKind::Conflict | ApiErrorKind::Unavailable => Code::Unavailable,
                ApiErrorKind::BadSettings => Code::BadConfiguration,
                ApiErrorKind::Internal => Code::Internal,
            },
            Self::InvalidResponse(_) => Code::Internal,
            Self::Write(_) => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoDaemon { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some(
                    "ask an administrator for access: host.socket_mode controls who may connect"
                        .into(),
                )
            }
            Self::NoDaemon { .. } => {
                Some("start one with `mayfly serve`, or name its socket with --socket".into())
            }
            Self::Refused { error } => error.hint.clone(),
            Self::InvalidResponse(_) => {
                Some("check that the daemon and this program have the same version".into())
            }
            Self::Connection(_) | Self::TimedOut | Self::Write(_) => None,
        }
    }
}

/// A client of the daemon at a socket. Opens a connection per request.
#[derive(Debug, Clone)]
pub struct ApiClient {
    socket: PathBuf,
}

impl ApiClient {
    /// Creates a client of the daemon that listens on `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Queues a local job.
    pub async fn submit(&self, submission: &Submission) -> Result<JobView, ClientError> {
        self.request(Method::POST, "/v1/jobs", Some(submission)).await
    }

    /// Lists jobs, newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, ClientError> {
        let mut query = vec![format!("limit={}", filter.limit())];
        query.extend(filter.state.map(|state| format!("state={state}")));
        // Pool names need no URL escaping; a name that would need it matches no pool.
        let plain = |name: &&String| name.bytes().all(|byte| byte.is_ascii_graphic());
        query.extend(filter.pool.as_ref().filter(plain).map(|pool| format!("pool={pool}")));
        self.get(&format!("/v1/jobs?{}", query.join("&"))).await
    }

    /// Returns a job.
    pub async fn job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.get(&format!("/v1/jobs/{job}")).await
    }

    /// Returns the history of a job and what it waits for.
    pub async fn explain(&self, job: JobId) -> Result<Explanation, ClientError> {
        self.get(&format!("/v1/jobs/{job}/explanation")).await
    }

    /// Cancels a job.
    pub async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&format!("/v1/jobs/{job}/cancel")).await
    }

    /// Lists the daemon's microVMs.
    pub async fn microvms(&self) -> Result<Vec<MicrovmView>, ClientError> {
        self.get("/v1/microvms").await
    }

    /// Lists the pools.
    pub async fn pools(&self) -> Result<Vec<PoolView>, ClientError> {
        self.get("/v1/pools").await
    }

    /// Returns the state of the daemon.
    pub async fn status(&self) -> Result<DaemonStatus, ClientError> {
        self.get("/v1/status").await
    }

    /// Drains the daemon: it takes no more jobs, and exits.
    pub async fn drain(&self, request: DrainRequest) -> Result<DrainReport, ClientError> {
        let mut query = vec![format!("end_jobs={}", request.end_jobs)];
        query.extend(request.within_ms.map(|within| format!("within_ms={within}")));
        self.post(&format!("/v1/drain?{}", query.join("&"))).await
    }

    /// Makes the daemon reload its settings.
    pub async fn reload(&self) -> Result<ReloadReport, ClientError> {
        self.post("/v1/reload").await
    }

    /// Copies the log of a job to `sink`; with `follow` until the job ends.
    pub async fn log(
        &self,
        job: JobId,
        follow: bool,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{job}/log?follow={follow}");
        self.exchange(Method::GET, &path, Bytes::new(), async |response| {
            let mut body = check_status(response).await?;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(ClientError::Connection)?;
                if let Some(piece) = frame.data_ref() {
                    sink(piece).map_err(ClientError::Write)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::POST, path, None::<&()>).await
    }

    async fn request<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| ClientError::InvalidResponse(error.to_string()))?;
        let body = Bytes::from(body.unwrap_or_default());
        let exchange = self.exchange(method, path, body, async |response| {
            let bytes = read_body(check_status(response).await?).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| ClientError::InvalidResponse(error.to_string()))
        });
        tokio::time::timeout(RESPONSE_TIMEOUT, exchange).await.unwrap_or(Err(ClientError::TimedOut))
    }

    /// Sends a request and passes the response to `take`, driving the connection meanwhile.
    async fn exchange<T>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let no_daemon = |source| ClientError::NoDaemon { socket: self.socket.clone(), source };
        let stream = match shorten(&self.socket) {
            Ok(short) => UnixStream::connect(short.path()).await.map_err(no_daemon)?,
            Err(error) => return Err(no_daemon(error)),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mayfly")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::InvalidResponse(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Connection)?;
        let talk = async {
            let sent = tokio::time::timeout(RESPONSE_TIMEOUT, sender.send_request(request)).await;
            let response =
                sent.map_err(|_| ClientError::TimedOut)?.map_err(ClientError::Connection)?;
            take(response).await
        };
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            result = talk.as_mut() => return result,
            // The server may close the connection right after the last byte.
            _ = connection => {}
        }
        talk.await
    }
}

/// Returns the body of a successful response, or the error in it.
async fn check_status(response: Response<Incoming>) -> Result<Incoming, ClientError> {
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let bytes = read_body(body).await?;
    match serde_json::from_slice(&bytes) {
        Ok(error) => Err(ClientError::Refused { error }),
        Err(_) => Err(ClientError::InvalidResponse(format!("status {status}"))),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, MAX_RESPONSE).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| {
        match error.downcast::<hyper::Error>() {
            Ok(error) => ClientError::Connection(*error),
            Err(error) => ClientError::InvalidResponse(error.to_string()),
        }
    })
}
