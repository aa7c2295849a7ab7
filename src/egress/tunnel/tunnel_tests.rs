//! Tests of `tunnel`, beside it because they are as long.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::sleep;

use super::*;

fn bounds() -> Bounds {
    Bounds {
        idle: Duration::from_secs(60),
        max_bytes: None,
        pace: None,
        cancel: CancellationToken::new(),
    }
}

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (near, listener.accept().await.unwrap().0)
}

/// A tunnel that runs: the guest's end, the destination's end, the counters, the outcome.
async fn tunnel(
    bounds: Bounds,
) -> (TcpStream, TcpStream, Arc<Bytes>, impl Future<Output = Result<(), Broken>>) {
    let (guest, inner_guest) = pair().await;
    let (inner_destination, destination) = pair().await;
    let bytes = Arc::new(Bytes::default());
    let counted = Arc::clone(&bytes);
    let outcome = async move {
        let (guest, destination) = (&inner_guest, &inner_destination);
        let relay = Relay { guest, destination, bytes: &counted, bounds: &bounds };
        relay.run(async { Ok(()) }, async { Ok(()) }).await
    };
    (guest, destination, bytes, outcome)
}

/// Bytes that don't repeat within a buffer.
fn pattern(length: usize) -> Vec<u8> {
    let byte = |index: usize| ((index % 251) ^ (index / 65_537 % 256)).to_le_bytes()[0];
    (0..length).map(byte).collect()
}

#[tokio::test]
async fn all_bytes_arrive_in_both_directions_and_are_counted() {
    for length in [0, 1, 32 << 10, 64 << 10, 3_000_001] {
        let (guest, destination, bytes, outcome) = tunnel(bounds()).await;
        let talk = |stream: TcpStream, says: Vec<u8>| async move {
            let (mut read, mut write) = stream.into_split();
            let mut heard = Vec::new();
            let say = async move {
                write.write_all(&says).await.unwrap();
                write.shutdown().await.unwrap();
            };
            tokio::join!(say, async { read.read_to_end(&mut heard).await.unwrap() });
            heard
        };
        let question = pattern(length);
        let answer = pattern(length / 2 + 7);
        let (result, at_guest, at_destination) = tokio::join!(
            outcome,
            talk(guest, question.clone()),
            talk(destination, answer.clone()),
        );
        result.unwrap();
        assert!(at_destination == question, "{length} bytes up");
        assert!(at_guest == answer, "{length} bytes down");
        assert_eq!(bytes.total(), (question.len() + answer.len()) as u64);
    }
}

#[tokio::test]
async fn tunnels_that_share_pipes_keep_their_bytes_apart() {
    let mut tunnels = tokio::task::JoinSet::new();
    for number in 0..4 {
        let (mut guest, mut destination, _, outcome) = tunnel(bounds()).await;
        let says: Vec<_> = pattern(8 << 20).iter().map(|byte| byte ^ number).collect();
        tunnels.spawn(async move {
            let say = async {
                guest.write_all(&says).await.unwrap();
                drop(guest);
            };
            let mut heard = Vec::new();
            let hear = async {
                // So late that the tunnel has to wait with a full pipe.
                sleep(Duration::from_millis(50)).await;
                destination.read_to_end(&mut heard).await.unwrap();
                drop(destination);
            };
            let (result, (), ()) = tokio::join!(outcome, say, hear);
            result.unwrap();
            assert!(heard == says, "tunnel {number}");
        });
    }
    while let Some(ended) = tunnels.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test]
async fn a_half_close_leaves_the_other_half_open() {
    let (mut guest, mut destination, _, outcome) = tunnel(bounds()).await;
    let talk = async {
        guest.write_all(b"question").await.unwrap();
        guest.shutdown().await.unwrap();
        let mut heard = Vec::new();
        destination.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        for _ in 0..3 {
            destination.write_all(b"answer").await.unwrap();
            let mut heard = [0; 6];
            guest.read_exact(&mut heard).await.unwrap();
        }
        drop(destination);
        assert_eq!(guest.read(&mut [0; 1]).await.unwrap(), 0);
    };
    let (result, ()) = tokio::join!(outcome, talk);
    result.unwrap();
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    let (guest, mut destination, _, outcome) = tunnel(bounds()).await;
    reset(&guest);
    drop(guest);
    let (result, heard) = tokio::join!(outcome, async { destination.read(&mut [0; 1]).await });
    assert!(matches!(result, Err(Broken::Io { side: "guest", .. })), "{result:?}");
    assert_eq!(heard.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_bound_on_bytes_holds_while_copying_and_while_splicing() {
    for most in [1000, 200_000] {
        let limits = Bounds { max_bytes: Some(most), ..bounds() };
        let (mut guest, mut destination, _, outcome) = tunnel(limits).await;
        let mut heard = Vec::new();
        let (result, _, _) =
            tokio::join!(outcome, async { guest.write_all(&pattern(1 << 20)).await }, async {
                destination.read_to_end(&mut heard).await
            },);
        assert!(matches!(result, Err(Broken::TooManyBytes(bound)) if bound == most), "{result:?}");
        assert!(heard.len() as u64 <= most + (64 << 10), "{} of {most}", heard.len());
    }
}

#[tokio::test]
async fn quiet_ends_a_tunnel() {
    let limits = Bounds { idle: Duration::from_millis(100), ..bounds() };
    let (_guest, _destination, _, outcome) = tunnel(limits).await;
    assert!(matches!(outcome.await, Err(Broken::Idle(_))));
}

#[tokio::test]
async fn the_end_of_the_microvm_ends_a_tunnel() {
    let limits = bounds();
    let cancel = limits.cancel.clone();
    let (_guest, _destination, _, outcome) = tunnel(limits).await;
    let (result, ()) = tokio::join!(outcome, async move { cancel.cancel() });
    assert!(matches!(result, Err(Broken::Cancelled)));
}

#[tokio::test]
async fn a_receiver_that_stands_still_stops_the_sender() {
    let limits = Bounds { idle: Duration::from_millis(400), ..bounds() };
    let (guest, _destination, bytes, outcome) = tunnel(limits).await;
    let send = async {
        loop {
            if write_all(&guest, &pattern(1 << 20)).await.is_err() {
                break;
            }
        }
    };
    let (result, ()) = tokio::join!(outcome, send);
    assert!(matches!(result, Err(Broken::Idle(_))), "{result:?}");
    // What socket buffers and one pipe hold, and no more.
    assert!(bytes.total() < 64 << 20, "{}", bytes.total());
}
