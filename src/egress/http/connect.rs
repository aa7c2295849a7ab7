//! `CONNECT`: a tunnel that the guest requests by name.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::super::connection::{ConnectionPlan, read_hello, relay_connection};
use super::super::host::Host;
use super::super::policy::{ExpectedProtocol, Inspection};
use super::super::record::{Subject, Via};
use super::super::state::GateState;
use super::super::tunnel::reset;
use super::super::verdict::{RefusalCause, Verdict};
use super::request::check_host_value;
use super::strict::StrictChecker;
use super::{accept_connect, refusal_text, refuse, send_error, serve_origin};

/// Serves a connection whose first head is a CONNECT.
pub(super) async fn serve(shared: &Arc<GateState>, mut guest: TcpStream, strict: &StrictChecker) {
    let (host, port) = match destination(strict) {
        Ok(destination) => destination,
        Err(cause) => {
            let target = strict.connect().map(|(target, _)| target);
            return refuse(shared, guest, target, cause).await;
        }
    };
    let subject = Subject {
        via: Via::Proxy,
        host: host.to_string(),
        port,
        original: None,
        method: "CONNECT".into(),
        url: None,
    };
    let decision = shared.policy.decide(&host, port);
    let plan = ConnectionPlan::new(shared, (host.clone(), port), subject, decision);
    if let Verdict::Refused(cause) = &plan.verdict {
        return refuse_tunnel(shared, &guest, &plan, cause.clone()).await;
    }
    if plan.inspection == Inspection::Enforce(ExpectedProtocol::Http) {
        // Each request in the tunnel is decided on and forwarded individually.
        match shared.dial_http(&plan.host, plan.port, plan.allow_private).await {
            Ok(route) if accept_connect(&mut guest).await.is_ok() => {
                Box::pin(serve_origin(shared, guest, Arc::new(plan), route)).await;
            }
            Ok(_) => {}
            Err(cause) => refuse_tunnel(shared, &guest, &plan, cause).await,
        }
        return;
    }
    match shared.dial(&plan.host, plan.port, plan.allow_private).await {
        Ok(dialed) => {
            // The client sent these bytes without knowing the response.
            if has_bytes(&guest) {
                let cause = RefusalCause::Request("bytes after CONNECT before its response".into());
                return refuse_tunnel(shared, &guest, &plan, cause).await;
            }
            if accept_connect(&mut guest).await.is_err() {
                return;
            }
            let mut flow = plan.start_flow(shared);
            match read_hello(shared, &guest, &plan).await {
                Ok(hello) => relay_connection(shared, &guest, dialed, hello, &plan, flow).await,
                Err(cause) => {
                    flow.record_verdict(&Verdict::Refused(cause.clone()));
                    flow.set_end_reason(cause);
                    reset(&guest);
                }
            }
        }
        Err(cause) => refuse_tunnel(shared, &guest, &plan, cause).await,
    }
}

/// Returns the destination of a CONNECT: its target, which its Host must not contradict.
fn destination(strict: &StrictChecker) -> Result<(Host, u16), RefusalCause> {
    let (target, host) = strict.connect().unwrap_or_default();
    let (named, port) = Host::parse_with_port(target, None).map_err(RefusalCause::Host)?;
    if let Some(host) = host {
        // Some clients omit the port.
        check_host_value(host, &named, port, port)?;
    }
    Ok((named, port))
}

async fn refuse_tunnel(
    shared: &GateState,
    guest: &TcpStream,
    plan: &ConnectionPlan,
    cause: RefusalCause,
) {
    plan.refuse(shared, cause.clone());
    let cause = cause.redact_for_guest(&plan.host, shared.policy.intercepts_every_port());
    send_error(guest, &cause, &refusal_text(shared, &plan.host, plan.port, &cause)).await;
}

fn has_bytes(guest: &TcpStream) -> bool {
    use std::mem::MaybeUninit;
    let peeked = socket2::SockRef::from(guest).peek(&mut [MaybeUninit::uninit(); 1]);
    peeked.is_ok_and(|count| count > 0)
}
