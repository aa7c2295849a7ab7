//! Downloads from a fake server with scripted responses.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;
use mayfly_failure::{Failure, chain};

/// Serves one response per connection; returns the requests.
struct Server {
    address: String,
    thread: JoinHandle<Vec<String>>,
}

impl Server {
    /// `{HERE}` in a response becomes the server's address.
    fn start(responses: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let responses: Vec<String> =
            responses.iter().map(|response| response.replace("{HERE}", &address)).collect();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for response in responses {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head = lines.map(Result::unwrap).take_while(|line| !line.is_empty());
                seen.push(head.collect::<Vec<_>>().join("\n"));
                stream.write_all(response.as_bytes()).unwrap();
            }
            seen
        });
        Self { address, thread }
    }
}

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn fetch(
        &self,
        url: &str,
        expected: &[u8],
        token: Option<&str>,
    ) -> Result<PathBuf, ImageError> {
        let store = Store::open(self.directory.path());
        let deadline = Instant::now() + Duration::from_secs(60);
        let downloader = Downloader::new(&store, deadline, &|_| ()).unwrap();
        let token = token.map(SecretString::from);
        let sha256 = hash::of_bytes(expected);
        downloader.fetch(&DownloadRequest { url, sha256: &sha256, token: token.as_ref() })
    }

    fn cached(&self) -> usize {
        fs::read_dir(self.directory.path().join(DIRECTORY)).unwrap().count()
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

#[test]
fn a_download_is_cached() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO]);
    for _ in 0..2 {
        let path = fixture.fetch(&server.address, b"hello", None).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"hello");
    }
    assert_eq!(server.thread.join().unwrap().len(), 1);
}

#[test]
fn a_changed_cache_entry_is_downloaded_again() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO, HELLO]);
    let path = fixture.fetch(&server.address, b"hello", None).unwrap();
    fs::write(&path, "hallo").unwrap();
    let path = fixture.fetch(&server.address, b"hello", None).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"hello");
}

#[test]
fn a_wrong_digest_is_rejected_and_not_cached() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO]);
    let error = fixture.fetch(&server.address, b"hallo", None).unwrap_err();
    let message = error.to_string();
    for digest in [hash::of_bytes(b"hello"), hash::of_bytes(b"hallo")] {
        assert!(message.contains(digest.as_str()), "{message}");
    }
    assert_eq!(fixture.cached(), 0);
}

#[test]
fn a_token_is_for_the_first_server_only() {
    let fixture = Fixture::new();
    let elsewhere = Server::start(&[HELLO]);
    let redirect = format!(
        "HTTP/1.1 302 Found\r\nlocation: {}/there\r\ncontent-length: 0\r\n\r\n",
        elsewhere.address
    );
    let server = Server::start(&[&redirect]);
    fixture.fetch(&server.address, b"hello", Some("verysecret")).unwrap();
    assert!(server.thread.join().unwrap()[0].contains("authorization: Bearer verysecret"));
    let seen = elsewhere.thread.join().unwrap();
    assert!(seen[0].starts_with("GET /there ") && !seen[0].contains("verysecret"), "{seen:?}");
}

#[test]
fn a_broken_connection_is_retried() {
    let fixture = Fixture::new();
    let server = Server::start(&[&HELLO[..HELLO.len() - 2], HELLO]);
    fixture.fetch(&server.address, b"hello", None).unwrap();
    assert_eq!(server.thread.join().unwrap().len(), 2);
}

#[test]
fn a_missing_file_is_not_requested_again() {
    let fixture = Fixture::new();
    let server = Server::start(&["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]);
    let error = fixture.fetch(&server.address, b"hello", None).unwrap_err();
    assert!(chain(&error).contains("status 404"), "{}", chain(&error));
    assert_eq!(error.code(), mayfly_failure::Code::Unavailable);
    assert_eq!(fixture.cached(), 0);
}

#[test]
fn a_download_that_announces_too_many_bytes_is_not_started() {
    let fixture = Fixture::new();
    let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", MAX_BYTES + 1);
    let server = Server::start(&[&huge]);
    let error = fixture.fetch(&server.address, b"hello", None).unwrap_err();
    assert!(matches!(error, ImageError::Download { source: DownloadError::TooLarge, .. }));
}

#[test]
fn a_redirect_never_downgrades_from_https() {
    let to = |from: &str, to: &str| {
        redirected(&from.parse().unwrap(), to).map(|address| address.to_string())
    };
    assert_eq!(to("https://a.example.com/x", "/y?z"), Some("https://a.example.com/y?z".into()));
    assert_eq!(
        to("http://a.example.com/x", "https://b.example.com/"),
        Some("https://b.example.com/".into())
    );
    for next in ["http://a.example.com/", "file:///etc/passwd", "ftp://a.example.com/", "y", ""] {
        assert_eq!(to("https://a.example.com/x", next), None, "{next}");
    }
}
