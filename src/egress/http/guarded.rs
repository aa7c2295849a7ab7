//! The stream that hyper serves: what it reads has passed the strict check.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::strict::{Strict, Violation};

/// What the owner of a connection wants to know while hyper has its stream.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// What was wrong with a request.
    pub(super) violation: OnceLock<Violation>,
    /// Bytes in both directions.
    pub(super) traffic: AtomicU64,
}

/// A client's connection, checked as it is read.
pub(super) struct Guarded {
    stream: TcpStream,
    strict: Strict,
    /// What was read, and checked, before hyper got the stream.
    read_before: Vec<u8>,
    watch: Arc<Watch>,
}

impl Guarded {
    pub(super) fn new(stream: TcpStream, strict: Strict, read_before: Vec<u8>) -> Self {
        Self { stream, strict, read_before, watch: Arc::default() }
    }

    pub(super) fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }
}

impl AsyncRead for Guarded {
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
        self.watch.traffic.fetch_add(read as u64, Ordering::Relaxed);
        let checked = self.strict.feed(&buffer.filled()[before..]);
        // Hyper tells whom they are for.
        drop(self.strict.take_names());
        Poll::Ready(checked.map_err(|violation| {
            buffer.set_filled(before);
            // The first is the one that counts.
            _ = self.watch.violation.set(violation);
            io::Error::new(io::ErrorKind::InvalidData, violation)
        }))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.watch.traffic.fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
