//! The gate of one microVM: everything that serves its namespace, put together.

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
use super::buffers::bound_near;
use super::dial::{CredentialsError, Dialer, Resolve};
use super::hold::{Ends, Held, Holds};
use super::listen::{DNS_PORT, Listeners, PROXY_PORT};
use super::pace::Pace;
use super::policy::Policy;
use super::record::{Recorder, Subject, Via};
use super::shared::{Limits, Shared};
use super::tunnel::reset;
use super::verdict::{Cause, Verdict};
use super::{dns, hold, http, packets, transparent};

/// How long connections have to end by themselves when the microVM goes away.
const FAREWELL: Duration = Duration::from_secs(1);

/// The part of all connections that may be held. The rest is for those that are not: a guest that
/// connects to what doesn't answer can still look names up and use the proxy.
const HELD: (usize, usize) = (3, 4);

/// How long a listener rests when no connection can be accepted: the process has no descriptors
/// left, and trying again at once would only spin.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// What a gate is made of.
pub struct Settings {
    /// What the microVM may reach.
    pub policy: Arc<Policy>,
    /// Who resolves names, on the host.
    pub resolver: Arc<dyn Resolve>,
    /// Which addresses may be dialled; it should know the host's own
    /// ([`of_this_host`](super::address::of_this_host)).
    pub addresses: AddressCheck,
    /// The bounds.
    pub limits: Limits,
    /// The address in the namespace where the DNS stub and the forward proxy are.
    pub gateway: Ipv4Addr,
}

/// Serves the namespace of one microVM.
pub struct Gate {
    shared: Arc<Shared>,
}

impl Gate {
    /// Reads the parent proxy's credentials, where the policy has some.
    pub fn new(settings: Settings, recorder: Recorder) -> Result<Self, CredentialsError> {
        let Settings { policy, resolver, addresses, limits, gateway } = settings;
        let dialer = Dialer::new(Arc::clone(&policy), addresses, resolver, limits.dial)?;
        let rates = policy.rates();
        let paces = rates.map(|(rule, rate)| (rule.clone(), Arc::new(Pace::new(rate)))).collect();
        let open = Arc::new(Semaphore::new(limits.connections));
        let held = (limits.connections * HELD.0 / HELD.1).max(1);
        let shared = Arc::new(Shared {
            policy,
            dialer,
            recorder,
            limits,
            gateway,
            cancel: CancellationToken::new(),
            names: Mutex::default(),
            open,
            holds: Mutex::new(Holds::new(held)),
            paces,
        });
        Ok(Self { shared })
    }

    /// Serves the listeners until `cancel` is cancelled. Fails only where the sockets themselves
    /// fail. All connections have ended when it returns.
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
        let holds = hold::serve(Arc::clone(&self.shared), listeners.holds);
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            () = datagrams => Ok(()),
            result = packets => result,
            result = holds => result,
        };
        self.shared.cancel.cancel();
        while tasks.join_next().await.is_some() {}
        self.shared.recorder.flush();
        result
    }
}

/// Accepts connections and owns them until they end.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = shared.cancel.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(&shared, stream, peer, &mut connections),
                Err(_) => sleep(ACCEPT_REST).await,
            },
        }
    }
    // Dropping the set ends what didn't end by itself.
    _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

/// Serves a connection that was held with what it was held for, and any other by where the guest sent
/// it.
fn admit(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr, connections: &mut JoinSet<()>) {
    let Ok(SocketAddr::V4(to)) = stream.local_addr() else { return };
    let SocketAddr::V4(guest) = peer else { return };
    // Both fail only on a connection that has gone. The listener's filter is for its SYNs.
    _ = SockRef::from(&stream).detach_filter();
    _ = stream.set_nodelay(true);
    let held = shared.holds().take(&Ends { guest, to });
    let is_gateway = IpAddr::V4(*to.ip()) == shared.gateway;
    let permit = match held {
        Some((Held { plan, permit, .. }, reached)) => {
            bound_near(&stream, shared.opened());
            let shared = Arc::clone(shared);
            connections.spawn(async move {
                transparent::serve(&shared, stream, plan, reached).await;
                drop(permit);
            });
            return;
        }
        None if !is_gateway || !matches!(to.port(), DNS_PORT | PROXY_PORT) => {
            // Its guest came too late.
            return reset(&stream);
        }
        None => Arc::clone(&shared.open).try_acquire_owned(),
    };
    let Ok(permit) = permit else { return refuse_one_too_many(shared, &stream, to) };
    bound_near(&stream, shared.opened());
    let shared = Arc::clone(shared);
    connections.spawn(async move {
        match to.port() {
            DNS_PORT => dns::serve_connection(&shared, stream).await,
            _ => http::serve_proxy(&shared, stream).await,
        }
        drop(permit);
    });
}

fn refuse_one_too_many(shared: &Shared, stream: &TcpStream, to: SocketAddrV4) {
    let subject = Subject {
        via: Via::Transparent,
        host: to.ip().to_string(),
        port: to.port(),
        original: Some(to.into()),
        method: "CONNECT".into(),
        url: None,
    };
    shared.recorder.verdict(subject, &Verdict::Refused(Cause::TooManyConnections), None);
    reset(stream);
}
