//! The connection of a client that may stand still: how long it is waited for.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, Sleep, sleep_until};

use super::admission::Source;

/// How long a client may take nothing of what it is sent.
const STALLED: Duration = Duration::from_secs(30);
/// What it has to take of it in each second that it makes the server wait, beyond [`STALLED`].
const SLOWEST: u64 = 4 << 10;

/// A stream from a client.
pub(super) trait Client: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Who it is.
    fn source(&self) -> Source;

    /// The user whose process it is, where the kernel says so.
    fn user(&self) -> Option<u32> {
        None
    }

    /// Has the kernel hang up on a client that is gone without a word.
    fn prepare(&self) {}
}

impl Client for TcpStream {
    fn source(&self) -> Source {
        // One that has gone already is nobody's.
        self.peer_addr().map_or(Source::Process(0), |address| Source::of(address.ip()))
    }

    fn prepare(&self) {
        // Fails only on what is no TCP socket.
        _ = socket2::SockRef::from(self).set_tcp_user_timeout(Some(STALLED));
    }
}

impl Client for UnixStream {
    fn source(&self) -> Source {
        let process = self.peer_cred().ok().and_then(|credentials| credentials.pid());
        Source::Process(process.unwrap_or_default())
    }

    fn user(&self) -> Option<u32> {
        self.peer_cred().ok().map(|credentials| credentials.uid())
    }
}

/// What a connection is waiting for, as others see it.
#[derive(Debug)]
pub(super) struct Activity {
    begin: Instant,
    /// Whether the last request has its answer, whose parts may be long in coming: a client that
    /// says nothing meanwhile keeps nobody waiting.
    answered: AtomicBool,
    /// Since when it waits for the client, in milliseconds since `begin`; [`Self::NOT`] where not.
    reading: AtomicU64,
    writing: AtomicU64,
}

impl Activity {
    const NOT: u64 = u64::MAX;

    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            answered: AtomicBool::new(false),
            reading: AtomicU64::new(Self::NOT),
            writing: AtomicU64::new(Self::NOT),
        })
    }

    /// Notes whether the last request has its answer.
    pub(super) fn answered(&self, answered: bool) {
        self.answered.store(answered, Ordering::Relaxed);
    }

    /// How long it has waited for the client.
    pub(super) fn blocked(&self) -> Duration {
        let now = self.now();
        let since = |waits: &AtomicU64| match waits.load(Ordering::Relaxed) {
            Self::NOT => 0,
            since => now.saturating_sub(since),
        };
        let reading = if self.answered.load(Ordering::Relaxed) { 0 } else { since(&self.reading) };
        Duration::from_millis(reading.max(since(&self.writing)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(Self::NOT)
    }

    /// Notes whether an attempt has to wait.
    fn note(&self, waits: &AtomicU64, pending: bool) {
        if !pending {
            waits.store(Self::NOT, Ordering::Relaxed);
        } else if waits.load(Ordering::Relaxed) == Self::NOT {
            waits.store(self.now(), Ordering::Relaxed);
        }
    }
}

/// A client's stream that fails where the client takes too little of what it is sent.
pub(super) struct Timed<S> {
    stream: S,
    activity: Arc<Activity>,
    /// What it has taken, and how long it was waited for in all.
    taken: u64,
    waited: Duration,
    waiting: Option<Waiting>,
}

struct Waiting {
    since: Instant,
    deadline: Pin<Box<Sleep>>,
}

impl<S> Timed<S> {
    pub(super) fn new(stream: S, activity: Arc<Activity>) -> Self {
        Self { stream, activity, taken: 0, waited: Duration::ZERO, waiting: None }
    }

    /// How long it may still be waited for.
    fn patience(&self) -> Duration {
        let earned = Duration::from_secs(self.taken / SLOWEST);
        STALLED.min((STALLED + earned).saturating_sub(self.waited))
    }

    /// Takes in how an attempt to write went.
    fn written(
        &mut self,
        attempt: Poll<io::Result<usize>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let activity = &self.activity;
        activity.note(&activity.writing, attempt.is_pending());
        if let Poll::Ready(result) = attempt {
            if let Some(waiting) = self.waiting.take() {
                self.waited = self.waited.saturating_add(waiting.since.elapsed());
            }
            if let Ok(count) = result {
                self.taken = self.taken.saturating_add(count as u64);
            }
            return Poll::Ready(result);
        }
        let patience = self.patience();
        let waiting = self.waiting.get_or_insert_with(|| {
            let since = Instant::now();
            Waiting { since, deadline: Box::pin(sleep_until(since + patience)) }
        });
        ready!(waiting.deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.activity.note(&self.activity.reading, result.is_pending());
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(attempt, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let attempt = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.written(attempt, context)
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
    async fn who_takes_nothing_is_waited_for_as_long_as_said() {
        let (near, _far) = tokio::io::duplex(10);
        let activity = Activity::new();
        let mut timed = Timed::new(near, Arc::clone(&activity));
        let begin = Instant::now();
        let error = timed.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!((error.kind(), begin.elapsed().as_secs()), (io::ErrorKind::TimedOut, 30));
        assert!(activity.blocked() >= STALLED);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_byte_now_and_then_is_not_waited_for_much_longer() {
        let (near, mut far) = tokio::io::duplex(1);
        let mut timed = Timed::new(near, Activity::new());
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
        assert!(begin.elapsed() <= 2 * STALLED, "{:?}", begin.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_all_of_it_is_never_hung_up_on() {
        let (near, mut far) = tokio::io::duplex(64 << 10);
        let activity = Activity::new();
        let mut timed = Timed::new(near, Arc::clone(&activity));
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
