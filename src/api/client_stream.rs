//! Client connections with a timeout on stalled writes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use super::admission::ClientSource;

/// How long a client may read nothing of what it is sent.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// The minimum rate in bytes per second at which the client must read, beyond [`STALL_TIMEOUT`].
const MIN_RATE: u64 = 4 << 10;

/// A connection from a client.
pub(super) trait ClientStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Returns the source of the connection.
    fn source(&self) -> ClientSource;

    /// Returns the user ID of the client process, if known.
    fn user(&self) -> Option<u32> {
        None
    }

    /// Makes the kernel drop a client that vanished without closing the connection.
    fn prepare(&self) {}
}

impl ClientStream for TcpStream {
    fn source(&self) -> ClientSource {
        // The address is unknown if the client has disconnected already.
        self.peer_addr().map_or(ClientSource::Process(0), |address| ClientSource::of(address.ip()))
    }

    fn prepare(&self) {
        // Fails only if it is not a TCP socket.
        _ = socket2::SockRef::from(self).set_tcp_user_timeout(Some(STALL_TIMEOUT));
    }
}

impl ClientStream for UnixStream {
    fn source(&self) -> ClientSource {
        let process = self.peer_cred().ok().and_then(|credentials| credentials.pid());
        ClientSource::Process(process.unwrap_or_default())
    }

    fn user(&self) -> Option<u32> {
        self.peer_cred().ok().map(|credentials| credentials.uid())
    }
}

/// What a connection waits for.
#[derive(Debug)]
pub(super) struct Activity {
    start: Instant,
    /// Whether the client owes nothing: its request is complete. The response may take long, and
    /// the client's silence meanwhile is not a stall.
    is_idle: AtomicBool,
    /// Whether it waits for more of the request.
    is_reading: AtomicBool,
    /// When it started to wait for the client to read, in milliseconds since `start`;
    /// [`Self::NOT_WAITING`] if it doesn't.
    writing: AtomicU64,
}

impl Activity {
    const NOT_WAITING: u64 = u64::MAX;

    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            is_idle: AtomicBool::new(false),
            is_reading: AtomicBool::new(false),
            writing: AtomicU64::new(Self::NOT_WAITING),
        })
    }

    /// Records whether the request is complete, so that the client owes nothing.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }

    /// Returns how long it has been waiting for the client: for its request since the beginning, so
    /// that a byte now and then does not help; or since the client read something.
    pub(super) fn blocked(&self) -> Duration {
        let now = self.now();
        let is_incomplete =
            self.is_reading.load(Ordering::Relaxed) && !self.is_idle.load(Ordering::Relaxed);
        let reading = if is_incomplete { now } else { 0 };
        let writing = match self.writing.load(Ordering::Relaxed) {
            Self::NOT_WAITING => 0,
            since => now.saturating_sub(since),
        };
        Duration::from_millis(reading.max(writing))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(Self::NOT_WAITING)
    }

    /// Records whether an attempt to write has to wait.
    fn record_write(&self, pending: bool) {
        if !pending {
            self.writing.store(Self::NOT_WAITING, Ordering::Relaxed);
        } else if self.writing.load(Ordering::Relaxed) == Self::NOT_WAITING {
            self.writing.store(self.now(), Ordering::Relaxed);
        }
    }
}

/// A client's stream that fails if the client reads too slowly.
pub(super) struct TimedStream<S> {
    stream: S,
    activity: Arc<Activity>,
    /// Bytes that the client has read, and the total time spent waiting for it.
    written: u64,
    waited: Duration,
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Instant,
    deadline: Pin<Box<Sleep>>,
}

impl<S> TimedStream<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, written: 0, waited: Duration::ZERO, waiting: None }
    }

    /// Returns how long the next wait may last.
    fn remaining_time(&self) -> Duration {
        let earned = Duration::from_secs(self.written / MIN_RATE);
        STALL_TIMEOUT.min((STALL_TIMEOUT + earned).saturating_sub(self.waited))
    }

    /// Accounts for an attempt to write, and fails if the client has stalled for too long.
    fn record_write(
        &mut self,
        attempt: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.activity.record_write(attempt.is_pending());
        if let Poll::Ready(result) = attempt {
            if let Some(waiting) = self.waiting.take() {
                self.waited = self.waited.saturating_add(waiting.since.elapsed());
            }
            if let Ok(count) = result {
                self.written = self.written.saturating_add(count as u64);
            }
            return Poll::Ready(result);
        }
        let remaining = self.remaining_time();
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = Instant::now();
            Waiting { since, deadline: Box::pin(sleep_until(since + remaining)) }
        });
        ready!(waiting.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.activity.is_reading.store(result.is_pending(), Ordering::Relaxed);
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.record_write(attempt, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.record_write(attempt, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_times_out() {
        let (near, _far) = tokio::io::duplex(10);
        let activity = Activity::new();
        let mut timed = TimedStream::new(near, Arc::clone(&activity));
        let begin = Instant::now();
        let error = timed.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
        assert!(activity.blocked() >= STALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_byte_by_byte_counts_from_its_beginning() {
        let (near, mut far) = tokio::io::duplex(1);
        let activity = Activity::new();
        let mut timed = TimedStream::new(near, Arc::clone(&activity));
        let send = async {
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(500)).await;
                far.write_u8(0).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let mut request = [0; 100];
        tokio::select! {
            result = timed.read_exact(&mut request) => panic!("complete: {result:?}"),
            () = send => {}
        }
        assert!(activity.blocked() >= Duration::from_secs(10), "{:?}", activity.blocked());
        activity.set_idle(true);
        assert_eq!(activity.blocked(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_a_byte_now_and_then_times_out() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut timed = TimedStream::new(near, Activity::new());
        let slow = async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                if far.read_u8().await.is_err() {
                    return;
                }
            }
        };
        let begin = Instant::now();
        let written = tokio::select! {
            written = timed.write_all(&[0; 1000]) => written,
            () = slow => Ok(()),
        };
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() <= 2 * STALL_TIMEOUT, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_everything_is_never_dropped() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let activity = Activity::new();
        let mut timed = TimedStream::new(near, Arc::clone(&activity));
        let take = async move {
            let mut buffer = vec![0; 64 << 10];
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(15)).await;
                far.read_exact(&mut buffer).await.unwrap();
            }
        };
        let bytes = vec![0; 6_400 << 10];
        let (written, ()) = tokio::join!(timed.write_all(&bytes), take);
        written.unwrap();
        assert_eq!(activity.blocked(), Duration::ZERO);
    }
}
