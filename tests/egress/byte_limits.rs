//! `max_bytes` of a rule, over real connections on every path.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Echo, Guest};

const PROXY: &str = "172.31.0.1:3128";

/// What a test allows, beside the bodies, for heads and what is in transit.
const SLACK: usize = 5_000;

/// A server that counts all received bytes and answers each 15,000 with a response.
fn counter(body: usize) -> (Echo, Arc<AtomicUsize>) {
    let received: Arc<AtomicUsize> = Arc::default();
    let counted = Arc::clone(&received);
    let server = Echo::new(move |mut stream| {
        let mut chunk = [0; 4096];
        let mut missing = 15_000;
        while let Ok(count @ 1..) = stream.read(&mut chunk) {
            counted.fetch_add(count, Ordering::Relaxed);
            if count < missing {
                missing -= count;
                continue;
            }
            missing = 15_000;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\n\r\n");
            _ = stream.write_all(&[head.as_bytes(), &vec![b'x'; body]].concat());
        }
    });
    (server, received)
}

fn guest(mode: &str, server: SocketAddr, most: usize) -> Guest {
    Guest::new(&format!(
        "mode = {mode:?}\ndeny = [{{ host = \"evil.test\" }}]\n\
         allow = [{{ host = \"bulk.example\", ports = [80, 8080], max_bytes = {most} }}]\n\
         resolve = {{ \"bulk.example\" = \"{server}\" }}"
    ))
}

/// Sends requests with bodies on one connection until it is closed. Returns what it received.
fn send_requests(to: SocketAddr, target: &str, (count, body): (usize, usize)) -> usize {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let head =
        format!("POST {target} HTTP/1.1\r\nHost: bulk.example\r\nContent-Length: {body}\r\n\r\n");
    let request = [head.as_bytes(), &vec![b'x'; body]].concat();
    for _ in 0..count {
        if stream.write_all(&request).is_err() {
            break;
        }
    }
    _ = stream.shutdown(Shutdown::Write);
    let (mut received, mut chunk) = (0, [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut chunk) {
        received += count;
    }
    received
}

#[test]
fn a_limit_holds_where_deny_rules_apply_to_each_request() {
    let (server, received) = counter(0);
    let guest = guest("open", server.address, 1_000);
    let address = guest.lookup("bulk.example");
    for port in [80, 8080] {
        guest.within(|| send_requests(SocketAddr::new(address, port), "/", (1, 200_000)));
    }
    assert!(received.load(Ordering::Relaxed) <= 2 * 1_000 + SLACK);
    guest.wait_for("the reason", |guest| {
        guest
            .events()
            .iter()
            .any(|event| {
                event["detail"]
                    .as_str()
                    .is_some_and(|text| text.contains("exceeded the 1000 bytes"))
            })
            .then_some(())
    });
}

#[test]
fn requests_on_one_connection_share_its_limit() {
    for (what, to, target) in
        [("port 80", None, "/"), ("the proxy", Some(PROXY), "http://bulk.example/")]
    {
        let (server, received) = counter(0);
        let guest = guest("enforce", server.address, 20_000);
        let to = to.map_or_else(
            || SocketAddr::new(guest.lookup("bulk.example"), 80),
            |to| to.parse().unwrap(),
        );
        guest.within(|| send_requests(to, target, (8, 15_000)));
        let received = received.load(Ordering::Relaxed);
        assert!((1_000..=20_000 + SLACK).contains(&received), "{what}: {received}");
    }
}

#[test]
fn responses_count_as_well() {
    let (server, _) = counter(15_000);
    let guest = guest("enforce", server.address, 60_000);
    let received =
        guest.within(|| send_requests(PROXY.parse().unwrap(), "http://bulk.example/", (8, 15_000)));
    assert!((10_000..=60_000 + SLACK).contains(&received), "{received}");
}
