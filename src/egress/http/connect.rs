//! `CONNECT`: a tunnel that the guest asks for by name.

use std::sync::Arc;

use tokio::net::TcpStream;

use super::super::carry::{Plan, carry, read_hello};
use super::super::host::Host;
use super::super::policy::{Expected, Inspection};
use super::super::record::{Subject, Via};
use super::super::shared::Shared;
use super::super::tunnel::reset;
use super::super::verdict::{Cause, Verdict};
use super::request::is_for;
use super::strict::Strict;
use super::{grant, refusal, refuse, say, serve_origin};

/// Serves a connection whose first head is a CONNECT.
pub(super) async fn serve(shared: &Arc<Shared>, mut guest: TcpStream, strict: &Strict) {
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
    let plan = Plan::new(shared, (host.clone(), port), subject, decision);
    if let Verdict::Refused(cause) = &plan.verdict {
        return turn_away(shared, &guest, &plan, cause.clone()).await;
    }
    if plan.inspection == Inspection::Enforce(Expected::Http) {
        // Each request in the tunnel is decided on and forwarded by itself.
        match shared.dial_http(&plan.host, plan.port, plan.allow_private).await {
            Ok(route) if grant(&mut guest).await.is_ok() => {
                Box::pin(serve_origin(shared, guest, Arc::new(plan), route)).await;
            }
            Ok(_) => {}
            Err(cause) => turn_away(shared, &guest, &plan, cause).await,
        }
        return;
    }
    match shared.dial(&plan.host, plan.port, plan.allow_private).await {
        Ok(dialled) => {
            // What was sent before the answer was sent without knowing it.
            if has_bytes(&guest) {
                let cause = Cause::Request("bytes after CONNECT before its answer".into());
                return turn_away(shared, &guest, &plan, cause).await;
            }
            if grant(&mut guest).await.is_err() {
                return;
            }
            let mut flow = plan.begin(shared);
            match read_hello(shared, &guest, &plan).await {
                Ok(hello) => carry(shared, &guest, dialled, hello, &plan, flow).await,
                Err(cause) => {
                    flow.judge(&Verdict::Refused(cause.clone()));
                    flow.ended_by(cause);
                    reset(&guest);
                }
            }
        }
        Err(cause) => turn_away(shared, &guest, &plan, cause).await,
    }
}

/// Where a CONNECT goes: its target, which its Host must not contradict.
fn destination(strict: &Strict) -> Result<(Host, u16), Cause> {
    let (target, host) = strict.connect().unwrap_or_default();
    let (named, port) = Host::parse_with_port(target, None).map_err(Cause::Host)?;
    if let Some(host) = host {
        // Some clients leave the port away.
        is_for(host, &named, port, port)?;
    }
    Ok((named, port))
}

async fn turn_away(shared: &Shared, guest: &TcpStream, plan: &Plan, cause: Cause) {
    plan.refuse(shared, cause.clone());
    let cause = cause.told(&plan.host, shared.policy.wants_every_port());
    say(guest, &cause, &refusal(shared, &plan.host, plan.port, &cause)).await;
}

fn has_bytes(guest: &TcpStream) -> bool {
    use std::mem::MaybeUninit;
    let peeked = socket2::SockRef::from(guest).peek(&mut [MaybeUninit::uninit(); 1]);
    peeked.is_ok_and(|count| count > 0)
}
