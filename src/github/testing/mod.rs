//! Shared test helpers: a private key and a scripted server.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Credentials, GitHubClient, GitHubSettings};
use mayfly_host::web::Proxies;

/// Returns a key created for these tests; it belongs to no App.
pub(super) fn private_key() -> SecretString {
    include_str!("app.pem").into()
}

/// One response of a script.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Status, headers, body.
    Full(u16, Vec<(&'static str, String)>, String),
    /// The status and half the body, then the connection closes.
    Truncated(u16, String),
    /// The connection closes without a response.
    NoResponse,
}

/// Returns a reply with a JSON body.
#[expect(clippy::needless_pass_by_value, reason = "every caller makes the value for this call")]
pub(super) fn json(status: u16, body: serde_json::Value) -> Reply {
    Reply::Full(status, Vec::new(), body.to_string())
}

/// Returns a reply without a body.
pub(super) fn empty(status: u16) -> Reply {
    Reply::Full(status, Vec::new(), String::new())
}

impl Reply {
    /// Adds a header.
    pub(super) fn with(self, name: &'static str, value: impl Into<String>) -> Self {
        match self {
            Self::Full(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::Full(status, headers, body)
            }
            other => other,
        }
    }
}

/// A request as received.
#[derive(Clone, Debug)]
pub(super) struct ReceivedRequest {
    /// The method, and the path with query.
    pub(super) line: String,
    head: String,
    body: Vec<u8>,
}

impl ReceivedRequest {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// A server that sends one scripted reply per connection.
pub(super) struct Server {
    pub(super) address: String,
    seen: Arc<Mutex<Vec<ReceivedRequest>>>,
    task: JoinSet<()>,
}

impl Server {
    /// Starts the server; `{HERE}` in a reply becomes the server's URL.
    pub(super) async fn start(script: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (here, notes) = (address.clone(), Arc::clone(&seen));
        let mut task = JoinSet::new();
        task.spawn(async move {
            for reply in script {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = request(&mut stream).await;
                notes.lock().unwrap().push(request);
                send_reply(&mut stream, reply, &here).await;
            }
        });
        Self { address, seen, task }
    }

    /// Returns all requests; the script must be used up.
    pub(super) async fn seen(mut self) -> Vec<ReceivedRequest> {
        tokio::time::timeout(Duration::from_secs(10), self.task.join_next())
            .await
            .expect("the client sent fewer requests than scripted")
            .expect("the task ended")
            .unwrap();
        self.seen.lock().unwrap().clone()
    }

    /// Creates a client for a scope such as `octo` or `octo/hello`, with a token.
    pub(super) fn client(&self, scope: &str) -> GitHubClient {
        GitHubClient::new(&self.settings(scope, Credentials::Token("ghp_verysecret".into())))
            .unwrap()
    }

    /// Creates a client with an App's credentials.
    pub(super) fn app(&self, scope: &str, installation: Option<u64>) -> GitHubClient {
        let id = "Iv1.test".to_owned();
        let credentials = Credentials::App { id, private_key: private_key(), installation };
        GitHubClient::new(&self.settings(scope, credentials)).unwrap()
    }

    /// Returns settings for a client of this server.
    pub(super) fn settings(&self, scope: &str, credentials: Credentials) -> GitHubSettings {
        GitHubSettings {
            api: Some(self.address.parse().unwrap()),
            proxies: Proxies::none(),
            mutation_gap: Duration::ZERO,
            ..GitHubSettings::new(format!("{}/{scope}", self.address).parse().unwrap(), credentials)
        }
    }
}

async fn request(stream: &mut TcpStream) -> ReceivedRequest {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request ended early");
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let mut received = ReceivedRequest { line, head, body: bytes[end..].to_vec() };
    let length = received.header("content-length").map_or(0, |length| length.parse().unwrap());
    while received.body.len() < length {
        assert_ne!(stream.read_buf(&mut received.body).await.unwrap(), 0, "the body ended early");
    }
    received
}

async fn send_reply(stream: &mut TcpStream, reply: Reply, here: &str) {
    let text = match reply {
        Reply::Full(status, headers, body) => {
            let body = body.replace("{HERE}", here);
            let headers = headers.into_iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            let headers = headers.collect::<String>().replace("{HERE}", here);
            let length = body.len();
            format!(
                "HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\
                 \r\n{body}"
            )
        }
        Reply::Truncated(status, body) => {
            let half = &body[..body.len() / 2];
            format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{half}", body.len())
        }
        Reply::NoResponse => return,
    };
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}
