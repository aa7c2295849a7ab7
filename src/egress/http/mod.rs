//! Plain HTTP: the forward proxy, and requests on connections to port 80.
//!
//! Each request is checked by [`Strict`] before hyper parses it, decided on by itself, and written
//! anew to the destination. `CONNECT` never reaches hyper: it is one head and then a tunnel.

mod body;
mod connect;
mod guarded;
mod onward;
mod request;
mod serve;
mod strict;
mod watched;

use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

pub use strict::{Strict, Violation};
pub use watched::{Speaks, Watched};

use super::carry::{Plan, read_some};
use super::dial::HttpRoute;
use super::host::Host;
use super::record::{Subject, Via};
use super::shared::Shared;
use super::tunnel::reset;
use super::verdict::{Cause, Verdict, Whole};
use serve::Origin;

/// Serves a connection to the forward proxy.
pub(super) async fn serve_proxy(shared: &Arc<Shared>, guest: TcpStream) {
    match read_head(shared, &guest).await {
        Ok((strict, _)) if strict.connect().is_some() => {
            connect::serve(shared, guest, &strict).await;
        }
        Ok((strict, seen)) => {
            serve::serve(shared, guest, (strict, seen), Origin::Any).await;
        }
        Err(cause) => refuse(shared, guest, None, cause).await,
    }
}

/// Serves requests on a connection to one origin, the first of them by a route that is there.
pub(super) async fn serve_origin(
    shared: &Arc<Shared>,
    guest: TcpStream,
    plan: Arc<Plan>,
    route: HttpRoute,
) {
    match read_head(shared, &guest).await {
        Ok((strict, seen)) => {
            serve::serve(shared, guest, (strict, seen), Origin::One { plan, route: Some(route) })
                .await;
        }
        Err(cause) => {
            plan.refuse(shared, cause.clone());
            let text = refusal(shared, &plan.host, plan.port, &cause);
            say(&guest, &cause, &text).await;
        }
    }
}

/// Tells a client of HTTP, in its words, why its connection goes nowhere. The verdict is recorded
/// already.
pub(super) async fn tell(shared: &Shared, guest: TcpStream, host: &Host, port: u16, cause: &Cause) {
    // A client that has not been read out would see a reset instead of the answer.
    match read_head(shared, &guest).await {
        Ok(_) => say(&guest, cause, &refusal(shared, host, port, cause)).await,
        Err(_) => reset(&guest),
    }
}

/// Reads until a first head is whole and checked.
async fn read_head(shared: &Shared, guest: &TcpStream) -> Result<(Strict, Vec<u8>), Cause> {
    let mut strict = Strict::default();
    let mut seen = Vec::new();
    let deadline = Instant::now() + shared.limits.opening;
    while !strict.has_begun() {
        match timeout_at(deadline, read_some(guest)).await {
            Err(_) => return Err(Cause::ClientDeadline),
            Ok(Err(_)) => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) if bytes.is_empty() => return Err(Cause::ClientGone),
            Ok(Ok(bytes)) => {
                strict.feed(&bytes).map_err(|violation| Cause::Request(violation.into()))?;
                seen.extend(bytes);
            }
        }
    }
    Ok((strict, seen))
}

/// Records and answers a request that nothing more is known of than that it is wrong, and perhaps
/// the target of a CONNECT, as the guest spelled it.
async fn refuse(shared: &Shared, guest: TcpStream, target: Option<&str>, cause: Cause) {
    let original = guest.local_addr().ok();
    // A client that opens a connection and closes it again has asked for nothing.
    if cause == Cause::ClientGone {
        return;
    }
    let (host, port) = match target {
        Some(target) => spelled(target),
        None => original.map_or_else(Default::default, |to| (to.ip().to_string(), to.port())),
    };
    let method = target.map_or("HTTP", |_| "CONNECT").into();
    let subject = Subject { via: Via::Proxy, host, port, original, method, url: None };
    let verdict = Verdict::Refused(cause);
    shared.recorder.verdict(subject, &verdict, None);
    if let Verdict::Refused(cause) = verdict {
        say(&guest, &cause, &format!("mayfly: {}\n", Whole(&cause))).await;
    }
}

/// A target that is none, for the record: what stands before the port, where there is one, without
/// a user's name and password.
fn spelled(target: &str) -> (String, u16) {
    let parts = target.rsplit_once(':');
    let parts = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    let (host, port) = parts.unwrap_or((target, 0));
    let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("…@{host}"));
    (host, port)
}

/// What a client is told: which policy, which destination, why.
fn refusal(shared: &Shared, host: &Host, port: u16, cause: &Cause) -> String {
    let policy = &shared.policy.name;
    let verb = if cause.is_failure() { "can't reach" } else { "refuses" };
    format!("mayfly: egress policy {policy} {verb} {host}:{port}: {}\n", Whole(cause))
}

/// Answers with a cause and closes.
async fn say(guest: &TcpStream, cause: &Cause, text: &str) {
    let status = request::status_of(cause);
    let head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
         X-Mayfly-Cause: {}\r\nConnection: close\r\n\r\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        text.len(),
        cause.code(),
    );
    // A client that doesn't take a few hundred bytes at once isn't waited for.
    _ = guest.try_write(format!("{head}{text}").as_bytes());
    linger(guest).await;
}

/// Reads on for a moment, so that what the client still sends doesn't reset the answer away.
async fn linger(guest: &TcpStream) {
    const PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);
    const MOST: usize = 64;
    _ = socket2::SockRef::from(guest).shutdown(std::net::Shutdown::Write);
    _ = timeout(PATIENCE, async {
        for _ in 0..MOST {
            match read_some(guest).await {
                Ok(bytes) if !bytes.is_empty() => {}
                _ => break,
            }
        }
    })
    .await;
}

/// Answers a CONNECT that succeeded.
async fn grant(guest: &mut TcpStream) -> std::io::Result<()> {
    guest.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await
}
