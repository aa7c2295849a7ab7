//! Sending the log of a job, at once or while it grows.

use std::fs::File;
use std::io::{self, Read};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;

use super::call::{Call, Log};
use super::server::{Calls, LogQuery, valid};
use super::types::{JobId, Problem, ProblemKind};

/// How much is read at a time: little enough to be read without a thread of its own.
const CHUNK: usize = 64 << 10;
/// How often a growing log is looked at.
const LOOK: Duration = Duration::from_millis(200);

pub(super) async fn log(
    State(calls): State<Calls>,
    job: Result<Path<JobId>, PathRejection>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Path(job) = valid(job)?;
    let Query(LogQuery { follow }) = valid(query)?;
    // Asked once here, so that a job that isn't there has a status of its own.
    let found = calls.ask(|answer| Call::Log { job, answer }).await?;
    let mut reader = Reader { calls, job, follow, file: None, last: !found.growing };
    reader.open(&found)?;
    let body = Body::from_stream(futures_util::stream::unfold(reader, Reader::next));
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

struct Reader {
    calls: Calls,
    job: JobId,
    follow: bool,
    file: Option<File>,
    /// Whether the end of the file is the end of the log.
    last: bool,
}

impl Reader {
    fn open(&mut self, log: &Log) -> Result<(), Problem> {
        let Some(path) = log.path.as_ref().filter(|_| self.file.is_none()) else { return Ok(()) };
        match File::open(path) {
            Ok(file) => self.file = Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("can't read {}: {error}", path.display());
                return Err(Problem::new(ProblemKind::Internal, message));
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
            tokio::time::sleep(LOOK).await;
            // Whether it grows is asked before the rest is read, so nothing is missed in between.
            let job = self.job;
            let log = self.calls.ask(|answer| Call::Log { job, answer }).await;
            let opened = log.and_then(|log| {
                self.last = !log.growing;
                self.open(&log)
            });
            if let Err(problem) = opened {
                self.last = true;
                self.file = None;
                return Some((Err(io::Error::other(problem)), self));
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
