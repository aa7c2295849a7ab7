//! Stalled clients against each listener: others are served meanwhile, and each wait times out.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::call::Call;
use super::{call, server, status, webhook};

/// The timeout of each step.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Connections of an abuser: more than any listener serves.
const ABUSIVE_CONNECTIONS: usize = 100;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// The address of a listener.
#[derive(Clone)]
enum Endpoint {
    Unix(std::path::PathBuf),
    Tcp(SocketAddr),
}

impl Endpoint {
    /// Connects; over TCP from its own address.
    async fn connect(&self, from: u8) -> Box<dyn Stream> {
        match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4().unwrap();
                let own = IpAddr::from([127, 0, 0, from]);
                socket.bind(SocketAddr::new(own, 0)).unwrap();
                // A small buffer, so that unread data stalls soon.
                socket.set_recv_buffer_size(4096).unwrap();
                Box::new(socket.connect(*address).await.unwrap())
            }
        }
    }
}

/// Returns what an abuser sends, given an honest request. It never reads.
type Abuse = fn(&[u8]) -> Vec<u8>;

const ABUSES: [(&str, Abuse); 6] = [
    ("says nothing", |_| Vec::new()),
    ("stops within a head", |honest| honest[..20].to_vec()),
    ("stops before a body", |_| body(b"")),
    ("stops within a body", |_| body(b"{\"pool\":")),
    ("pipelines and never reads", |honest| honest.repeat(20_000)),
    ("stops within a chunk", |_| {
        let head = String::from_utf8(body(b"")).unwrap();
        let chunked = "transfer-encoding: chunked\r\n\r\nfff\r\n{";
        head.replace("content-length: 1000\r\n\r\n", chunked).into_bytes()
    }),
];

/// A request with an incomplete body.
fn body(part: &[u8]) -> Vec<u8> {
    let mut request = b"POST /webhook HTTP/1.1\r\nhost: x\r\nx-github-delivery: d-1\r\n\
        authorization: Bearer right\r\ncontent-type: application/json\r\n\
        x-github-event: push\r\nx-hub-signature-256: sha256=2\r\ncontent-length: 1000\r\n\r\n"
        .to_vec();
    request.extend_from_slice(part);
    request
}

/// Sends as much as the server takes, and holds the connection.
async fn abuse(endpoint: Endpoint, bytes: Vec<u8>) {
    let mut stream = endpoint.connect(1).await;
    // The server drops the connection at some time.
    _ = stream.write_all(&bytes).await;
    std::future::pending::<()>().await;
}

/// Sends an incomplete request, a byte at a time, from two addresses, for as long as it is let.
async fn drip(endpoint: Endpoint, from: u8, request: Vec<u8>) {
    loop {
        let mut stream = endpoint.connect(from).await;
        for byte in &request[..request.len() - 4] {
            if stream.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Sends complete requests one after the other, and reads each response.
async fn repeat(endpoint: Endpoint, from: u8, request: Vec<u8>) {
    loop {
        let mut stream = endpoint.connect(from).await;
        while stream.write_all(&request).await.is_ok() {
            if !matches!(stream.read(&mut [0; 4096]).await, Ok(1..)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Holds all connections from two sources in ways that never stall for long.
async fn others_are_served_beside_busy_clients(endpoint: Endpoint, honest: Vec<u8>, status: &str) {
    for (what, is_drip) in [("drips", true), ("repeats", false)] {
        let mut abusers = JoinSet::new();
        for number in 0..ABUSIVE_CONNECTIONS {
            let from = if number < ABUSIVE_CONNECTIONS * 3 / 4 { 1 } else { 3 };
            let (endpoint, honest) = (endpoint.clone(), honest.clone());
            if is_drip {
                abusers.spawn(drip(endpoint, from, honest));
            } else {
                abusers.spawn(repeat(endpoint, from, honest));
            }
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        // Less than the timeout of a request, which would end the others in the end.
        let limit = Duration::from_secs(15);
        let found = tokio::time::timeout(limit, request_status(&endpoint, &honest)).await;
        assert_eq!(found.as_ref().ok().and_then(Option::as_deref), Some(status), "{what}");
        abusers.shutdown().await;
    }
}

/// Sends a request and returns the status of the response.
async fn request_status(endpoint: &Endpoint, request: &[u8]) -> Option<String> {
    let mut stream = endpoint.connect(2).await;
    stream.write_all(request).await.ok()?;
    let mut response = [0; 12];
    stream.read_exact(&mut response).await.ok()?;
    Some(String::from_utf8_lossy(&response[9..]).into_owned())
}

/// Abuses a listener in each way while an honest client sends a request.
async fn others_are_served(endpoint: Endpoint, honest: impl Into<Vec<u8>>, status: &str) {
    let honest = &honest.into()[..];
    for (what, abuse_with) in ABUSES {
        let mut abusers = JoinSet::new();
        for _ in 0..ABUSIVE_CONNECTIONS {
            abusers.spawn(abuse(endpoint.clone(), abuse_with(honest)));
        }
        // Time for the abusers to connect.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let found = tokio::time::timeout(TEST_TIMEOUT, request_status(&endpoint, honest)).await;
        assert_eq!(found.as_ref().ok().and_then(Option::as_deref), Some(status), "{what}");
        abusers.shutdown().await;
    }
}

/// Responds like a daemon without pools.
async fn respond(mut calls: mpsc::Receiver<Call>) {
    while let Some(call) = calls.recv().await {
        match call {
            Call::Pools { responder } => _ = responder.send(Ok(vec![])),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn pools(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer right\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn the_unix_socket_serves_others_while_clients_stall() {
    let directory = tempfile::tempdir().unwrap();
    let socket: &Path = &directory.path().join("api.sock");
    let (calls, received) = mpsc::channel(call::CAPACITY);
    let stop = CancellationToken::new();
    let (_changed, changes) = tokio::sync::watch::channel(0);
    let pages = status::Pages::new(calls.clone(), changes, None, stop.clone());
    let (listener, _file) = server::bind(socket, 0o600).unwrap();
    let serving = server::serve(listener, calls, pages, stop);
    tokio::select! {
        () = others_are_served(Endpoint::Unix(socket.to_owned()), pools("/v1/pools"), "200") => {}
        () = serving => panic!("the server ended"),
        () = respond(received) => panic!("no more calls"),
    }
}

#[tokio::test]
async fn the_api_over_tcp_serves_others_while_clients_stall() {
    let listener = server::bind_tcp("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], listener.local_addr().unwrap().port()).into());
    let (calls, received) = mpsc::channel(call::CAPACITY);
    let serving = server::serve_tcp(listener, "right".into(), calls, CancellationToken::new());
    let others = async {
        others_are_served(endpoint.clone(), pools("/v1/pools"), "200").await;
        others_are_served_beside_busy_clients(endpoint, pools("/v1/pools"), "200").await;
    };
    tokio::select! {
        () = others => {}
        () = serving => panic!("the server ended"),
        () = respond(received) => panic!("no more calls"),
    }
}

#[tokio::test]
async fn the_status_page_serves_others_while_clients_stall() {
    let listener = status::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], address.port()).into());
    let (calls, received) = mpsc::channel(call::CAPACITY);
    let (_changed, changes) = tokio::sync::watch::channel(0);
    let pages = status::Pages::new(calls, changes, None, CancellationToken::new());
    let access = status::Access::Anyone;
    tokio::select! {
        () = others_are_served(endpoint, pools("/style.css"), "200") => {}
        () = status::serve(listener, access, pages) => panic!("the server ended"),
        () = respond(received) => panic!("no more calls"),
    }
}

#[tokio::test]
async fn webhooks_are_accepted_while_clients_stall() {
    let listener = server::bind_tcp("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], listener.local_addr().unwrap().port()).into());
    let verify: webhook::Verify = Arc::new(|_, signature| signature == "sha256=2");
    let (deliveries, mut taken) = mpsc::channel(1 << 20);
    let serving = webhook::serve(listener, verify, deliveries, CancellationToken::new());
    let honest = String::from_utf8(body(b"{}")).unwrap().replace("1000", "2");
    let take = async {
        while let Some(delivery) = taken.recv().await {
            // The client may have disconnected.
            _ = delivery.responder.send(webhook::DeliveryOutcome::Accepted);
        }
    };
    tokio::select! {
        () = others_are_served(endpoint, honest, "202") => {}
        () = serving => panic!("the server ended"),
        () = take => panic!("no more deliveries"),
    }
}
