//! State shared by all connections of a gate: policy, names, record, limits.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::buffers::limit_destination_buffers;
use super::dial::{DialedConnection, Dialer, HttpRoute};
use super::host::Host;
use super::names::NameTable;
use super::pending::PendingConnections;
use super::policy::{Policy, RuleOrigin};
use super::rate_limiter::RateLimiter;
use super::record::EgressRecorder;
use super::tunnel::TunnelLimits;
use super::verdict::RefusalCause;

/// The limits on the connections of a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateLimits {
    /// Maximum number of open connections.
    pub connections: usize,
    /// Timeout for a client's first bytes: a `ClientHello` or a request head.
    pub opening: Duration,
    /// Timeout for connecting to a destination, lookup included.
    pub dial: Duration,
    /// Idle timeout of a connection.
    pub idle: Duration,
}

impl Default for GateLimits {
    /// Squid's timeouts where it has them, and more connections than any build opens.
    fn default() -> Self {
        Self {
            connections: 1024,
            opening: Duration::from_secs(10),
            dial: Duration::from_secs(15),
            idle: Duration::from_secs(900),
        }
    }
}

/// State shared by all connections of a gate.
pub(super) struct GateState {
    pub(super) policy: Arc<Policy>,
    pub(super) dialer: Dialer,
    pub(super) recorder: EgressRecorder,
    pub(super) limits: GateLimits,
    pub(super) gateway: Ipv4Addr,
    pub(super) cancel: CancellationToken,
    pub(super) names: Mutex<NameTable>,
    /// Permits for open connections; pending connections count as open.
    pub(super) open: Arc<Semaphore>,
    pub(super) pending: Mutex<PendingConnections>,
    /// The rate limiters of the rules with `max_rate`.
    pub(super) rate_limiters: HashMap<RuleOrigin, Arc<RateLimiter>>,
}

impl GateState {
    pub(super) fn names(&self) -> MutexGuard<'_, NameTable> {
        // The table is consistent between any two statements that could panic.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the table of pending connections.
    pub(super) fn pending(&self) -> MutexGuard<'_, PendingConnections> {
        // A table left half-updated loses one connection at worst.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the number of open connections.
    pub(super) fn opened(&self) -> usize {
        self.limits.connections.saturating_sub(self.open.available_permits())
    }

    /// Connects to a destination.
    pub(super) async fn dial(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<DialedConnection, RefusalCause> {
        let dialed = self.dialer.dial(host, port, allow_private).await?;
        limit_destination_buffers(&dialed.stream, self.opened());
        Ok(dialed)
    }

    /// Connects to the next hop for plain HTTP requests to a destination.
    pub(super) async fn dial_http(
        &self,
        host: &Host,
        port: u16,
        allow_private: bool,
    ) -> Result<HttpRoute, RefusalCause> {
        let route = self.dialer.dial_http(host, port, allow_private).await?;
        limit_destination_buffers(&route.dialed().stream, self.opened());
        Ok(route)
    }

    /// Returns the limits of a tunnel.
    pub(super) fn tunnel_limits(
        &self,
        max_bytes: Option<u64>,
        rate_limiter: Option<Arc<RateLimiter>>,
    ) -> TunnelLimits {
        TunnelLimits {
            idle: self.limits.idle,
            max_bytes,
            rate_limiter,
            cancel: self.cancel.clone(),
        }
    }
}
