//! What the gate holds for connections that stand still: bytes that a guest was rid of and that its
//! destination never took.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::support::{Echo, Guest};

/// Whoever takes nothing at all, for as long as the test lasts.
fn never_read(stream: TcpStream) {
    _ = SockRef::from(&stream).set_recv_buffer_size(4096);
    std::thread::sleep(Duration::from_secs(60));
    drop(stream);
}

/// Writes to all until none has taken anything for a while. Returns the bytes that were taken.
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

/// A connection on which little is left with the guest itself.
fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    SockRef::from(&stream).set_send_buffer_size(4096).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

/// What so many connections hold that stand still: uploads through a tunnel, and bodies of requests.
#[allow(clippy::print_stderr, reason = "a figure, for whoever asks for the output")]
fn stand_still(connections: usize, most: usize) {
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
        eprintln!("{connections} {what} that stand still hold {} KiB", taken >> 10);
        assert!(taken <= most, "{what}: {taken} bytes");
        assert_another_is_served(&guest);
        drop(streams);
    }
}

/// A guest that fills its buffers keeps no other connection out.
fn assert_another_is_served(guest: &Guest) {
    let mut stream = guest.within(|| connect("172.31.0.1:3128".parse().unwrap()));
    stream.write_all(b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

#[test]
fn what_stands_still_has_a_bound() {
    // More than are left to the kernel's own measure. Each may hold a MiB on average: both sockets'
    // buffers, what the kernel takes for itself, and a pipe.
    stand_still(50, 50 << 20);
}

#[test]
fn nearly_all_connections_that_there_may_be_stand_still_within_a_bound() {
    stand_still(1000, 256 << 20);
}
