//! Connects to one of several addresses: happy eyeballs (RFC 8305) without its refinements.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long an attempt runs alone before the next starts ("Connection Attempt Delay", RFC 8305,
/// section 8).
const STAGGER: Duration = Duration::from_millis(250);

/// Maximum number of addresses that are tried.
const MAX_ATTEMPTS: usize = 8;

/// Returns the addresses in connection order: families alternate, starting with the family of the
/// first address.
fn interleave(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let Some(first) = addresses.first() else { return Vec::new() };
    let (same, other): (Vec<_>, Vec<_>) =
        addresses.iter().copied().partition(|address| address.is_ipv4() == first.is_ipv4());
    let mut order = Vec::with_capacity(addresses.len());
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    loop {
        let round = [same.next(), other.next()];
        if round == [None, None] {
            break;
        }
        order.extend(round.into_iter().flatten());
    }
    order.truncate(MAX_ATTEMPTS);
    order
}

/// Connects to the first address that accepts. The error is that of the last failed attempt.
pub(super) async fn connect_any(addresses: &[SocketAddr]) -> io::Result<(TcpStream, SocketAddr)> {
    let mut waiting = interleave(addresses).into_iter().peekable();
    let mut attempts = JoinSet::new();
    let mut last_error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        // Starts at once, not by a timer with zero delay: that takes a millisecond.
        if let Some(address) = waiting.next() {
            attempts.spawn(connect(address));
        }
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(error))) => last_error = error,
                Some(Err(error)) => last_error = io::Error::other(error),
                None => return Err(last_error),
            },
            () = sleep(STAGGER), if waiting.peek().is_some() => {}
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<(TcpStream, SocketAddr)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok((stream, address))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn families_alternate() {
        let order = interleave(&["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"].map(address));
        assert_eq!(order, ["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"].map(address));
        assert_eq!(interleave(&[]), []);
        assert_eq!(interleave(&[address("1.1.1.1:1"); 20]).len(), MAX_ATTEMPTS);
    }

    #[tokio::test]
    async fn a_good_address_is_found_after_bad_ones() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let (_, found) = connect_any(&[refusing, refusing, good]).await.unwrap();
        assert_eq!(found, good);
    }

    #[tokio::test]
    async fn the_error_is_that_of_the_attempts() {
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = connect_any(&[refusing]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        let error = connect_any(&[]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
