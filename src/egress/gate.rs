//! The gate of one microVM: everything that serves its namespace.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::address::AddressCheck;
use super::buffers::limit_guest_buffers;
use super::dial::{CredentialsError, Dialer, Resolve};
use super::listeners::{DNS_PORT, Listeners, PROXY_PORT};
use super::pending::{Endpoints, PendingConnection, PendingConnections};
use super::policy::Policy;
use super::rate_limiter::RateLimiter;
use super::record::{EgressRecorder, Subject, Via};
use super::state::{GateLimits, GateState};
use super::tunnel::reset;
use super::verdict::{RefusalCause, Verdict};
use super::{dns, http, packets, pending, transparent};

/// The time that connections get to end by themselves when the microVM stops.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// The share of all connections that may be pending. The rest is reserved for established ones: a
/// guest that connects to unresponsive destinations can still look names up and use the proxy.
const PENDING_SHARE: (usize, usize) = (3, 4);

/// The delay before a listener accepts again after a failure: the process is out of file
/// descriptors, and an immediate retry would spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// The settings of a [`Gate`].
pub struct GateSettings {
    /// The egress policy.
    pub policy: Arc<Policy>,
    /// The resolver, on the host.
    pub resolver: Arc<dyn Resolve>,
    /// Which addresses may be dialed; it should include the host's own
    /// ([`host_addresses`](super::address::host_addresses)).
    pub addresses: AddressCheck,
    /// The limits on connections.
    pub limits: GateLimits,
    /// The address of the DNS stub and the forward proxy in the namespace.
    pub gateway: Ipv4Addr,
}

/// Serves the namespace of one microVM.
pub struct Gate {
    shared: Arc<GateState>,
}

impl Gate {
    /// Creates a gate and reads the parent proxy's credentials, if the policy has any.
    pub fn new(settings: GateSettings, recorder: EgressRecorder) -> Result<Self, CredentialsError> {
        let GateSettings { policy, resolver, addresses, limits, gateway } = settings;
        let dialer = Dialer::new(Arc::clone(&policy), addresses, resolver, limits.dial)?;
        let rates = policy.rates();
        let rate_limiters =
            rates.map(|(rule, rate)| (rule.clone(), Arc::new(RateLimiter::new(rate)))).collect();
        let open = Arc::new(Semaphore::new(limits.connections));
        let max_pending = (limits.connections * PENDING_SHARE.0 / PENDING_SHARE.1).max(1);
        let shared = Arc::new(GateState {
            policy,
            dialer,
            recorder,
            limits,
            gateway,
            cancel: CancellationToken::new(),
            names: Mutex::default(),
            open,
            pending: Mutex::new(PendingConnections::new(max_pending)),
            rate_limiters,
        });
        Ok(Self { shared })
    }

    /// Serves the listeners until `cancel` is canceled. Fails only if the sockets themselves fail.
    /// When it returns, all connections have ended.
    pub async fn serve(
        self,
        listeners: Listeners,
        cancel: CancellationToken,
    ) -> std::io::Result<()> {
        let mut tasks = JoinSet::new();
        let dns = UdpSocket::from_std(listeners.dns)?;
        for listener in listeners.tcp {
            let listener = TcpListener::from_std(listener)?;
            tasks.spawn(accept(Arc::clone(&self.shared), listener));
        }
        let datagrams = dns::serve_datagrams(Arc::clone(&self.shared), dns);
        let packets = packets::serve(Arc::clone(&self.shared), listeners.packets);
        let pending = pending::serve(Arc::clone(&self.shared), listeners.pending);
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            () = datagrams => Ok(()),
            result = packets => result,
            result = pending => result,
        };
        self.shared.cancel.cancel();
        while tasks.join_next().await.is_some() {}
        self.shared.recorder.flush();
        result
    }
}

/// Accepts connections and owns them until they end.
async fn accept(shared: Arc<GateState>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&shared, stream, peer, &mut connections),
                Err(_) => sleep(ACCEPT_RETRY_DELAY).await,
            },
        }
    }
    // Dropping the set aborts the connections that did not end by themselves.
    _ = timeout(SHUTDOWN_GRACE, async { while connections.join_next().await.is_some() {} }).await;
}

/// Serves a pending connection by its plan, and any other by its destination address.
fn admit(
    shared: &Arc<GateState>,
    stream: TcpStream,
    peer: SocketAddr,
    connections: &mut JoinSet<()>,
) {
    let Ok(SocketAddr::V4(to)) = stream.local_addr() else { return };
    let SocketAddr::V4(guest) = peer else { return };
    // Both fail only on a closed connection. The listener's filter is for its SYNs.
    _ = SockRef::from(&stream).detach_filter();
    _ = stream.set_nodelay(true);
    let connection = shared.pending().take(&Endpoints { guest, destination: to });
    let is_gateway = IpAddr::V4(*to.ip()) == shared.gateway;
    let permit = match connection {
        Some((PendingConnection { plan, permit, .. }, upstream)) => {
            limit_guest_buffers(&stream, shared.opened());
            let shared = Arc::clone(shared);
            connections.spawn(async move {
                transparent::serve(&shared, stream, plan, upstream).await;
                drop(permit);
            });
            return;
        }
        None if !is_gateway || !matches!(to.port(), DNS_PORT | PROXY_PORT) => {
            // The pending entry has expired.
            return reset(&stream);
        }
        None => Arc::clone(&shared.open).try_acquire_owned(),
    };
    let Ok(permit) = permit else { return refuse_over_limit(shared, &stream, to) };
    limit_guest_buffers(&stream, shared.opened());
    let shared = Arc::clone(shared);
    connections.spawn(async move {
        match to.port() {
            DNS_PORT => dns::serve_connection(&shared, stream).await,
            _ => http::serve_proxy(&shared, stream).await,
        }
        drop(permit);
    });
}

fn refuse_over_limit(shared: &GateState, stream: &TcpStream, to: SocketAddrV4) {
    let subject = Subject {
        via: Via::Transparent,
        host: to.ip().to_string(),
        port: to.port(),
        original: Some(to.into()),
        method: "CONNECT".into(),
        url: None,
    };
    shared.recorder.record_verdict(
        subject,
        &Verdict::Refused(RefusalCause::TooManyConnections),
        None,
    );
    reset(stream);
}
