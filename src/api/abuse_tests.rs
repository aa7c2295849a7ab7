//! Clients that stand still, against each listener: others are served meanwhile, and each wait ends.

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

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that an abuser makes: more than any listener serves.
const MANY: usize = 100;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Where a listener is.
#[derive(Clone)]
enum Place {
    Unix(std::path::PathBuf),
    Tcp(SocketAddr),
}

impl Place {
    /// Connects; over TCP from an address of its own.
    async fn connect(&self, from: u8) -> Box<dyn Stream> {
        match self {
            Self::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
            Self::Tcp(address) => {
                let socket = TcpSocket::new_v4().unwrap();
                let own = IpAddr::from([127, 0, 0, from]);
                socket.bind(SocketAddr::new(own, 0)).unwrap();
                // What isn't read comes to a standstill soon.
                socket.set_recv_buffer_size(4096).unwrap();
                Box::new(socket.connect(*address).await.unwrap())
            }
        }
    }
}

/// What an abuser sends, as a function of an honest request: it never reads.
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

/// A request with a body that is not sent whole, for whoever takes some.
fn body(part: &[u8]) -> Vec<u8> {
    let mut request = b"POST /webhook HTTP/1.1\r\nhost: x\r\nx-github-delivery: d-1\r\n\
        authorization: Bearer right\r\ncontent-type: application/json\r\n\
        x-github-event: push\r\nx-hub-signature-256: sha256=2\r\ncontent-length: 1000\r\n\r\n"
        .to_vec();
    request.extend_from_slice(part);
    request
}

/// Sends as much as is taken, and holds the connection.
async fn abuse(place: Place, bytes: Vec<u8>) {
    let mut stream = place.connect(1).await;
    // It is hung up on at some time.
    _ = stream.write_all(&bytes).await;
    std::future::pending::<()>().await;
}

/// The status of the answer to a request.
async fn ask(place: &Place, request: &[u8]) -> Option<String> {
    let mut stream = place.connect(2).await;
    stream.write_all(request).await.ok()?;
    let mut response = [0; 12];
    stream.read_exact(&mut response).await.ok()?;
    Some(String::from_utf8_lossy(&response[9..]).into_owned())
}

/// Abuses a listener in each way while an honest client asks it.
async fn others_are_served(place: Place, honest: impl Into<Vec<u8>>, status: &str) {
    let honest = &honest.into()[..];
    for (what, abuse_with) in ABUSES {
        let mut abusers = JoinSet::new();
        for _ in 0..MANY {
            abusers.spawn(abuse(place.clone(), abuse_with(honest)));
        }
        // Until they have what they get.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let asked = tokio::time::timeout(PATIENCE, ask(&place, honest)).await;
        assert_eq!(asked.as_ref().ok().and_then(Option::as_deref), Some(status), "{what}");
        abusers.shutdown().await;
    }
}

/// Answers what is asked, as a daemon would that has nothing.
async fn answer(mut asked: mpsc::Receiver<Call>) {
    while let Some(call) = asked.recv().await {
        match call {
            Call::Pools { answer } => _ = answer.send(Ok(vec![])),
            other => panic!("unexpected {other:?}"),
        }
    }
}

fn pools(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer right\r\n\r\n")
        .into_bytes()
}

#[tokio::test]
async fn the_unix_socket_serves_others_while_clients_stand_still() {
    let directory = tempfile::tempdir().unwrap();
    let socket: &Path = &directory.path().join("api.sock");
    let (calls, asked) = mpsc::channel(call::CAPACITY);
    let stop = CancellationToken::new();
    let (_changed, changes) = tokio::sync::watch::channel(0);
    let pages = status::Pages::new(calls.clone(), changes, None, stop.clone());
    let (listener, _file) = server::bind(socket, 0o600).unwrap();
    let serving = server::serve(listener, calls, pages, stop);
    tokio::select! {
        () = others_are_served(Place::Unix(socket.to_owned()), pools("/v1/pools"), "200") => {}
        () = serving => panic!("the server ended"),
        () = answer(asked) => panic!("nobody asks"),
    }
}

#[tokio::test]
async fn the_api_over_tcp_serves_others_while_clients_stand_still() {
    let listener = server::bind_tcp("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let place = Place::Tcp(([127, 0, 0, 1], listener.local_addr().unwrap().port()).into());
    let (calls, asked) = mpsc::channel(call::CAPACITY);
    let serving = server::serve_tcp(listener, "right".into(), calls, CancellationToken::new());
    tokio::select! {
        () = others_are_served(place, pools("/v1/pools"), "200") => {}
        () = serving => panic!("the server ended"),
        () = answer(asked) => panic!("nobody asks"),
    }
}

#[tokio::test]
async fn the_status_page_serves_others_while_clients_stand_still() {
    let listener = status::bind("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let place = Place::Tcp(([127, 0, 0, 1], address.port()).into());
    let (calls, asked) = mpsc::channel(call::CAPACITY);
    let (_changed, changes) = tokio::sync::watch::channel(0);
    let pages = status::Pages::new(calls, changes, None, CancellationToken::new());
    let access = status::Access::Anyone;
    tokio::select! {
        () = others_are_served(place, pools("/style.css"), "200") => {}
        () = status::serve(listener, access, pages) => panic!("the server ended"),
        () = answer(asked) => panic!("nobody asks"),
    }
}

#[tokio::test]
async fn webhooks_are_taken_while_clients_stand_still() {
    let listener = server::bind_tcp("0.0.0.0:0".parse().unwrap()).await.unwrap();
    let place = Place::Tcp(([127, 0, 0, 1], listener.local_addr().unwrap().port()).into());
    let verify: webhook::Verify = Arc::new(|_, signature| signature == "sha256=2");
    let (deliveries, mut taken) = mpsc::channel(1 << 20);
    let serving = webhook::serve(listener, verify, deliveries, CancellationToken::new());
    let honest = String::from_utf8(body(b"{}")).unwrap().replace("1000", "2");
    let take = async {
        while let Some(delivery) = taken.recv().await {
            // Whoever sent it may be gone.
            _ = delivery.answer.send(webhook::Answer::Taken);
        }
    };
    tokio::select! {
        () = others_are_served(place, honest, "202") => {}
        () = serving => panic!("the server ended"),
        () = take => panic!("nobody sends"),
    }
}
