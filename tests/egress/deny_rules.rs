//! `deny` in `open`: an allowed connection must not carry a request for a denied name.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Echo, Guest, TlsServer};

/// A server that stores all received bytes and responds to the first bytes of each connection.
fn listener() -> (Echo, Arc<Mutex<Vec<u8>>>) {
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let stored = Arc::clone(&received);
    let server = Echo::new(move |mut stream| {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            stored.lock().unwrap().extend_from_slice(&chunk[..count]);
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
        }
    });
    (server, received)
}

fn open(address: std::net::SocketAddr) -> Guest {
    Guest::new(&format!(
        "mode = \"open\"\ndeny = [{{ host = \"evil.test\" }}]\n\
         resolve = {{ \"good.example\" = \"{address}\" }}"
    ))
}

fn send(guest: &Guest, port: u16, parts: &[&str]) {
    let address = guest.lookup("good.example");
    guest.within(|| {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        for part in parts {
            if stream.write_all(part.as_bytes()).is_err() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        _ = stream.shutdown(Shutdown::Write);
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        _ = stream.read_to_end(&mut Vec::new());
    });
}

#[test]
fn no_request_for_a_denied_name_reaches_the_server() {
    let (server, received) = listener();
    let guest = open(server.address);
    let good = "GET / HTTP/1.1\r\nHost: good.example\r\n\r\n";
    let evil = "GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n";
    let rows: [&[&str]; 9] = [
        &[evil],
        &[good, evil],
        &["\r\n", evil],
        &["g", "et / HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &["GET / HTTP/1.1\nHost: evil.test\n\n"],
        &["GET http://evil.test/ HTTP/1.1\r\nHost: good.example\r\n\r\n"],
        &["GET / HTTP/1.1\r\nHost : evil.test\r\n\r\n"],
        &["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "evil.test"],
        &["CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n"],
    ];
    // Port 80 and one without an expected protocol.
    for port in [80, 8080] {
        for row in rows {
            let before = guest.events().len();
            send(&guest, port, row);
            guest.wait_for_refusal(before, &format!("good.example:{port} "), &format!("{row:?}"));
        }
    }
    let received = String::from_utf8_lossy(&received.lock().unwrap()).into_owned();
    assert!(!received.to_lowercase().contains("evil") && !received.contains("PRI"), "{received}");
    // The allowed request arrived, once for each port.
    assert_eq!(received.matches("Host: good.example").count(), 2, "{received}");
}

#[test]
fn other_protocols_and_requests_for_other_names_pass() {
    let (server, received) = listener();
    let guest = open(server.address);
    let put = "PUT /caf\u{e9} HTTP/1.1\r\nHost: other.example\r\nContent-Length: 3\r\n\r\nabc";
    let rows: [&[&str]; 4] = [
        &["SSH-2.0-test\r\n"],
        &["*1\r\n", "$4\r\nPING\r\n"],
        &["EHLO x\r\n", "QUIT\r\n"],
        &[put, put],
    ];
    for row in rows {
        send(&guest, 2222, row);
        let whole = row.concat();
        guest.wait_for(&whole, |_| {
            String::from_utf8_lossy(&received.lock().unwrap()).contains(&whole).then_some(())
        });
    }
}

#[test]
fn no_hello_for_a_denied_name_reaches_the_server_and_others_do() {
    let origin = TlsServer::with(&["good.example"], &["-groups", "P-384"]);
    let guest = open(origin.address);
    let certificate = origin.certificate();
    let to = format!("{}:443", guest.lookup("good.example"));
    let evil = ["--connect-to", &format!("evil.test:443:{to}"), "-k", "https://evil.test/"];
    assert!(guest.curl(&evil).is_err());
    let good = ["--curves", "X25519:P-384", "--cacert", &certificate];
    let good = [&good[..], &["https://good.example/index.html"]].concat();
    assert_eq!(guest.curl(&good).unwrap(), "over TLS\n 200");
    guest.wait_for_refusal(0, "good.example:443 denied", "the denied server name");
}
