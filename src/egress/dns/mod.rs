//! The DNS stub: allowed names get a synthetic address, all others do not exist, and nothing that
//! a guest asks is ever forwarded.

pub mod message;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::host::HostError;
use super::record::{Subject, Via};
use super::shared::Shared;
use super::verdict::{Cause, Verdict};
use message::MAX_QUERY;

/// The most lookups of a microVM at a time; further queries wait in the socket.
const MAX_LOOKUPS: usize = 64;

/// Answers datagrams until it is dropped.
pub(super) async fn serve_datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    let mut buffer = vec![0; MAX_QUERY + 1];
    let socket = Arc::new(socket);
    let mut lookups = JoinSet::new();
    loop {
        while lookups.len() >= MAX_LOOKUPS || lookups.try_join_next().is_some() {
            if lookups.len() >= MAX_LOOKUPS {
                lookups.join_next().await;
            }
        }
        // An error is that of an earlier datagram (nobody waited for the answer).
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let query = buffer[..length].to_vec();
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        lookups.spawn(async move {
            if let Some(answer) = answer(&shared, &query, socket.local_addr().ok()).await {
                _ = socket.try_send_to(&answer, client);
            }
        });
    }
}

/// Answers the queries on one connection until the client is done or says nothing for too long.
/// One that says nothing after an answer is done, too; one that doesn't come to the end of a query
/// is on the record.
pub(super) async fn serve_connection(shared: &Shared, mut stream: TcpStream) {
    let local = stream.local_addr().ok();
    let mut has_answered = false;
    loop {
        let deadline = Instant::now() + shared.limits.opening;
        let has_begun = timeout_at(deadline, stream.readable()).await.is_ok();
        let query = match timeout_at(deadline, read_query(&mut stream)).await {
            Ok(Ok(query)) => query,
            Ok(Err(_)) => return,
            Err(_) => {
                if has_begun || !has_answered {
                    record(shared, local, String::new(), &Verdict::Refused(Cause::ClientDeadline));
                }
                return;
            }
        };
        let Some(answer) = answer(shared, &query, local).await else { return };
        let Ok(length) = u16::try_from(answer.len()) else { return };
        let reply = [&length.to_be_bytes()[..], &answer].concat();
        let sent = timeout(shared.limits.opening, stream.write_all(&reply)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        has_answered = true;
    }
}

/// Reads one query with its length (RFC 1035, section 4.2.2).
async fn read_query(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = usize::from(stream.read_u16().await?);
    if length > MAX_QUERY {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; length];
    stream.read_exact(&mut query).await?;
    Ok(query)
}

async fn answer(shared: &Shared, query: &[u8], local: Option<SocketAddr>) -> Option<Vec<u8>> {
    let found = look_up(shared, query).await;
    let answer = message::answer_found(query, &shared.policy, &mut shared.names(), found)?;
    if answer.verdict != Verdict::Allowed && !is_root(&answer.verdict) {
        record(shared, local, answer.asked, &answer.verdict);
    }
    Some(answer.bytes)
}

/// Whether the name that is asked for leads anywhere. Where rules name what there is, the answer is
/// known without asking anybody, and a guest can't make this host ask.
async fn look_up(shared: &Shared, query: &[u8]) -> Result<(), Cause> {
    if !shared.policy.wants_every_port() {
        return Ok(());
    }
    let Some(name) = message::allowed_name(query, &shared.policy) else { return Ok(()) };
    shared.dialer.look_up(&name, shared.policy.may_be_private(&name)).await
}

fn record(shared: &Shared, original: Option<SocketAddr>, host: String, verdict: &Verdict) {
    let subject =
        Subject { via: Via::Dns, host, port: 0, original, method: "DNS".into(), url: None };
    shared.recorder.verdict(subject, verdict, None);
}

/// Whether it is a question about the root, as clients ask to try a server: it says nothing.
fn is_root(verdict: &Verdict) -> bool {
    *verdict == Verdict::Refused(Cause::Host(HostError::Empty))
}
