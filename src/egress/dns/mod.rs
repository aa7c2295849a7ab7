//! The DNS stub: allowed names resolve to a synthetic address, all others do not exist. No query of
//! a guest is forwarded.

pub mod message;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::host::HostError;
use super::record::{Subject, Via};
use super::state::GateState;
use super::verdict::{RefusalCause, Verdict};
use message::MAX_QUERY;

/// Maximum concurrent lookups of a microVM; further queries wait in the socket.
const MAX_LOOKUPS: usize = 64;

/// Serves datagrams until it is dropped.
pub(super) async fn serve_datagrams(shared: Arc<GateState>, socket: UdpSocket) {
    let mut buffer = vec![0; MAX_QUERY + 1];
    let socket = Arc::new(socket);
    let mut lookups = JoinSet::new();
    loop {
        while lookups.len() >= MAX_LOOKUPS || lookups.try_join_next().is_some() {
            if lookups.len() >= MAX_LOOKUPS {
                lookups.join_next().await;
            }
        }
        // An error concerns an earlier datagram (its client no longer listened).
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let query = buffer[..length].to_vec();
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        lookups.spawn(async move {
            if let Some(response) = respond(&shared, &query, socket.local_addr().ok()).await {
                _ = socket.try_send_to(&response, client);
            }
        });
    }
}

/// Serves the queries on one connection until the client is done or times out. No query after a
/// response ends the connection; an incomplete query is recorded.
pub(super) async fn serve_connection(shared: &GateState, mut stream: TcpStream) {
    let local = stream.local_addr().ok();
    let mut has_answered = false;
    loop {
        let deadline = Instant::now() + shared.limits.opening;
        let has_data = timeout_at(deadline, stream.readable()).await.is_ok();
        let query = match timeout_at(deadline, read_query(&mut stream)).await {
            Ok(Ok(query)) => query,
            Ok(Err(_)) => return,
            Err(_) => {
                if has_data || !has_answered {
                    record(
                        shared,
                        local,
                        String::new(),
                        &Verdict::Refused(RefusalCause::ClientDeadline),
                    );
                }
                return;
            }
        };
        let Some(response) = respond(shared, &query, local).await else { return };
        let Ok(length) = u16::try_from(response.len()) else { return };
        let reply = [&length.to_be_bytes()[..], &response].concat();
        let sent = timeout(shared.limits.opening, stream.write_all(&reply)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        has_answered = true;
    }
}

/// Reads one query with its length prefix (RFC 1035, section 4.2.2).
async fn read_query(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn respond(shared: &GateState, query: &[u8], local: Option<SocketAddr>) -> Option<Vec<u8>> {
    let found = look_up(shared, query).await;
    let response = message::respond_with_lookup(query, &shared.policy, &mut shared.names(), found)?;
    if response.verdict != Verdict::Allowed && !is_root(&response.verdict) {
        record(shared, local, response.queried_name, &response.verdict);
    }
    Some(response.bytes)
}

/// Checks that the queried name resolves. Where the rules name all allowed hosts, no lookup is
/// needed, and a guest can't trigger one on this host.
async fn look_up(shared: &GateState, query: &[u8]) -> Result<(), RefusalCause> {
    if !shared.policy.intercepts_every_port() {
        return Ok(());
    }
    let Some(name) = message::allowed_name(query, &shared.policy) else { return Ok(()) };
    shared.dialer.look_up(&name, shared.policy.allows_private(&name)).await
}

fn record(shared: &GateState, original: Option<SocketAddr>, host: String, verdict: &Verdict) {
    let subject =
        Subject { via: Via::Dns, host, port: 0, original, method: "DNS".into(), url: None };
    shared.recorder.record_verdict(subject, verdict, None);
}

/// Returns whether the query was for the root, which clients send to probe a server: it is not
/// recorded.
fn is_root(verdict: &Verdict) -> bool {
    *verdict == Verdict::Refused(RefusalCause::Host(HostError::Empty))
}
