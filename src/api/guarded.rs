//! The API's unix socket, which serves processes of the daemon's own namespaces only.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use axum::serve::Listener;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};

use crate::isolation::peer::Welcome;

/// The log tells of a refusal this often at the most.
const TELLING: Duration = Duration::from_secs(60);

/// A listener that closes what others connect.
pub(super) struct Guarded {
    listener: UnixListener,
    welcome: Welcome,
    told: Option<Instant>,
}

impl Guarded {
    pub(super) fn new(listener: UnixListener) -> io::Result<Self> {
        Ok(Self { listener, welcome: Welcome::own()?, told: None })
    }
}

impl Listener for Guarded {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // Errors are waited out there.
            let (stream, address) = Listener::accept(&mut self.listener).await;
            let Err(refused) = self.welcome.check(stream.as_fd()) else {
                return (stream, address);
            };
            if self.told.is_none_or(|told| told.elapsed() >= TELLING) {
                self.told = Some(Instant::now());
                let error: &dyn std::error::Error = &refused;
                tracing::warn!(error, "refused a client of the API's socket");
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
