//! The gate of one microVM: everything that serves its namespace, put together.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::address::AddressCheck;
use super::buffers::bound_near;
use super::dial::{CredentialsError, Dialer, Resolve};
use super::listen::{DNS_PORT, Listeners, PROXY_PORT};
use super::pace::Pace;
use super::policy::Policy;
use super::record::{Recorder, Subject, Via};
use super::shared::{Limits, Shared};
use super::tunnel::reset;
use super::verdict::{Cause, Verdict};
use super::{dns, http, packets, transparent};

/// How long connections have to end by themselves when the microVM goes away.
const FAREWELL: Duration = Duration::from_secs(1);

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
        let shared = Arc::new(Shared {
            policy,
            dialer,
            recorder,
            limits,
            gateway,
            cancel: CancellationToken::new(),
            names: Mutex::default(),
            open,
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
        let result = tokio::select! {
            () = cancel.cancelled() => Ok(()),
            () = datagrams => Ok(()),
            result = packets => result,
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
                Ok((stream, _)) => match Arc::clone(&shared.open).try_acquire_owned() {
                    Ok(permit) => {
                        bound_near(&stream, shared.opened());
                        let shared = Arc::clone(&shared);
                        connections.spawn(async move {
                            serve(&shared, stream).await;
                            drop(permit);
                        });
                    }
                    Err(_) => refuse_one_too_many(&shared, &stream),
                },
                Err(_) => sleep(ACCEPT_REST).await,
            },
        }
    }
    // Dropping the set ends what didn't end by itself.
    _ = timeout(FAREWELL, async { while connections.join_next().await.is_some() {} }).await;
}

fn refuse_one_too_many(shared: &Shared, stream: &TcpStream) {
    let original = stream.local_addr().ok();
    let subject = Subject {
        via: Via::Transparent,
        host: original.map(|address| address.ip().to_string()).unwrap_or_default(),
        port: original.map_or(0, |address| address.port()),
        original,
        method: "CONNECT".into(),
        url: None,
    };
    shared.recorder.verdict(subject, &Verdict::Refused(Cause::TooManyConnections), None);
    reset(stream);
}

/// Serves one connection by where the guest sent it.
async fn serve(shared: &Arc<Shared>, stream: TcpStream) {
    let Ok(SocketAddr::V4(original)) = stream.local_addr() else { return };
    // Fails only on a connection that has gone.
    _ = stream.set_nodelay(true);
    match (IpAddr::V4(*original.ip()) == shared.gateway, original.port()) {
        (true, DNS_PORT) => dns::serve_connection(shared, stream).await,
        (true, PROXY_PORT) => http::serve_proxy(shared, stream).await,
        _ => transparent::serve(shared, stream, original).await,
    }
}
