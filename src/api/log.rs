//! Sends the log of a job, once or while it grows.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::call::{Call, JobLog};
use super::server::{Calls, LogQuery, valid};
use super::types::{ApiError, ApiErrorKind, JobId};

/// How much is read at a time: little enough to read without a separate thread.
const CHUNK: usize = 64 << 10;
/// How often a growing log is read.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

pub(super) async fn log(
    State(calls): State<Calls>,
    job: Result<Path<JobId>, PathRejection>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Path(job) = valid(job)?;
    let Query(LogQuery { follow }) = valid(query)?;
    // Called once here, so that an unknown job gets its own status code.
    let log = calls.request(|responder| Call::Log { job, responder }).await?;
    let mut reader = LogReader { calls, job, follow, file: None, last: !log.growing };
    reader.open(&log)?;
    let body = Body::from_stream(futures_util::stream::unfold(reader, LogReader::next));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

/// Reads a log file and follows it.
struct LogReader {
    calls: Calls,
    job: JobId,
    follow: bool,
    file: Option<File>,
    /// Whether the end of the file is the end of the log.
    last: bool,
}

impl LogReader {
    fn open(&mut self, log: &JobLog) -> Result<(), ApiError> {
        let Some(path) = log.path.as_ref().filter(|_| self.file.is_none()) else { return Ok(()) };
        match File::open(path) {
            Ok(file) => self.file = Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("can't read {}: {error}", path.display());
                return Err(ApiError::new(ApiErrorKind::Internal, message));
            }
        }
        Ok(())
    }

    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        loop {
            match self.read() {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some((Ok(bytes), self)),
                Err(error) => {
                    self.last = true;
                    self.file = None;
                    return Some((Err(error), self));
                }
            }
            if self.last || !self.follow {
                return None;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
            // Check whether it grows before reading the rest, so that nothing is missed in between.
            let job = self.job;
            let log = self.calls.request(|responder| Call::Log { job, responder }).await;
            let opened = log.and_then(|log| {
                self.last = !log.growing;
                self.open(&log)
            });
            if let Err(error) = opened {
                self.last = true;
                self.file = None;
                return Some((Err(io::Error::other(error)), self));
            }
        }
    }

    fn read(&mut self) -> io::Result<Bytes> {
        let Some(file) = &mut self.file else { return Ok(Bytes::new()) };
        let mut buffer = vec![0; CHUNK];
        let length = file.read(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer.into())
    }
}
