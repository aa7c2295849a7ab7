//! The API's Unix socket, which accepts only processes in the daemon's own namespaces.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use mayfly_isolation::peer::PeerPolicy;

/// The minimum time between two log lines about rejected clients.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A listener that closes connections from other namespaces.
pub(super) struct CheckedListener {
    listener: UnixListener,
    welcome: PeerPolicy,
    last_logged: Option<Instant>,
}

impl CheckedListener {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        Ok(Self { listener, welcome: PeerPolicy::same_namespaces()?, last_logged: None })
    }
}

impl Listener for CheckedListener {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // `Listener::accept` retries on errors.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let Err(refused) = self.welcome.check(stream.as_fd()) else {
                return (stream, address);
            };
            if self.last_logged.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                self.last_logged = Some(Instant::now());
                let error: &dyn std::error::Error = &refused;
                tracing::warn!(error, "rejected a connection to the API socket");
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
