//! Connections that a guest makes to an address as if it were the destination itself.

use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::carry::{Plan, carry, read_hello};
use super::dial::{Dialled, HttpRoute};
use super::host::Host;
use super::http;
use super::names::is_synthetic;
use super::policy::{Decision, Expected, Inspection};
use super::record::{Peer, Subject, Via};
use super::shared::Shared;
use super::tunnel::reset;
use super::verdict::{Cause, Verdict};

/// The port on which a refusal can be told in words.
pub(super) const HTTP_PORT: u16 = 80;

/// How the destination of a connection was reached, before its guest is answered.
#[derive(Debug)]
pub(super) enum Reached {
    /// Bytes may go to it, in both directions.
    Tunnel(Dialled),
    /// Requests may.
    Http(HttpRoute),
    /// Not at all: the policy refuses it, which is recorded and can be told in words.
    Refused(Cause),
}

impl Reached {
    /// Who was connected to.
    pub(super) fn peer(&self) -> Option<&Peer> {
        match self {
            Self::Tunnel(dialled) => Some(&dialled.peer),
            Self::Http(route) => Some(&route.dialled().peer),
            Self::Refused(_) => None,
        }
    }
}

/// Decides about a connection to `original`: a name where the address stands for one.
pub(super) fn plan(shared: &Shared, original: SocketAddrV4) -> Plan {
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
        Decision {
            verdict: Verdict::Refused(Cause::UnknownSynthetic),
            rule: None,
            allow_private: false,
            inspection: Inspection::Skip,
            max_bytes: None,
        }
    };
    Plan::new(shared, (host, port), subject, decision)
}

/// Connects to the destination. Which one it is needs no byte of the guest's: by its first bytes a
/// guest can only lose a connection, not change where it goes.
pub(super) async fn reach(shared: &Shared, plan: &Plan) -> Result<Reached, Cause> {
    let reached = match &plan.verdict {
        Verdict::Refused(cause) => Err(cause.clone()),
        _ if plan.inspection == Inspection::Enforce(Expected::Http) => {
            let route = shared.dial_http(&plan.host, plan.port, plan.allow_private).await;
            route.map(Reached::Http)
        }
        _ => {
            let dialled = shared.dial(&plan.host, plan.port, plan.allow_private).await;
            dialled.map(Reached::Tunnel)
        }
    };
    match reached {
        Err(cause) if plan.port == HTTP_PORT && !cause.is_failure() => {
            plan.refuse(shared, cause.clone());
            Ok(Reached::Refused(cause))
        }
        reached => reached,
    }
}

/// Serves a connection whose destination was reached.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    guest: TcpStream,
    plan: Arc<Plan>,
    reached: Reached,
) {
    match reached {
        Reached::Tunnel(dialled) => tunnel(shared, &guest, &plan, dialled).await,
        Reached::Http(route) => http::serve_origin(shared, guest, plan, route).await,
        Reached::Refused(cause) => {
            let cause = cause.told(&plan.host, shared.policy.wants_every_port());
            http::tell(shared, guest, &plan.host, plan.port, &cause).await;
        }
    }
}

async fn tunnel(shared: &Shared, guest: &TcpStream, plan: &Plan, dialled: Dialled) {
    match read_hello(shared, guest, plan).await {
        Ok(hello) => {
            let flow = plan.begin(shared);
            carry(shared, guest, dialled, hello, plan, flow).await;
        }
        Err(cause) => {
            plan.refuse(shared, cause);
            reset(guest);
        }
    }
}
