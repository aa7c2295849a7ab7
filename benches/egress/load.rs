//! The client and the origin. Both use as little processor time as possible, because they share the
//! processors with the measured proxy: the origin sends a file in memory without copying it, and
//! the client discards all data unread.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, recv};

/// The name of the origin in policies, in squid's hosts file, and in the `ClientHello`.
pub const NAME: &str = "tls.example";

/// The port of the origin, on all addresses of its namespace.
pub const ORIGIN_PORT: u16 = 8443;

/// The size of the file that is sent repeatedly, and of the client's buffer, in bytes.
const FILE: usize = 4 << 20;

/// Returns OpenSSL's `ClientHello` for the name.
pub fn hello() -> Vec<u8> {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-servername", NAME, "-connect"])
        .arg(server.local_addr().unwrap().to_string())
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut buffer = vec![0; 4096];
    let length = server.accept().unwrap().0.read(&mut buffer).unwrap();
    client.wait().unwrap();
    buffer.truncate(length);
    buffer
}

/// A server that responds to the first bytes of a connection with two bytes, and to a following `G`
/// with endless zeros.
pub struct Origin {
    listener: TcpListener,
    threads: Vec<JoinHandle<()>>,
}

impl Origin {
    /// Listens in the namespace of the calling thread, for this number of concurrent connections.
    pub fn new(connections: usize) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, ORIGIN_PORT)).unwrap();
        let file = memfd_create("zeros", MFdFlags::MFD_CLOEXEC).unwrap();
        let mut file = std::fs::File::from(file);
        file.write_all(&vec![0; FILE]).unwrap();
        let threads = (0..connections).map(|_| {
            let listener = listener.try_clone().unwrap();
            let zeros = OwnedFd::from(file.try_clone().unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    respond(stream, &zeros);
                }
            })
        });
        let threads = threads.collect();
        Self { listener, threads }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        // Every `accept` fails from now on.
        let socket = socket2::SockRef::from(&self.listener);
        _ = socket.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            _ = thread.join();
        }
    }
}

fn respond(mut stream: TcpStream, zeros: &OwnedFd) {
    _ = stream.set_nodelay(true);
    let mut buffer = [0; 4096];
    if !matches!(stream.read(&mut buffer), Ok(1..)) || stream.write_all(b"ok").is_err() {
        return;
    }
    if matches!(stream.read(&mut buffer), Ok(1..)) {
        let mut offset = 0;
        while let Ok(1..) = sendfile64(&stream, zeros, Some(&mut offset), FILE) {
            if offset.cast_unsigned() >= FILE as u64 {
                offset = 0;
            }
        }
    }
}

/// A route to the origin.
#[derive(Debug, Clone, Copy)]
pub enum Route {
    /// To this address, the origin's or a stand-in for it.
    Direct(SocketAddr),
    /// Through `CONNECT` of a proxy, to this port of the name.
    Proxy(SocketAddr, u16),
}

impl Route {
    /// Opens a connection, sends the hello, and receives two bytes.
    pub fn open(self, hello: &[u8]) -> TcpStream {
        let (Self::Direct(address) | Self::Proxy(address, _)) = self;
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        if let Self::Proxy(_, port) = self {
            let target = format!("{NAME}:{port}");
            let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
            stream.write_all(request.as_bytes()).unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut buffer = [0; 512];
                let count = stream.read(&mut buffer).unwrap();
                assert!(count > 0);
                head.extend(&buffer[..count]);
            }
            assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
        }
        stream.write_all(hello).unwrap();
        stream.read_exact(&mut [0; 2]).unwrap();
        stream
    }
}

/// Opens concurrent connections, each for one exchange. Returns their number.
pub fn exchanges(route: Route, hello: &[u8], concurrency: usize, time: Duration) -> u64 {
    let count = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                while start.elapsed() < time {
                    route.open(hello);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner()
}

/// Receives data on concurrent connections. Returns the number of bytes.
pub fn streams(route: Route, hello: &[u8], concurrency: usize, time: Duration) -> u64 {
    let count = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..concurrency {
            scope.spawn(|| {
                let mut stream = route.open(hello);
                stream.write_all(b"G").unwrap();
                // `MSG_TRUNC` never writes to it.
                let mut buffer = vec![0; FILE];
                while start.elapsed() < time {
                    let received = recv(stream.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC);
                    count.fetch_add(received.unwrap() as u64, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner()
}
