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
    let parts: Vec<_> = parts.iter().map(|part| part.as_bytes()).collect();
    send_bytes(guest, port, &parts);
}

fn send_bytes(guest: &Guest, port: u16, parts: &[&[u8]]) {
    let address = guest.lookup("good.example");
    guest.within(|| {
        let mut stream = TcpStream::connect((address, port)).unwrap();
        for part in parts {
            if stream.write_all(part).is_err() {
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

/// First lines that Python's or Java's server reads as a request.
#[test]
fn no_odd_request_for_a_denied_name_reaches_the_server() {
    let (server, received) = listener();
    let guest = open(server.address);
    let (spaces, method) = ([b' '; 9_000], [b'x'; 9_000]);
    let evil = &b" / HTTP/1.1\r\nHost: evil.test\r\n\r\n"[..];
    let rows: [&[&[u8]]; 12] = [
        &[b"GET\x1c/\x1cHTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"GET\xa0/\xa0HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"GET\x85/\x85HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"\x1cGET", evil],
        &[b"\x85GET", evil],
        &[b"\x80GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"\0GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"\xef\xbb\xbfGET / HTTP/1.1\r\nHost: evil.test\r\n\r\n"],
        &[b"0000git-x", evil],
        &[b"GET", &spaces, evil],
        &[&method[..1_400], &method[1_400..], evil],
        &[b"x\n / y\r\nHost: evil.test\r\n\r\n"],
    ];
    for row in rows {
        let before = guest.events().len();
        send_bytes(&guest, 8080, row);
        let what = String::from_utf8_lossy(row[0]).into_owned();
        guest.wait_for_refusal(before, "good.example:8080 ", &what);
    }
    let received = String::from_utf8_lossy(&received.lock().unwrap()).into_owned();
    assert!(!received.contains("evil"), "{received}");
}

#[test]
fn a_server_that_answers_half_a_line_gets_the_rest_unread() {
    let (server, received) = listener();
    let guest = open(server.address);
    let address = guest.lookup("good.example");
    let rest = b"\x16\x03\x01 /x http/1.1 rest";
    guest.within(|| {
        let mut stream = TcpStream::connect((address, 5432)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // PostgreSQL: whether the server supports TLS.
        stream.write_all(b"\0\0\0\x08\x04\xd2\x16\x2f").unwrap();
        assert!(stream.read(&mut [0; 100]).unwrap() > 0);
        stream.write_all(rest).unwrap();
    });
    guest.wait_for("the rest", |_| received.lock().unwrap().ends_with(rest).then_some(()));
    guest.expect_refusals(&[]);
}

/// Some servers skip an alert and read the hello behind it.
#[test]
fn an_alert_before_a_hello_is_refused() {
    let alert = &[21, 3, 1, 0, 2, 1, 90][..];
    let (server, received) = listener();
    let to = format!("resolve = {{ \"good.example\" = \"{}\" }}", server.address);
    for (policy, port) in [
        ("mode = \"open\"\ndeny = [{ host = \"evil.test\" }]", 443),
        ("allow = [{ host = \"good.example\", ports = [443, 8443] }]", 443),
        ("allow = [{ host = \"good.example\", ports = [443, 8443] }]", 8443),
    ] {
        for parts in [&[alert][..], &[&alert[..1], &alert[1..]]] {
            let guest = Guest::new(&format!("{policy}\n{to}"));
            send_bytes(&guest, port, parts);
            guest.expect_refusals(&[&format!("good.example:{port} client-hello")]);
        }
    }
    assert!(received.lock().unwrap().is_empty());
}
