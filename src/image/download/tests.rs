//! Downloads from a server that answers by a script.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;
use crate::failure::{Failure, chain};

/// Answers one connection after another; returns the requests.
struct Server {
    address: String,
    thread: JoinHandle<Vec<String>>,
}

impl Server {
    /// `{HERE}` in an answer becomes the server's address.
    fn start(answers: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let answers: Vec<String> =
            answers.iter().map(|answer| answer.replace("{HERE}", &address)).collect();
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let head = lines.map(Result::unwrap).take_while(|line| !line.is_empty());
                seen.push(head.collect::<Vec<_>>().join("\n"));
                stream.write_all(answer.as_bytes()).unwrap();
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
        downloader.fetch(&Wanted { url, sha256: &sha256, token: token.as_ref() })
    }

    fn kept(&self) -> usize {
        fs::read_dir(self.directory.path().join(DIRECTORY)).unwrap().count()
    }
}

const HELLO: &str = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";

#[test]
fn what_was_downloaded_is_kept() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO]);
    for _ in 0..2 {
        let path = fixture.fetch(&server.address, b"hello", None).unwrap();
        assert_eq!(fs::read(path).unwrap(), b"hello");
    }
    assert_eq!(server.thread.join().unwrap().len(), 1);
}

#[test]
fn what_was_changed_since_is_downloaded_again() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO, HELLO]);
    let path = fixture.fetch(&server.address, b"hello", None).unwrap();
    fs::write(&path, "hallo").unwrap();
    let path = fixture.fetch(&server.address, b"hello", None).unwrap();
    assert_eq!(fs::read(path).unwrap(), b"hello");
}

#[test]
fn anything_else_is_refused_with_both_digests_and_not_kept() {
    let fixture = Fixture::new();
    let server = Server::start(&[HELLO]);
    let error = fixture.fetch(&server.address, b"hallo", None).unwrap_err();
    let message = error.to_string();
    for digest in [hash::of_bytes(b"hello"), hash::of_bytes(b"hallo")] {
        assert!(message.contains(digest.as_str()), "{message}");
    }
    assert_eq!(fixture.kept(), 0);
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
fn a_connection_that_breaks_is_tried_again() {
    let fixture = Fixture::new();
    let server = Server::start(&[&HELLO[..HELLO.len() - 2], HELLO]);
    fixture.fetch(&server.address, b"hello", None).unwrap();
    assert_eq!(server.thread.join().unwrap().len(), 2);
}

#[test]
fn what_is_not_there_is_not_asked_for_again() {
    let fixture = Fixture::new();
    let server = Server::start(&["HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"]);
    let error = fixture.fetch(&server.address, b"hello", None).unwrap_err();
    assert!(chain(&error).contains("status 404"), "{}", chain(&error));
    assert_eq!(error.code(), crate::failure::Code::Unavailable);
    assert_eq!(fixture.kept(), 0);
}

#[test]
fn what_says_that_it_is_too_large_is_not_begun() {
    let fixture = Fixture::new();
    let huge = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", LIMIT + 1);
    let server = Server::start(&[&huge]);
    let error = fixture.fetch(&server.address, b"hello", None).unwrap_err();
    assert!(matches!(error, ImageError::Download { source: DownloadError::TooLarge, .. }));
}

#[test]
fn a_redirection_never_leads_to_less_than_https() {
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
