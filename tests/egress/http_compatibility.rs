//! HTTP as real servers and clients use it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mayfly_egress::GateLimits;

use crate::support::{Echo, FakeResolver, Guest, Options, WebServer};

const PROXY: &str = "http://172.31.0.1:3128";

fn allow(address: std::net::SocketAddr) -> String {
    format!(
        "allow = [{{ host = \"web.example\" }}]\nresolve = {{ \"web.example\" = \"{address}\" }}"
    )
}

/// Reads a head. Returns `None` at the end of the connection.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0; 1]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Returns a server that answers each request with these bytes.
fn responding(answer: &'static [u8]) -> Echo {
    Echo::new(
        move |mut stream| {
            while read_head(&mut stream).is_some() && stream.write_all(answer).is_ok() {}
        },
    )
}

#[test]
fn responses_that_clients_accept_are_forwarded() {
    let many = "X-Many: y\r\n".repeat(300);
    let many = format!("HTTP/1.1 200 OK\r\n{many}Content-Length: 2\r\n\r\nok");
    let rows: [(&str, &'static [u8]); 5] = [
        ("folded", b"HTTP/1.1 200 OK\r\nX-Long: a\r\n  b\r\nContent-Length: 2\r\n\r\nok"),
        ("space before the colon", b"HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 2\r\n\r\nok"),
        ("no reason", b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"),
        ("a field without a name", b"HTTP/1.1 200 OK\r\n: a\r\nContent-Length: 2\r\n\r\nok"),
        ("many fields", many.leak().as_bytes()),
    ];
    for (what, answer) in rows {
        let server = responding(answer);
        let guest = Guest::new(&allow(server.address));
        for url in [&["http://web.example/"][..], &["-x", PROXY, "http://web.example/"]] {
            assert_eq!(guest.curl(url).as_deref(), Ok("ok 200"), "{what}");
        }
    }
}

#[test]
fn the_case_of_field_names_is_preserved_in_both_directions() {
    let heads: Arc<Mutex<Vec<String>>> = Arc::default();
    let stored = Arc::clone(&heads);
    let server = Echo::new(move |mut stream| {
        while let Some(head) = read_head(&mut stream) {
            stored.lock().unwrap().push(head);
            let answer =
                b"HTTP/1.1 302 Found\r\nLOCATION: /x\r\nSet-CooKie: a\r\nContent-Length: 0\r\n\r\n";
            if stream.write_all(answer).is_err() {
                break;
            }
        }
    });
    let guest = Guest::new(&allow(server.address));
    let answer = guest.curl(&["-i", "-H", "X-MiXed: 1", "http://web.example/"]).unwrap();
    assert!(answer.contains("\nLOCATION: /x") && answer.contains("\nSet-CooKie: a"), "{answer}");
    let heads = heads.lock().unwrap();
    assert!(heads[0].contains("\r\nX-MiXed: 1\r\n"), "{heads:?}");
}

#[test]
fn utf_8_paths_are_accepted_and_refusals_have_a_cause() {
    let server = WebServer::new("hello");
    let guest = Guest::new(&allow(server.address));
    let ask = |target: &[u8]| {
        let address = guest.lookup("web.example");
        let request =
            [&b"GET "[..], target, b" HTTP/1.1\r\nHost: web.example\r\nConnection: close\r\n\r\n"];
        guest.within(|| {
            let mut stream = TcpStream::connect((address, 80)).unwrap();
            stream.write_all(&request.concat()).unwrap();
            let mut answer = Vec::new();
            _ = stream.read_to_end(&mut answer);
            String::from_utf8_lossy(&answer).into_owned()
        })
    };
    for target in ["/caf\u{e9}", "/\u{65e5}\u{672c}?q=\u{e9}", "/a|b", "/{x}[1]^\"'\\"] {
        let answer = ask(target.as_bytes());
        assert!(answer.contains(" 200 OK") && answer.ends_with("hello"), "{target}: {answer}");
        let last = server.requests().pop().unwrap();
        assert!(last.starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{last}");
    }
    for target in [&b"/\xff"[..], b"/a b", b"/<x>", b"/\x01", b"/\t"] {
        let answer = ask(target);
        assert!(answer.contains(" 400 ") && answer.contains("mayfly: "), "{target:?}: {answer}");
        assert!(answer.to_lowercase().contains("\nx-mayfly-cause: "), "{target:?}: {answer}");
    }
}

/// Returns a server that closes each connection after its first response, without announcing it:
/// with the next request in transit if `late`.
fn closing_server(late: bool) -> (Echo, Arc<AtomicUsize>) {
    let served: Arc<AtomicUsize> = Arc::default();
    let count = Arc::clone(&served);
    let server = Echo::new(move |mut stream| {
        if read_head(&mut stream).is_some() {
            count.fetch_add(1, Ordering::Relaxed);
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if late {
                _ = stream.read(&mut [0; 1]);
            }
        }
    });
    (server, served)
}

#[test]
fn a_request_on_a_connection_closed_by_its_server_is_sent_again() {
    for late in [false, true] {
        let (server, served) = closing_server(late);
        let guest = Guest::new(&allow(server.address));
        let urls =
            ["-x", PROXY, "http://web.example/1", "http://web.example/2", "http://web.example/3"];
        assert_eq!(guest.curl(&urls).unwrap(), "ok 200ok 200ok 200", "{late}");
        assert_eq!(served.load(Ordering::Relaxed), 3);
    }
}

#[test]
fn a_request_that_is_not_idempotent_is_not_sent_again() {
    let (server, _) = closing_server(true);
    let guest = Guest::new(&allow(server.address));
    let posts = ["-x", PROXY, "-X", "POST", "http://web.example/1", "http://web.example/2"];
    assert_eq!(&guest.curl(&posts).unwrap()[..6], "ok 200");
    guest.wait_for_access("/502 ");
}

#[test]
fn an_upload_is_counted_if_the_server_responds_early() {
    const BODY: usize = 3 << 20;
    let (takes, taken) = std::sync::mpsc::channel();
    let (takes, taken) = (Mutex::new(takes), Mutex::new(taken));
    let server = Echo::new(move |mut stream| {
        _ = read_head(&mut stream);
        _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let mut remaining = BODY;
        let mut chunk = vec![0; 64 << 10];
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            remaining = remaining.saturating_sub(count);
            if remaining == 0 {
                break;
            }
        }
        takes.lock().unwrap().send(()).unwrap();
    });
    let guest = Guest::new(&allow(server.address));
    let address = guest.lookup("web.example");
    guest.within(|| {
        let mut stream = TcpStream::connect((address, 80)).unwrap();
        let head =
            format!("POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&vec![b'x'; BODY]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // A client that closes its connection would discard unsent data.
        taken.lock().unwrap().recv_timeout(Duration::from_secs(20)).unwrap();
    });
    let up = guest.wait_for("the bytes of the upload", |guest| {
        let row = guest.report().rows.first()?.up;
        (row >= BODY as u64).then_some(row)
    });
    assert!(up < BODY as u64 + 400, "{up}");
}

#[test]
fn a_slow_upload_is_not_cut_while_bytes_pass() {
    let server = Echo::new(|mut stream| {
        let head = read_head(&mut stream);
        let mut body = [0; 20];
        if head.is_some() && stream.read_exact(&mut body).is_ok() {
            _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let limits = GateLimits { idle: Duration::from_secs(3), ..GateLimits::default() };
    let options = Options { limits, names: FakeResolver::default(), ..Options::default() };
    let guest = Guest::with(&allow(server.address), options);
    let address = guest.lookup("web.example");
    let answer = guest.within(|| {
        let mut stream = TcpStream::connect((address, 80)).unwrap();
        stream
            .write_all(b"POST / HTTP/1.1\r\nHost: web.example\r\nContent-Length: 20\r\n\r\n")
            .unwrap();
        // Twice the idle timeout in total.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(300));
            stream.write_all(b"x").unwrap();
        }
        let mut answer = vec![0; 15];
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.read_exact(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    });
    assert_eq!(answer, "HTTP/1.1 200 OK");
}
