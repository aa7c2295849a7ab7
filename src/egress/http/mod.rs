//! Plain HTTP: the forward proxy, and requests on connections to port 80.
//!
//! Each request is checked by [`StrictChecker`] before hyper parses it, decided on individually,
//! and rewritten for the destination. `CONNECT` never reaches hyper: it is one head followed by a
//! tunnel.

mod body;
mod budget;
mod checked_stream;
mod connect;
mod detect;
mod forward;
mod observer;
mod request;
mod serve;
mod strict;

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

pub use observer::{HttpObserver, SpokenProtocol};
pub use strict::{HttpViolation, StrictChecker};

use super::connection::{ConnectionPlan, read_some};
use super::dial::HttpRoute;
use super::host::Host;
use super::record::{Subject, Via};
use super::state::GateState;
use super::tunnel::reset;
use super::verdict::{CauseChain, RefusalCause, Verdict};
use serve::AllowedOrigin;

/// Serves a connection to the forward proxy.
pub(super) async fn serve_proxy(shared: &Arc<GateState>, guest: TcpStream) {
    match read_head(shared, &guest).await {
        Ok((strict, _)) if strict.connect().is_some() => {
            connect::serve(shared, guest, &strict).await;
        }
        Ok((strict, seen)) => {
            serve::serve(shared, guest, (strict, seen), AllowedOrigin::Any).await;
        }
        Err(cause) => refuse(shared, guest, None, cause).await,
    }
}

/// Serves requests on a connection to one origin, starting with an established route.
pub(super) async fn serve_origin(
    shared: &Arc<GateState>,
    guest: TcpStream,
    plan: Arc<ConnectionPlan>,
    route: HttpRoute,
) {
    match read_head(shared, &guest).await {
        Ok((strict, seen)) => {
            serve::serve(
                shared,
                guest,
                (strict, seen),
                AllowedOrigin::One { plan, route: Some(route) },
            )
            .await;
        }
        Err(cause) => {
            plan.refuse(shared, cause.clone());
            let text = refusal_text(shared, &plan.host, plan.port, &cause);
            send_error(&guest, &cause, &text).await;
        }
    }
}

/// Sends an HTTP client the reason for a refusal. The verdict is recorded already.
pub(super) async fn send_refusal(
    shared: &GateState,
    guest: TcpStream,
    host: &Host,
    port: u16,
    cause: &RefusalCause,
) {
    // Closing a connection with unread data would reset it before the client gets the response.
    match read_head(shared, &guest).await {
        Ok(_) => send_error(&guest, cause, &refusal_text(shared, host, port, cause)).await,
        Err(_) => reset(&guest),
    }
}

/// Reads until a first head is complete and checked.
async fn read_head(
    shared: &GateState,
    guest: &TcpStream,
) -> Result<(StrictChecker, Vec<u8>), RefusalCause> {
    let mut strict = StrictChecker::default();
    let mut seen = Vec::new();
    let deadline = Instant::now() + shared.limits.opening;
    while !strict.has_complete_head() {
        match timeout_at(deadline, read_some(guest)).await {
            Err(_) => return Err(RefusalCause::ClientDeadline),
            Ok(Err(_)) => return Err(RefusalCause::ClientGone),
            Ok(Ok(bytes)) if bytes.is_empty() => return Err(RefusalCause::ClientGone),
            Ok(Ok(bytes)) => {
                strict.feed(&bytes).map_err(|violation| RefusalCause::Request(violation.into()))?;
                seen.extend(bytes);
            }
        }
    }
    Ok((strict, seen))
}

/// Records and answers an invalid request. `target` is the target of a CONNECT as the guest wrote
/// it, if known.
async fn refuse(shared: &GateState, guest: TcpStream, target: Option<&str>, cause: RefusalCause) {
    let original = guest.local_addr().ok();
    // A client that closes its connection without a request requested nothing.
    if cause == RefusalCause::ClientGone {
        return;
    }
    let (host, port) = match target {
        Some(target) => split_target(target),
        None => original.map_or_else(Default::default, |to| (to.ip().to_string(), to.port())),
    };
    let method = target.map_or("HTTP", |_| "CONNECT").into();
    let subject = Subject { via: Via::Proxy, host, port, original, method, url: None };
    let verdict = Verdict::Refused(cause);
    shared.recorder.record_verdict(subject, &verdict, None);
    if let Verdict::Refused(cause) = verdict {
        send_error(&guest, &cause, &format!("mayfly: {}\n", CauseChain(&cause))).await;
    }
}

/// Splits an invalid target into host and port for the record, without a user name and password.
fn split_target(target: &str) -> (String, u16) {
    let parts = target.rsplit_once(':');
    let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.unwrap_or((target, 0));
    let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("…@{host}"));
    (host, port)
}

/// Returns the text for a client: the policy, the destination, the reason.
fn refusal_text(shared: &GateState, host: &Host, port: u16, cause: &RefusalCause) -> String {
    let policy = &shared.policy.name;
    let verb = if cause.is_failure() { "can't reach" } else { "refuses" };
    format!("mayfly: egress policy {policy} {verb} {host}:{port}: {}\n", CauseChain(cause))
}

/// Sends a response with the cause and closes the connection.
async fn send_error(guest: &TcpStream, cause: &RefusalCause, text: &str) {
    let status = request::status_of(cause);
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Mayfly-Cause: {}\r\nConnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        text.len(),
        cause.code(),
    );
    // A client that does not accept a few hundred bytes at once is not waited for.
    _ = guest.try_write(format!("{head}{text}").as_bytes());
    linger(guest).await;
}

/// Reads for a moment longer, so that unread client data does not reset the connection before the
/// response arrives.
async fn linger(guest: &TcpStream) {
    const LINGER_TIME: std::time::Duration = std::time::Duration::from_millis(500);
    const MAX_READS: usize = 64;
    _ = socket2::SockRef::from(guest).shutdown(std::net::Shutdown::Write);
    _ = timeout(LINGER_TIME, async {
        for _ in 0..MAX_READS {
            match read_some(guest).await {
                Ok(bytes) if !bytes.is_empty() => {}
                _ => break,
            }
        }
    })
    .await;
}

/// Confirms a CONNECT.
async fn accept_connect(guest: &mut TcpStream) -> std::io::Result<()> {
    guest.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await
}
