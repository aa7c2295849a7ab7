//! Servers on the host's loopback.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

/// A server that runs a function for each connection, on its own thread.
pub struct Echo {
    pub address: SocketAddr,
}

impl Echo {
    pub fn new(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", serve)
    }

    pub fn at(address: &str, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let serve = Arc::new(serve);
        // The thread lives as long as the test process: nothing stops it.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serve = Arc::clone(&serve);
                std::thread::spawn(move || serve(stream));
            }
        });
        Self { address }
    }
}

/// An HTTP server that stores the bytes of each request and responds with a fixed body.
pub struct WebServer {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl WebServer {
    pub fn new(body: &'static str) -> Self {
        Self::at("127.0.0.1:0", body)
    }

    pub fn at(address: &str, body: &'static str) -> Self {
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let stored = Arc::clone(&requests);
        let echo = Echo::at(address, move |stream| serve_requests(stream, body, &stored));
        Self { address: echo.address, requests }
    }

    /// Returns the requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve_requests(mut stream: TcpStream, body: &str, stored: &Mutex<Vec<String>>) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..count]);
        let Some(end) = seen.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&seen[..end + 4]).into_owned();
        let length = head.lines().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length: ").and_then(|n| n.parse().ok())
        });
        let total = end + 4 + length.unwrap_or(0_usize);
        let is_chunked = head.to_lowercase().contains("transfer-encoding: chunked");
        if seen.len() < total || (is_chunked && !seen.ends_with(b"0\r\n\r\n")) {
            continue;
        }
        stored.lock().unwrap().push(String::from_utf8_lossy(&seen).into_owned());
        seen.clear();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nX-Origin: yes\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// An HTTPS server with a certificate for the given names.
pub struct TlsServer {
    pub address: SocketAddr,
    directory: TempDir,
    child: Child,
}

impl TlsServer {
    pub fn new(names: &[&str]) -> Self {
        Self::with(names, &[])
    }

    /// Starts it with more arguments for `openssl s_server`.
    pub fn with(names: &[&str], more: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let alternative: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let extension = format!("subjectAltName={}", alternative.join(","));
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=test", "-addext", &extension])
            .args(["-keyout", "key.pem", "-out", "cert.pem"])
            .current_dir(directory.path())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        std::fs::write(directory.path().join("index.html"), "over TLS\n").unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new("openssl")
            .args(["s_server", "-quiet", "-WWW", "-cert", "cert.pem", "-key", "key.pem"])
            .args(["-accept", &address.to_string()])
            .args(more)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { address, directory, child };
        server.wait();
        server
    }

    fn wait(&self) {
        for _ in 0..200 {
            if TcpStream::connect(self.address).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("the TLS server is not listening");
    }

    /// Returns the path of the certificate.
    pub fn certificate(&self) -> String {
        self.directory.path().join("cert.pem").to_str().unwrap().to_owned()
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
