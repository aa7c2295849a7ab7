//! Transparently intercepted connections: the guest connects to an address as if it were the
//! destination.

use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::connection::{ConnectionPlan, read_hello, relay_connection};
use super::dial::{DialedConnection, HttpRoute};
use super::host::Host;
use super::http;
use super::names::is_synthetic;
use super::policy::{ExpectedProtocol, Inspection, PolicyDecision};
use super::record::{Peer, Subject, Via};
use super::state::GateState;
use super::tunnel::reset;
use super::verdict::{RefusalCause, Verdict};

/// The port on which a refusal can be explained in an HTTP response.
pub(super) const HTTP_PORT: u16 = 80;

/// The upstream side of a connection, established before the guest gets a reply.
#[derive(Debug)]
pub(super) enum Upstream {
    /// A connection for bytes in both directions.
    Tunnel(DialedConnection),
    /// A route for HTTP requests.
    Http(HttpRoute),
    /// Refused by the policy; recorded, and explained to the guest in an HTTP response.
    Refused(RefusalCause),
}

impl Upstream {
    /// Returns the connected peer, if any.
    pub(super) fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Tunnel(dialed) => Some(&dialed.peer),
            Self::Http(route) => Some(&route.dialed().peer),
            Self::Refused(_) => None,
        }
    }
}

/// Decides on a connection to `original`: by name if the address stands for one.
pub(super) fn plan_connection(shared: &GateState, original: SocketAddrV4) -> ConnectionPlan {
    let port = original.port();
    let named = is_synthetic(*original.ip()).then(|| shared.names().name_of(*original.ip()));
    let (host, is_known) = match named {
        Some(Some(name)) => (Host::Name(name), true),
        named => (Host::Address(IpAddr::V4(*original.ip())), named.is_none()),
    };
    let subject = Subject {
        via: Via::Transparent,
        host: host.to_string(),
        port,
        original: Some(original.into()),
        method: "CONNECT".into(),
        url: None,
    };
    let decision = if is_known {
        shared.policy.decide(&host, port)
    } else {
        PolicyDecision {
            verdict: Verdict::Refused(RefusalCause::UnknownSynthetic),
            rule: None,
            allow_private: false,
            inspection: Inspection::Skip,
            max_bytes: None,
        }
    };
    ConnectionPlan::new(shared, (host, port), subject, decision)
}

/// Connects to the destination. No byte of the guest affects which one it is: a guest's first bytes
/// can only get a connection closed, not redirected.
pub(super) async fn connect_upstream(
    shared: &GateState,
    plan: &ConnectionPlan,
) -> Result<Upstream, RefusalCause> {
    let upstream = match &plan.verdict {
        Verdict::Refused(cause) => Err(cause.clone()),
        _ if plan.inspection == Inspection::Enforce(ExpectedProtocol::Http) => {
            let route = shared.dial_http(&plan.host, plan.port, plan.allow_private).await;
            route.map(Upstream::Http)
        }
        _ => {
            let dialed = shared.dial(&plan.host, plan.port, plan.allow_private).await;
            dialed.map(Upstream::Tunnel)
        }
    };
    match upstream {
        Err(cause) if plan.port == HTTP_PORT && !cause.is_failure() => {
            plan.refuse(shared, cause.clone());
            Ok(Upstream::Refused(cause))
        }
        upstream => upstream,
    }
}

/// Serves a connection with an established upstream.
pub(super) async fn serve(
    shared: &Arc<GateState>,
    guest: TcpStream,
    plan: Arc<ConnectionPlan>,
    upstream: Upstream,
) {
    match upstream {
        Upstream::Tunnel(dialed) => serve_tunnel(shared, &guest, &plan, dialed).await,
        Upstream::Http(route) => http::serve_origin(shared, guest, plan, route).await,
        Upstream::Refused(cause) => {
            let cause = cause.redact_for_guest(&plan.host, shared.policy.intercepts_every_port());
            http::send_refusal(shared, guest, &plan.host, plan.port, &cause).await;
        }
    }
}

async fn serve_tunnel(
    shared: &GateState,
    guest: &TcpStream,
    plan: &ConnectionPlan,
    dialed: DialedConnection,
) {
    match read_hello(shared, guest, plan).await {
        Ok(hello) => {
            let flow = plan.start_flow(shared);
            relay_connection(shared, guest, dialed, hello, plan, flow).await;
        }
        Err(cause) => {
            plan.refuse(shared, cause);
            reset(guest);
        }
    }
}
