//! Tests of `tunnel`, in a separate file for length.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;

fn default_limits() -> TunnelLimits {
    TunnelLimits {
        idle: Duration::from_secs(60),
        max_bytes: None,
        rate_limiter: None,
        cancel: CancellationToken::new(),
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// Starts a tunnel. Returns the guest's end, the destination's end, the counters and the result.
async fn tunnel(
    limits: TunnelLimits,
) -> (TcpStream, TcpStream, Arc<ByteCounters>, impl Future<Output = Result<(), TunnelError>>) {
    let (guest, inner_guest) = pair().await;
    let (inner_destination, destination) = pair().await;
    let bytes = Arc::new(ByteCounters::default());
    let counted = Arc::clone(&bytes);
    let outcome = async move {
        let (guest, destination) = (&inner_guest, &inner_destination);
        let relay = Relay { guest, destination, bytes: &counted, limits: &limits };
        relay.run(async { Ok(()) }, async { Ok(()) }).await
    };
    (guest, destination, bytes, outcome)
}

/// Returns bytes that do not repeat within a buffer.
fn pattern(length: usize) -> Vec<u8> {
    let byte = |index: usize| ((index % 251) ^ (index / 65_537 % 256)).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

#[tokio::test]
async fn all_bytes_arrive_in_both_directions_and_are_counted() {
    for length in [0, 1, 32 << 10, 64 << 10, 3_000_001] {
        let (guest, destination, bytes, outcome) = tunnel(default_limits()).await;
        let exchange = |stream: TcpStream, sent: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let mut received = Vec::new();
            let send = async move {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { read.read_to_end(&mut received).await.unwrap() });
            received
        };
        let request = pattern(length);
        let answer = pattern(length / 2 + 7);
        let (result, at_guest, at_destination) = tokio::join!(
            outcome,
            exchange(guest, request.clone()),
            exchange(destination, answer.clone()),
        );
        result.unwrap();
        assert!(at_destination == request, "{length} bytes up");
        assert!(at_guest == answer, "{length} bytes down");
        assert_eq!(bytes.total(), (request.len() + answer.len()) as u64);
    }
}

#[tokio::test]
async fn tunnels_that_share_pipes_do_not_mix_their_bytes() {
    let mut tunnels = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (mut guest, mut destination, _, outcome) = tunnel(default_limits()).await;
        let sent: Vec<_> = pattern(8 << 20).iter().map(|byte| byte ^ number).collect();
        tunnels.spawn(async move {
            let send = async {
                guest.write_all(&sent).await.unwrap();
                drop(guest);
            };
            let mut received = Vec::new();
            let receive = async {
                // Late enough that the tunnel waits with a full pipe.
                sleep(Duration::from_millis(50)).await;
                destination.read_to_end(&mut received).await.unwrap();
                drop(destination);
            };
            let (result, (), ()) = tokio::join!(outcome, send, receive);
            result.unwrap();
            assert!(received == sent, "tunnel {number}");
        });
    }
    while let Some(ended) = tunnels.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_half_open() {
    let (mut guest, mut destination, _, outcome) = tunnel(default_limits()).await;
    let exchange = async {
        guest.write_all(b"request").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut received = Vec::new();
        destination.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"request");
        for _ in 0..3 {
            destination.write_all(b"answer").await.unwrap();
            let mut received = [0; 6];
            guest.read_exact(&mut received).await.unwrap();
        }
        drop(destination);
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let (result, ()) = tokio::join!(outcome, exchange);
    result.unwrap();
}

#[tokio::test]
async fn a_reset_is_forwarded() {
    let (guest, mut destination, _, outcome) = tunnel(default_limits()).await;
    reset(&guest);
    drop(guest);
    let (result, received) = tokio::join!(outcome, async { destination.read(&mut [0; 1]).await });
    assert!(matches!(result, Err(TunnelError::Io { side: "guest", .. })), "{result:?}");
    assert_eq!(received.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_byte_limit_holds_while_copying_and_while_splicing() {
    for most in [1000, 200_000] {
        let limits = TunnelLimits { max_bytes: Some(most), ..default_limits() };
        let (mut guest, mut destination, _, outcome) = tunnel(limits).await;
        let mut received = Vec::new();
        let (result, _, _) =
            tokio::join!(outcome, async { guest.write_all(&pattern(1 << 20)).await }, async {
                destination.read_to_end(&mut received).await
            },);
        assert!(
            matches!(result, Err(TunnelError::TooManyBytes(bound)) if bound == most),
            "{result:?}"
        );
        assert!(received.len() as u64 <= most + (64 << 10), "{} of {most}", received.len());
    }
}

#[tokio::test]
async fn an_idle_tunnel_ends() {
    let limits = TunnelLimits { idle: Duration::from_millis(100), ..default_limits() };
    let (_guest, _destination, _, outcome) = tunnel(limits).await;
    assert!(matches!(outcome.await, Err(TunnelError::Idle(_))));
}

#[tokio::test]
async fn stopping_the_microvm_ends_a_tunnel() {
    let limits = default_limits();
    let cancel = limits.cancel.clone();
    let (_guest, _destination, _, outcome) = tunnel(limits).await;
    let (result, ()) = tokio::join!(outcome, async move { cancel.cancel() });
    assert!(matches!(result, Err(TunnelError::Canceled)));
}

#[tokio::test]
async fn a_stalled_receiver_stops_the_sender() {
    let limits = TunnelLimits { idle: Duration::from_millis(400), ..default_limits() };
    let (guest, _destination, bytes, outcome) = tunnel(limits).await;
    let send = async {
        loop {
            if write_all(&guest, &pattern(1 << 20)).await.is_err() {
                break;
            }
        }
    };
    let (result, ()) = tokio::join!(outcome, send);
    assert!(matches!(result, Err(TunnelError::Idle(_))), "{result:?}");
    // At most what socket buffers and one pipe hold.
    assert!(bytes.total() < 64 << 20, "{}", bytes.total());
}
