//! Connections that a guest makes to an address as if it were the destination itself.

use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use tokio::net::TcpStream;

use super::carry::{Plan, carry, read_hello};
use super::host::Host;
use super::http;
use super::names::is_synthetic;
use super::policy::{Expected, Inspection};
use super::record::{Subject, Via};
use super::shared::Shared;
use super::tunnel::reset;
use super::verdict::{Cause, Verdict};

/// The port on which a refusal can be told in words.
const HTTP_PORT: u16 = 80;

/// Serves one connection to `original`.
pub(super) async fn serve(shared: &Arc<Shared>, guest: TcpStream, original: SocketAddrV4) {
    let port = original.port();
    let mut subject = Subject {
        via: Via::Transparent,
        host: original.ip().to_string(),
        port,
        original: Some(original.into()),
        method: "CONNECT".into(),
        url: None,
    };
    let host = match name_of(shared, original) {
        Ok(host) => host,
        Err(cause) => {
            shared.recorder.verdict(subject, &Verdict::Refused(cause), None);
            return reset(&guest);
        }
    };
    subject.host = host.to_string();
    let decision = shared.policy.decide(&host, port);
    let plan = Plan::new(shared, (host.clone(), port), subject, decision);
    if let Verdict::Refused(cause) = &plan.verdict {
        plan.refuse(shared, cause.clone());
        if port == HTTP_PORT {
            return http::tell(shared, guest, &host, port, cause).await;
        }
        return reset(&guest);
    }
    if plan.inspection == Inspection::Enforce(Expected::Http) {
        return http::serve_origin(shared, guest, plan).await;
    }
    tunnel(shared, &guest, &plan).await;
}

/// What an address stands for: a name where it is synthetic, itself elsewhere.
fn name_of(shared: &Shared, original: SocketAddrV4) -> Result<Host, Cause> {
    if !is_synthetic(*original.ip()) {
        return Ok(Host::Address(IpAddr::V4(*original.ip())));
    }
    shared.names().name_of(*original.ip()).map(Host::Name).ok_or(Cause::UnknownSynthetic)
}

async fn tunnel(shared: &Shared, guest: &TcpStream, plan: &Plan) {
    let dialled = async {
        let hello = read_hello(shared, guest, plan).await?;
        let dialled = shared.dial(&plan.host, plan.port, plan.allow_private).await?;
        Ok::<_, Cause>((hello, dialled))
    };
    match dialled.await {
        Ok((hello, dialled)) => {
            let flow = plan.begin(shared);
            carry(shared, guest, dialled, hello, plan, flow).await;
        }
        Err(cause) => {
            plan.refuse(shared, cause);
            reset(guest);
        }
    }
}
