//! Memory of stalled connections: bytes that a guest has sent and that its destination never reads.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::{Echo, Guest};

/// A server that never reads, for as long as the test lasts.
fn never_read(stream: TcpStream) {
    _ = SockRef::from(&stream).set_recv_buffer_size(4096);
    std::thread::sleep(Duration::from_secs(60));
    drop(stream);
}

/// Writes to all streams until none accepts data for a while. Returns the number of accepted bytes.
fn fill(streams: &mut [TcpStream]) -> usize {
    let chunk = [b'x'; 16 << 10];
    let (mut taken, mut last) = (0, Instant::now());
    while last.elapsed() < Duration::from_secs(2) {
        let before = taken;
        for stream in streams.iter_mut() {
            match stream.write(&chunk) {
                Ok(count) => taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
        }
        if taken > before {
            last = Instant::now();
        } else {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    taken
}

/// Connects with a small send buffer on the guest's side.
fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// Measures the memory of stalled connections: uploads through a tunnel, and request bodies.
#[allow(clippy::print_stderr, reason = "a figure for the test output")]
fn check_stalled(connections: usize, most: usize) {
    let post = b"POST / HTTP/1.1\r\nHost: bulk.example\r\nContent-Length: 1000000000\r\n\r\n";
    for (what, port, prelude) in [("uploads", 7777, &b""[..]), ("POSTs", 80, &post[..])] {
        let sink = Echo::new(never_read);
        let guest = Guest::new(&format!(
            "allow = [{{ host = \"bulk.example\", ports = [80, 7777], tls = \"any\" }}]\n\
             resolve = {{ \"bulk.example\" = \"{}\" }}",
            sink.address
        ));
        let address = guest.lookup("bulk.example");
        let (taken, streams) = guest.within(|| {
            let mut streams: Vec<_> = (0..connections)
                .map(|_| {
                    let mut stream = connect(SocketAddr::new(address, port));
                    stream.write_all(prelude).unwrap();
                    stream.set_nonblocking(true).unwrap();
                    stream
                })
                .collect();
            (fill(&mut streams), streams)
        });
        eprintln!("{connections} stalled {what} hold {} KiB", taken >> 10);
        assert!(taken <= most, "{what}: {taken} bytes");
        assert_another_is_served(&guest);
        drop(streams);
    }
}

/// A guest that fills its buffers does not block other connections.
fn assert_another_is_served(guest: &Guest) {
    let mut stream = guest.within(|| connect("172.31.0.1:3128".parse().unwrap()));
    stream.write_all(b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[test]
fn stalled_connections_use_bounded_memory() {
    // More connections than keep the kernel's automatic buffer sizes. Each may hold 1 MiB on
    // average: both sockets' buffers, the kernel's overhead, and a pipe.
    check_stalled(50, 50 << 20);
}

#[test]
fn nearly_the_maximum_of_stalled_connections_use_bounded_memory() {
    check_stalled(1000, 256 << 20);
}
