//! The DNS stub: allowed names get a synthetic address, all others are refused at once, and
//! nothing that a guest asks is ever forwarded.

pub mod message;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::host::HostError;
use super::record::{Subject, Via};
use super::shared::Shared;
use super::verdict::{Cause, Verdict};
use message::MAX_QUERY;

/// Answers datagrams until it is dropped.
pub(super) async fn serve_datagrams(shared: Arc<Shared>, socket: UdpSocket) {
    let mut buffer = vec![0; MAX_QUERY + 1];
    loop {
        // An error is that of an earlier datagram (nobody waited for the answer).
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        if let Some(answer) = answer(&shared, &buffer[..length], socket.local_addr().ok()) {
            _ = socket.try_send_to(&answer, client);
        }
    }
}

/// Answers the queries on one connection until the client is done or says nothing for too long.
pub(super) async fn serve_connection(shared: &Shared, mut stream: TcpStream) {
    let local = stream.local_addr().ok();
    loop {
        let query = timeout(shared.limits.opening, read_query(&mut stream)).await;
        let Ok(Ok(query)) = query else { return };
        let Some(answer) = answer(shared, &query, local) else { return };
        let Ok(length) = u16::try_from(answer.len()) else { return };
        let reply = [&length.to_be_bytes()[..], &answer].concat();
        let sent = timeout(shared.limits.opening, stream.write_all(&reply)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
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

fn answer(shared: &Shared, query: &[u8], local: Option<SocketAddr>) -> Option<Vec<u8>> {
    let answer = message::answer(query, &shared.policy, &mut shared.names())?;
    if answer.verdict != Verdict::Allowed && !is_root(&answer.verdict) {
        let subject = Subject {
            via: Via::Dns,
            host: answer.asked,
            port: 0,
            original: local,
            method: "DNS".into(),
            url: None,
        };
        shared.recorder.verdict(subject, &answer.verdict, None);
    }
    Some(answer.bytes)
}

/// Whether it is a question about the root, as clients ask to try a server: it says nothing.
fn is_root(verdict: &Verdict) -> bool {
    *verdict == Verdict::Refused(Cause::Host(HostError::Empty))
}
