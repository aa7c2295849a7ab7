//! The stream that hyper serves: all data read from it has passed the strict check.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::strict::{HttpViolation, StrictChecker};

/// Connection state that stays readable while hyper owns the stream.
#[derive(Debug, Default)]
pub(super) struct StreamStatus {
    /// The first violation in a request.
    pub(super) violation: OnceLock<HttpViolation>,
    /// Bytes in both directions.
    pub(super) traffic: AtomicU64,
}

/// A client's connection whose data is checked as it is read.
pub(super) struct CheckedStream {
    stream: TcpStream,
    strict: StrictChecker,
    /// Data that was read and checked before hyper got the stream.
    read_before: Vec<u8>,
    status: Arc<StreamStatus>,
}

impl CheckedStream {
    pub(super) fn new(stream: TcpStream, strict: StrictChecker, read_before: Vec<u8>) -> Self {
        Self { stream, strict, read_before, status: Arc::default() }
    }

    pub(super) fn status(&self) -> Arc<StreamStatus> {
        Arc::clone(&self.status)
    }
}

impl AsyncRead for CheckedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_before.is_empty() {
            let count = self.read_before.len().min(buffer.remaining());
            buffer.put_slice(&self.read_before[..count]);
            self.read_before.drain(..count);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = buffer.filled().len() - before;
        self.status.traffic.fetch_add(read as u64, Ordering::Relaxed);
        let checked = self.strict.feed(&buffer.filled()[before..]);
        // The names are taken from hyper's requests.
        drop(self.strict.take_names());
        Poll::Ready(checked.map_err(|violation| {
            buffer.set_filled(before);
            // Only the first violation counts.
            _ = self.status.violation.set(violation);
            io::Error::new(io::ErrorKind::InvalidData, violation)
        }))
    }
}

impl AsyncWrite for CheckedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.status.traffic.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
