//! The command line's end of the API.

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

use super::path::reachable;
use super::types::{
    DrainReport, DrainWish, Explanation, JobFilter, JobId, JobView, MicrovmView, PoolView, Problem,
    ProblemKind, ReloadReport, Status, Submission,
};
use crate::failure::{Code, Failure};

/// How long the daemon may take for an answer, a little longer than it gives itself.
const ANSWER_TIME: Duration = Duration::from_secs(15);
/// The most bytes of an answer that is kept in memory.
const MAX_ANSWER: usize = 16 << 20;

/// Why the daemon could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon listens on {}", socket.display())]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}", problem.message)]
    Refused {
        /// Why.
        problem: Problem,
    },
    /// The conversation broke off.
    #[error("the daemon broke off")]
    Broken(#[source] hyper::Error),
    /// What came back is no answer of a daemon of this version.
    #[error("the daemon's answer can't be understood: {0}")]
    NotUnderstood(String),
    /// It took too long.
    #[error("the daemon does not answer")]
    Silent,
    /// What was received can't be passed on.
    #[error("can't write what the daemon sent")]
    Write(#[source] io::Error),
}

impl Failure for ClientError {
    fn code(&self) -> Code {
        match self {
            Self::NoDaemon { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Code::Forbidden
            }
            Self::NoDaemon { .. } | Self::Broken(_) | Self::Silent => Code::Unavailable,
            Self::Refused { problem } => match problem.kind {
                ProblemKind::Invalid | ProblemKind::TooLarge => Code::Usage,
                ProblemKind::Unauthorized | ProblemKind::NotAllowed => Code::Forbidden,
                ProblemKind::NotFound => Code::NotFound,
                ProblemKind::Conflict | ProblemKind::Unavailable => Code::Unavailable,
                ProblemKind::BadSettings => Code::BadConfiguration,
                ProblemKind::Internal => Code::Internal,
            },
            Self::NotUnderstood(_) => Code::Internal,
            Self::Write(_) => Code::CannotWrite,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoDaemon { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("host.socket_mode says who may use it".into())
            }
            Self::NoDaemon { .. } => {
                Some("start one with `mayfly serve`, or name its socket with --socket".into())
            }
            Self::Refused { problem } => problem.hint.clone(),
            Self::NotUnderstood(_) => Some("is the daemon of another version?".into()),
            Self::Broken(_) | Self::Silent | Self::Write(_) => None,
        }
    }
}

/// A daemon, by its socket. Each request is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon that listens there.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Queues a local job.
    pub async fn submit(&self, submission: &Submission) -> Result<JobView, ClientError> {
        self.ask(Method::POST, "/v1/jobs", Some(submission)).await
    }

    /// Lists jobs, the newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobView>, ClientError> {
        let mut query = vec![format!("limit={}", filter.limit())];
        query.extend(filter.state.map(|state| format!("state={state}")));
        // The name of a pool has no character that would need to be escaped; what does names none.
        let plain = |name: &&String| name.bytes().all(|byte| byte.is_ascii_graphic());
        query.extend(filter.pool.as_ref().filter(plain).map(|pool| format!("pool={pool}")));
        self.get(&format!("/v1/jobs?{}", query.join("&"))).await
    }

    /// One job.
    pub async fn job(&self, job: JobId) -> Result<JobView, ClientError> {
        self.get(&format!("/v1/jobs/{job}")).await
    }

    /// Why a job is where it is.
    pub async fn explain(&self, job: JobId) -> Result<Explanation, ClientError> {
        self.get(&format!("/v1/jobs/{job}/explanation")).await
    }

    /// Ends a job.
    pub async fn cancel(&self, job: JobId) -> Result<JobView, ClientError> {
        self.post(&format!("/v1/jobs/{job}/cancel")).await
    }

    /// The daemon's microVMs.
    pub async fn microvms(&self) -> Result<Vec<MicrovmView>, ClientError> {
        self.get("/v1/microvms").await
    }

    /// The pools.
    pub async fn pools(&self) -> Result<Vec<PoolView>, ClientError> {
        self.get("/v1/pools").await
    }

    /// How the daemon is.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.get("/v1/status").await
    }

    /// Lets the daemon take no more jobs and end.
    pub async fn drain(&self, wish: DrainWish) -> Result<DrainReport, ClientError> {
        let mut query = vec![format!("end_jobs={}", wish.end_jobs)];
        query.extend(wish.within_ms.map(|within| format!("within_ms={within}")));
        self.post(&format!("/v1/drain?{}", query.join("&"))).await
    }

    /// Lets the daemon read its settings again.
    pub async fn reload(&self) -> Result<ReloadReport, ClientError> {
        self.post("/v1/reload").await
    }

    /// Passes the log of a job on, piece by piece; with `follow` until the job is over.
    pub async fn log(
        &self,
        job: JobId,
        follow: bool,
        mut sink: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/jobs/{job}/log?follow={follow}");
        self.exchange(Method::GET, &path, Bytes::new(), async |response| {
            let mut body = answer(response).await?;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(ClientError::Broken)?;
                if let Some(piece) = frame.data_ref() {
                    sink(piece).map_err(ClientError::Write)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    async fn post<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.ask(Method::POST, path, None::<&()>).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let body = body.map(serde_json::to_vec).transpose();
        let body = body.map_err(|error| ClientError::NotUnderstood(error.to_string()))?;
        let body = Bytes::from(body.unwrap_or_default());
        let exchange = self.exchange(method, path, body, async |response| {
            let bytes = whole(answer(response).await?).await?;
            serde_json::from_slice(&bytes)
                .map_err(|error| ClientError::NotUnderstood(error.to_string()))
        });
        tokio::time::timeout(ANSWER_TIME, exchange).await.unwrap_or(Err(ClientError::Silent))
    }

    /// Sends a request and lets `take` have the response, while the connection is kept going.
    async fn exchange<T>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        take: impl AsyncFnOnce(Response<Incoming>) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let no_daemon = |source| ClientError::NoDaemon { socket: self.socket.clone(), source };
        let stream = match reachable(&self.socket) {
            Ok(reachable) => UnixStream::connect(reachable.path()).await.map_err(no_daemon)?,
            Err(error) => return Err(no_daemon(error)),
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "mayfly")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::NotUnderstood(error.to_string()))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ClientError::Broken)?;
        let talk = async {
            let sent = tokio::time::timeout(ANSWER_TIME, sender.send_request(request)).await;
            let response = sent.map_err(|_| ClientError::Silent)?.map_err(ClientError::Broken)?;
            take(response).await
        };
        let mut talk = std::pin::pin!(talk);
        tokio::select! {
            result = talk.as_mut() => return result,
            // The connection ends first where the server closes it behind the last byte.
            _ = connection => {}
        }
        talk.await
    }
}

/// The body of a good response, or what is wrong.
async fn answer(response: Response<Incoming>) -> Result<Incoming, ClientError> {
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let bytes = whole(body).await?;
    match serde_json::from_slice(&bytes) {
        Ok(problem) => Err(ClientError::Refused { problem }),
        Err(_) => Err(ClientError::NotUnderstood(format!("status {status}"))),
    }
}

async fn whole(body: Incoming) -> Result<Bytes, ClientError> {
    let collected = Limited::new(body, MAX_ANSWER).collect().await;
    collected.map(http_body_util::Collected::to_bytes).map_err(|error| {
        match error.downcast::<hyper::Error>() {
            Ok(error) => ClientError::Broken(*error),
            Err(error) => ClientError::NotUnderstood(error.to_string()),
        }
    })
}
