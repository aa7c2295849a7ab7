//! Limits: a guest that floods or stalls the gate.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use mayfly_egress::GateLimits;

use crate::support::{Guest, Options, WebServer};

fn connect(to: &str) -> TcpStream {
    let stream = TcpStream::connect(to.parse::<SocketAddr>().unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream
}

/// Reads until the other side closes. Returns the text, or the error.
fn read_all(mut stream: TcpStream) -> std::io::Result<String> {
    let mut received = String::new();
    stream.read_to_string(&mut received)?;
    Ok(received)
}

fn limited(policy: &str, limits: GateLimits) -> Guest {
    Guest::with(policy, Options { limits, ..Options::default() })
}

#[test]
fn connections_beyond_the_limit_are_reset_and_others_continue() {
    let origin = WebServer::new("hello");
    let guest = limited(
        &format!(
            "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
            origin.address
        ),
        GateLimits { connections: 3, ..GateLimits::default() },
    );
    guest.within(|| {
        let held: Vec<_> = (0..3).map(|_| connect("172.31.0.1:3128")).collect();
        let error = read_all(connect("172.31.0.1:3128")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let mut first = held.into_iter().next().unwrap();
        let request = "GET http://web.example/ HTTP/1.1\r\nHost: web.example\r\n\
                       Connection: close\r\n\r\n";
        first.write_all(request.as_bytes()).unwrap();
        assert!(read_all(first).unwrap().ends_with("hello"));
    });
    guest.expect_refusals(&["172.31.0.1:3128 too-many-connections"]);
}

#[test]
fn a_client_that_sends_too_little_in_time_is_disconnected() {
    let opening = Duration::from_millis(200);
    let origin = WebServer::new("hello");
    let guest = limited(
        &format!(
            "allow = [{{ host = \"*\" }}]\nresolve = {{ \"web.example\" = \"{}\" }}",
            origin.address
        ),
        GateLimits { opening, ..GateLimits::default() },
    );
    let resolved = guest.run(&["getent", "ahostsv4", "web.example"]);
    let address = String::from_utf8_lossy(&resolved.stdout);
    let address = address.split_whitespace().next().unwrap();
    guest.within(|| {
        for (to, beginning) in [
            ("172.31.0.1:3128".to_owned(), &b"GET http://a"[..]),
            ("172.31.0.1:3128".to_owned(), b"CONNECT a:443 HTTP/1.1\r\n"),
            ("172.31.0.1:53".to_owned(), b"\0\x20abc"),
            (format!("{address}:443"), b"\x16\x03\x01\x02\0\x01"),
            (format!("{address}:80"), b"POST / HTTP/1.1\r\n"),
        ] {
            let mut stream = connect(&to);
            stream.write_all(beginning).unwrap();
            // Closed or reset: the connection has ended.
            match read_all(stream) {
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{to}"),
            }
        }
    });
    guest.expect_refusals(&[
        "172.31.0.1:3128 client-deadline",
        ":0 client-deadline",
        "web.example:443 client-deadline",
        "web.example:80 client-deadline",
    ]);
}

#[test]
fn an_idle_connection_is_closed() {
    let origin = WebServer::new("hello");
    let guest = limited(
        &format!(
            "allow = [{{ host = \"web.example\", ports = [99] }}]\n\
             resolve = {{ \"web.example\" = \"{}\" }}",
            origin.address
        ),
        GateLimits { idle: Duration::from_millis(200), ..GateLimits::default() },
    );
    let script = "import socket; s = socket.create_connection(('web.example', 99));\n\
                  s.settimeout(10)\n\
                  try: s.recv(1)\n\
                  except ConnectionResetError: print('reset')";
    let output = guest.run(&["python3", "-c", script]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "reset\n", "{output:?}");
}

#[test]
fn five_hundred_tunnels_run_at_once() {
    let origin = WebServer::new("hello");
    let guest = Guest::new(&format!(
        "allow = [{{ host = \"web.example\", ports = [99] }}]\n\
         resolve = {{ \"web.example\" = \"{}\" }}",
        origin.address
    ));
    guest.within(|| {
        let open = |_| {
            let mut stream = connect("172.31.0.1:3128");
            stream
                .write_all(b"CONNECT web.example:99 HTTP/1.1\r\nHost: web.example\r\n\r\n")
                .unwrap();
            stream
        };
        let mut tunnels: Vec<_> = (0..500).map(open).collect();
        for stream in &mut tunnels {
            let mut answer = [0; 39];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer.starts_with(b"HTTP/1.1 200 "));
        }
        for stream in &mut tunnels {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: web.example\r\n\r\n").unwrap();
        }
        for stream in &mut tunnels {
            let mut answer = [0; 58];
            stream.read_exact(&mut answer).unwrap();
            assert!(answer.ends_with(b"hello"), "{}", String::from_utf8_lossy(&answer));
        }
    });
}

#[test]
fn the_stub_survives_a_flood_of_lookups() {
    let guest = Guest::new("allow = [{ host = \"*.example\" }]");
    guest.within(|| {
        let socket = UdpSocket::bind("172.31.0.2:0").unwrap();
        for number in 0..20_000_u32 {
            let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 8];
            query.extend(format!("{number:08}").bytes());
            query.extend(b"\x07example\0\0\x01\0\x01");
            // The kernel may drop it: the guest's loss.
            _ = socket.send_to(&query, "172.31.0.1:53");
        }
    });
    let output = guest.run(&["getent", "ahostsv4", "last.example"]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("198.1"), "{output:?}");
}

#[test]
fn dns_is_answered_over_tcp_too() {
    let guest = Guest::new("allow = [{ host = \"a.example\" }]");
    let script = "import socket, struct\n\
        def ask(name):\n\
        \x20   q = struct.pack('>6H', 7, 0x100, 1, 0, 0, 0)\n\
        \x20   q += b''.join(bytes([len(l)]) + l for l in name.split(b'.')) + b'\\0\\0\\x01\\0\\x01'\n\
        \x20   s.sendall(struct.pack('>H', len(q)) + q)\n\
        \x20   n = struct.unpack('>H', s.recv(2))[0]\n\
        \x20   r = s.recv(n)\n\
        \x20   print(r[3] & 15, r[-4:-2].hex())\n\
        s = socket.create_connection(('172.31.0.1', 53))\n\
        ask(b'a.example')\n\
        ask(b'b.example')\n";
    let output = guest.run(&["python3", "-c", script]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("0 c612\n3 "), "{output:?}");
}
