//! What tests of this folder share: a key, and a server that answers by a script.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Client, Credentials, Settings};
use crate::host::web::Proxies;

/// A key that was made for these tests and is no App's.
pub(super) fn private_key() -> SecretString {
    include_str!("app.pem").into()
}

/// One answer of a script.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Status, headers, body.
    Whole(u16, Vec<(&'static str, String)>, String),
    /// The status and half the body; then the connection is closed.
    Cut(u16, String),
    /// The connection is closed without an answer.
    Silence,
}

/// A reply with a JSON body.
#[expect(clippy::needless_pass_by_value, reason = "every caller makes the value for this call")]
pub(super) fn json(status: u16, body: serde_json::Value) -> Reply {
    Reply::Whole(status, Vec::new(), body.to_string())
}

/// A reply with no body.
pub(super) fn empty(status: u16) -> Reply {
    Reply::Whole(status, Vec::new(), String::new())
}

impl Reply {
    /// The same reply with one header more.
    pub(super) fn with(self, name: &'static str, value: impl Into<String>) -> Self {
        match self {
            Self::Whole(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::Whole(status, headers, body)
            }
            other => other,
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Method and path with query.
    pub(super) line: String,
    head: String,
    body: Vec<u8>,
}

impl Seen {
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

/// Answers one connection after another by its script.
pub(super) struct Server {
    pub(super) address: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinSet<()>,
}

impl Server {
    /// Starts; `{HERE}` in a reply becomes the server's address.
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
                answer(&mut stream, reply, &here).await;
            }
        });
        Self { address, seen, task }
    }

    /// Everything that was asked; the script must have been used up.
    pub(super) async fn seen(mut self) -> Vec<Seen> {
        tokio::time::timeout(Duration::from_secs(10), self.task.join_next())
            .await
            .expect("the client asked for less than the script has")
            .expect("there is one task")
            .unwrap();
        self.seen.lock().unwrap().clone()
    }

    /// A client of this server for a scope such as `octo` or `octo/hello`, with a token.
    pub(super) fn client(&self, scope: &str) -> Client {
        Client::new(&self.settings(scope, Credentials::Token("ghp_verysecret".into()))).unwrap()
    }

    /// A client of this server as an App.
    pub(super) fn app(&self, scope: &str, installation: Option<u64>) -> Client {
        let id = "Iv1.test".to_owned();
        let credentials = Credentials::App { id, private_key: private_key(), installation };
        Client::new(&self.settings(scope, credentials)).unwrap()
    }

    /// Settings for a client of this server.
    pub(super) fn settings(&self, scope: &str, credentials: Credentials) -> Settings {
        Settings {
            api: Some(self.address.parse().unwrap()),
            proxies: Proxies::none(),
            mutation_gap: Duration::ZERO,
            ..Settings::new(format!("{}/{scope}", self.address).parse().unwrap(), credentials)
        }
    }
}

async fn request(stream: &mut TcpStream) -> Seen {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        assert_ne!(stream.read_buf(&mut bytes).await.unwrap(), 0, "the request was cut");
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let line = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    let mut seen = Seen { line, head, body: bytes[end..].to_vec() };
    let length = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    while seen.body.len() < length {
        assert_ne!(stream.read_buf(&mut seen.body).await.unwrap(), 0, "the body was cut");
    }
    seen
}

async fn answer(stream: &mut TcpStream, reply: Reply, here: &str) {
    let text = match reply {
        Reply::Whole(status, headers, body) => {
            let body = body.replace("{HERE}", here);
            let headers = headers.into_iter().map(|(name, value)| format!("{name}: {value}\r\n"));
            let headers = headers.collect::<String>().replace("{HERE}", here);
            let length = body.len();
            format!(
                "HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\
                 \r\n{body}"
            )
        }
        Reply::Cut(status, body) => {
            let half = &body[..body.len() / 2];
            format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{half}", body.len())
        }
        Reply::Silence => return,
    };
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}
