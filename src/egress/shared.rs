//! What all connections of a microVM share: the policy, the names, the record, the bounds.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::buffers::bound_far;
use super::dial::{Dialer, Dialled, HttpRoute};
use super::hold::Holds;
use super::host::Host;
use super::names::Names;
use super::pace::Pace;
use super::policy::{Origin, Policy};
use super::record::Recorder;
use super::tunnel::Bounds;
use super::verdict::Cause;

/// What bounds the connections of a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections that are open at a time.
    pub connections: usize,
    /// How long a client may take to say what it wants: a `ClientHello`, a request's head.
    pub opening: Duration,
    /// How long reaching a destination may take, lookup included.
    pub dial: Duration,
    /// How long a connection may be quiet.
    pub idle: Duration,
}

impl Default for Limits {
    /// Squid's times where it has one, and more connections than any build opens.
    fn default() -> Self {
        Self {
            connections: 1024,
            opening: Duration::from_secs(10),
            dial: Duration::from_secs(15),
            idle: Duration::from_secs(900),
        }
    }
}

/// What all connections of a gate share.
pub(super) struct Shared {
    pub(super) policy: Arc<Policy>,
    pub(super) dialer: Dialer,
    pub(super) recorder: Recorder,
    pub(super) limits: Limits,
    pub(super) gateway: Ipv4Addr,
    pub(super) cancel: CancellationToken,
    pub(super) names: Mutex<Names>,
    /// How many connections may still be open; those that are held count.
    pub(super) open: Arc<Semaphore>,
    pub(super) holds: Mutex<Holds>,
    /// The rates of the rules that bound one.
    pub(super) paces: HashMap<Origin, Arc<Pace>>,
}

impl Shared {
    pub(super) fn names(&self) -> MutexGuard<'_, Names> {
        // Names are whole between any two statements that could panic.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connections that are held.
    pub(super) fn holds(&self) -> MutexGuard<'_, Holds> {
        // A table that was left half-way forgets a connection at worst.
        self.holds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many connections are open.
    pub(super) fn opened(&self) -> usize {
        self.limits.connections.saturating_sub(self.open.available_permits())
    }

    /// Connects to a destination.
    pub(super) async fn dial(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<Dialled, Cause> {
        let dialled = self.dialer.dial(host, port, allow_private).await?;
        bound_far(&dialled.stream, self.opened());
        Ok(dialled)
    }

    /// Connects to where plain HTTP requests for a destination go.
    pub(super) async fn dial_http(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<HttpRoute, Cause> {
        let route = self.dialer.dial_http(host, port, allow_private).await?;
        bound_far(&route.dialled().stream, self.opened());
        Ok(route)
    }

    /// What bounds a tunnel.
    pub(super) fn bounds(&self, max_bytes: Option<u64>, pace: Option<Arc<Pace>>) -> Bounds {
        Bounds { idle: self.limits.idle, max_bytes, pace, cancel: self.cancel.clone() }
    }
}
