//! Side by side with squid: same machine, same origin, same client, run by turns. Not a test of
//! anything: `cargo test --release --test egress bench -- --ignored --nocapture`.

#![expect(clippy::cast_precision_loss, reason = "figures are for a person")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::parent::Squid;
use crate::support::{Echo, GATEWAY, Guest, Options};

const CONNECTIONS: usize = 64;
const ROUND: Duration = Duration::from_secs(4);
const STREAMS: usize = 4;
const STREAM_BYTES: u64 = 256 << 20;
const ROUNDS: usize = 3;

/// What is measured: where it listens, and the port by which it reaches the origin.
struct Proxy {
    name: &'static str,
    address: SocketAddr,
    port: u16,
}

/// A `ClientHello` for `tls.example`, as OpenSSL sends it.
fn hello() -> Vec<u8> {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut client = std::process::Command::new("openssl")
        .args(["s_client", "-servername", "tls.example", "-connect"])
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

/// Answers the hello with two bytes; a following `G` with endless zeros.
fn origin(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    if !matches!(stream.read(&mut buffer), Ok(1..)) || stream.write_all(b"ok").is_err() {
        return;
    }
    if matches!(stream.read(&mut buffer), Ok(1..)) {
        let zeros = vec![0; 1 << 18];
        while stream.write_all(&zeros).is_ok() {}
    }
}

/// Opens a tunnel, sends the hello and hears two bytes.
fn open(proxy: &Proxy, hello: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(proxy.address).unwrap();
    stream.set_nodelay(true).unwrap();
    let target = format!("tls.example:{}", proxy.port);
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
    stream.write_all(hello).unwrap();
    stream.read_exact(&mut [0; 2]).unwrap();
    stream
}

fn round_trips(proxy: &Proxy, hello: &[u8]) -> f64 {
    let count = AtomicU64::new(0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS {
            scope.spawn(|| {
                while start.elapsed() < ROUND {
                    open(proxy, hello);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    count.into_inner() as f64 / start.elapsed().as_secs_f64()
}

fn throughput(proxy: &Proxy, hello: &[u8]) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..STREAMS {
            scope.spawn(|| {
                let mut stream = open(proxy, hello);
                stream.write_all(b"G").unwrap();
                let mut buffer = vec![0; 1 << 18];
                let mut left = STREAM_BYTES;
                while left > 0 {
                    left = left.saturating_sub(stream.read(&mut buffer).unwrap() as u64);
                }
            });
        }
    });
    (STREAM_BYTES * STREAMS as u64 * 8) as f64 / start.elapsed().as_secs_f64() / 1e9
}

/// Resident memory and CPU seconds so far of a process.
fn usage(pid: u32) -> (u64, f64) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    (line.split_whitespace().nth(1).unwrap().parse().unwrap(), ticks as f64 / 100.0)
}

#[test]
#[ignore = "measures; run it by hand on a quiet machine"]
fn round_trips_and_throughput_by_turns() {
    let hello = hello();
    let guest = Guest::with(
        "allow = [{ host = \"tls.example\" }]\nresolve = { \"tls.example\" = \"127.0.0.1:8443\" }",
        Options { upstream_inside: true, ..Options::default() },
    );
    // Thousands of connections a second to one address: ports must come back sooner than usual.
    let many_ports = || {
        std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10240 65535").unwrap();
    };
    guest.within(many_ports);
    let squid = guest.within_outer(|| {
        many_ports();
        Echo::at("127.0.0.1:8443", origin);
        Squid::at(
            "172.31.0.1:3130",
            "127.0.0.1 tls.example\n",
            "acl CONNECT method CONNECT\nhttp_access allow CONNECT\n\
             client_db off\nvia off\nmax_filedescriptors 4096",
        )
    });
    let proxies = [
        Proxy { name: "squid", address: (GATEWAY, 3130).into(), port: 8443 },
        Proxy { name: "mayfly", address: (GATEWAY, 3128).into(), port: 443 },
    ];
    for _ in 0..ROUNDS {
        for proxy in &proxies {
            let rate = guest.within(|| round_trips(proxy, &hello));
            let speed = guest.within(|| throughput(proxy, &hello));
            println!("{}: {rate:.0} CONNECT/s, {speed:.1} Gbit/s", proxy.name);
        }
    }
    let (resident, seconds) = usage(squid.pid());
    println!("squid: {resident} KiB resident, {seconds} s of CPU");
}
