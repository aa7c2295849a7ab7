//! A rule's rate, over real connections on every path. The tests assert an upper bound on the bytes
//! in the measured time, which a slow machine can't violate.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::{Echo, Guest};

/// Bytes per second.
const RATE: usize = 500_000;

/// The burst of an unused rate: a quarter of a second's worth.
const BURST: usize = RATE / 4;

/// Bytes of a request body, and of its response's.
const BODY: usize = 200_000;

const PROXY: &str = "172.31.0.1:3128";
const CONNECT: &[u8] = b"CONNECT bulk.example:7777 HTTP/1.1\r\nHost: bulk.example:7777\r\n\r\n";

/// Reads a request with its body, and responds with as much.
fn serve(mut stream: TcpStream) {
    let mut seen = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        seen.extend_from_slice(&chunk[..count]);
        let head = seen.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if head.is_some_and(|end| seen.len() >= end + 4 + BODY) {
            let mut answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n").into_bytes();
            answer.resize(answer.len() + BODY, b'x');
            // The client detects missing data.
            _ = stream.write_all(&answer);
            return;
        }
    }
}

fn guest() -> Guest {
    let server = Echo::new(serve);
    Guest::new(&format!(
        "allow = [{{ host = \"bulk.example\", ports = [80, 7777], max_rate = \"500KB/s\" }}]\n\
         resolve = {{ \"bulk.example\" = \"{}\" }}",
        server.address
    ))
}

/// Sends a body and reads as much back, after a prelude that gets a response of 39 bytes.
fn exchange(to: SocketAddr, prelude: &[u8], target: &str) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    if !prelude.is_empty() {
        stream.write_all(prelude).unwrap();
        let mut answer = [0; 39];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    let mut request = format!(
        "POST {target} HTTP/1.1\r\nHost: bulk.example\r\nContent-Length: {BODY}\r\n\
         Connection: close\r\n\r\n"
    )
    .into_bytes();
    request.resize(request.len() + BODY, b'x');
    stream.write_all(&request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    assert_eq!(answer.len() - head - 4, BODY);
}

/// Fails if more bytes have passed since `begin` than the rate allows.
fn assert_paced(what: &str, bytes: usize, begin: Instant) {
    let allowed = RATE as u128 * begin.elapsed().as_micros() / 1_000_000 + BURST as u128;
    assert!(bytes as u128 <= allowed, "{what}: {bytes} of {allowed}");
}

#[test]
fn a_rate_holds_on_every_path_in_both_directions() {
    let guest = guest();
    let address = guest.lookup("bulk.example");
    let proxy = PROXY.parse().unwrap();
    let whole = "http://bulk.example/";
    for (what, to, prelude, target) in [
        ("transparent", SocketAddr::new(address, 7777), &b""[..], "/"),
        ("transparent HTTP", SocketAddr::new(address, 80), b"", "/"),
        ("CONNECT", proxy, CONNECT, "/"),
        ("plain HTTP", proxy, b"", whole),
    ] {
        // The next path may use the rest of a burst, so each gets a full one.
        let begin = Instant::now();
        guest.within(|| exchange(to, prelude, target));
        assert_paced(what, 2 * BODY, begin);
    }
    guest.expect_refusals(&[]);
}

#[test]
fn all_connections_under_a_rule_share_its_rate() {
    const COUNT: usize = 4;
    let guest = guest();
    let proxy = PROXY.parse().unwrap();
    let begin = Instant::now();
    guest.within(|| {
        std::thread::scope(|scope| {
            // Each runs at full speed by itself; the namespace is the thread's.
            for _ in 0..COUNT {
                scope.spawn(|| exchange(proxy, CONNECT, "/"));
            }
        });
    });
    assert_paced("all", COUNT * 2 * BODY, begin);
}
