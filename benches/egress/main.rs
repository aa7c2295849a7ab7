//! The gate side by side with squid: same machine, same origin, same client in the same place, run
//! by turns, each round with fresh processes of both. And what the transparent path and both
//! forward proxies add to a direct connection.
//!
//! Run by `scripts/bench egress`, as root. Only the ratios mean anything on another machine.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark talks, and may fail; its figures are for a person"
)]
#![allow(missing_docs, unreachable_pub, reason = "a program")]

mod gate;
mod load;
#[allow(dead_code, unused_imports, reason = "shared with the tests, which use all of it")]
#[path = "../../tests/egress/support/mod.rs"]
mod support;

use std::fs::File;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use load::{NAME, ORIGIN_PORT, Origin, Way};
use mayfly::egress::{DNS_PORT, PROXY_PORT};
use nix::sched::{CloneFlags, setns};
use support::{GATEWAY, Squid};

const ROUNDS: usize = 7;
const CONNECTIONS: usize = 64;
const STREAMS: usize = 4;
/// How long each thing is measured in each round.
const TIME: Duration = Duration::from_secs(3);
/// Connections in each round, one after the other, of each kind.
const PROBES: usize = 300;

const SQUID_PORT: u16 = 3130;

/// The kinds of connection whose latency is compared.
const LATENCIES: [&str; 4] =
    ["direct", "Mayfly, transparent", "Mayfly, forward proxy", "squid, forward proxy"];

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if let [_, argument, namespace, world, record] = &arguments[..]
        && argument == gate::ARGUMENT
    {
        return gate::run([namespace, world, record].map(Path::new));
    }
    let hello = load::hello();
    let mut table = Table::default();
    for _ in 0..ROUNDS {
        round(&hello, &mut table);
    }
    table.print();
}

/// Everything that was measured.
#[derive(Default)]
struct Table {
    squid: Proxy,
    mayfly: Proxy,
    latencies: [Latencies; 4],
}

/// A value for each round.
#[derive(Default)]
struct Proxy {
    exchanges: Vec<f64>,
    resident_exchanging: Vec<f64>,
    gigabits: Vec<f64>,
    processor: Vec<f64>,
    resident_streaming: Vec<f64>,
}

/// The world, with the origin and squid in it, is joined to one client's namespace; the gate's
/// namespace, from which nothing leads into the world but the gate, to another's.
fn round(hello: &[u8], table: &mut Table) {
    let [world, near_squid, gate, near_gate] = [(); 4].map(|()| support::new_namespace());
    support::join(&world, &near_squid);
    support::join(&gate, &near_gate);
    for namespace in [&world, &near_squid, &gate, &near_gate] {
        support::inside(namespace, set_up);
    }
    let _origin = support::inside(&world, || Origin::new(CONNECTIONS + STREAMS));
    let squid = support::inside(&world, squid);
    let mayfly = gate::Process::start(&gate, &world);
    let to_squid = Way::Proxy((GATEWAY, SQUID_PORT).into(), ORIGIN_PORT);
    let to_mayfly = Way::Proxy((GATEWAY, PROXY_PORT).into(), 443);
    let direct = Way::To((GATEWAY, ORIGIN_PORT).into());
    let transparent = Way::To((support::inside(&near_gate, look_up), 443).into());
    let ways = [
        (&near_squid, direct),
        (&near_gate, transparent),
        (&near_gate, to_mayfly),
        (&near_squid, to_squid),
    ];
    probe(ways, hello, &mut table.latencies);
    for (proxy, namespace, way, process) in [
        (&mut table.squid, &near_squid, to_squid, squid.child.id()),
        (&mut table.mayfly, &near_gate, to_mayfly, mayfly.pid()),
    ] {
        let measure = |load: fn(Way, &[u8]) -> u64| {
            Load::measure(process, || support::inside(namespace, || load(way, hello)))
        };
        let load = measure(|way, hello| load::streams(way, hello, STREAMS, TIME));
        let gigabytes = load.amount / 1e9;
        proxy.gigabits.push(gigabytes * 8.0 / load.seconds);
        proxy.processor.push(load.processor / gigabytes);
        proxy.resident_streaming.push(load.resident);
        let load = measure(|way, hello| load::exchanges(way, hello, CONNECTIONS, TIME));
        proxy.exchanges.push(load.amount / load.seconds);
        proxy.resident_exchanging.push(load.resident);
    }
}

/// What each namespace needs. Set alike whatever the machine's own settings are.
fn set_up() {
    for (setting, value) in [
        // Thousands of connections a second to one address: ports must come back soon.
        ("tcp_tw_reuse", "1"),
        ("ip_local_port_range", "10240 65535"),
        // The one that every kernel allows; one that paces its packets would be what is measured.
        ("tcp_congestion_control", "reno"),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value).unwrap();
    }
}

/// Squid with a policy by name and its access log on, as Mayfly has them.
fn squid() -> Squid {
    Squid::at(
        &format!("{GATEWAY}:{SQUID_PORT}"),
        &format!("127.0.0.1 {NAME}\n"),
        &format!(
            "acl CONNECT method CONNECT\nacl named dstdomain {NAME}\n\
             http_access allow CONNECT named\nclient_db off\nvia off\nmax_filedescriptors 4096"
        ),
    )
}

/// The address that stands for the origin's name in the gate's namespace.
fn look_up() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend(b"\0\0\x01\0\x01");
    socket.send_to(&query, (GATEWAY, DNS_PORT)).unwrap();
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).unwrap();
    // The address ends the answer.
    let address: [u8; 4] = answer[length - 4..length].try_into().unwrap();
    address.into()
}

/// Opens connections by each way, by turns; notes how long each takes to its first byte.
fn probe(ways: [(&File, Way); 4], hello: &[u8], latencies: &mut [Latencies; 4]) {
    let enter = |namespace: &File| setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PROBES {
                for ((namespace, way), latencies) in ways.iter().zip(&mut *latencies) {
                    enter(namespace);
                    let start = Instant::now();
                    way.open(hello);
                    latencies.push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
        });
    });
}

/// Microseconds.
type Latencies = Vec<f64>;

/// What a process had to do under a load.
struct Load {
    /// What the load counted.
    amount: f64,
    seconds: f64,
    /// Seconds of processor time, both of the process itself and of the kernel for it.
    processor: f64,
    /// Resident memory in KiB, halfway through.
    resident: f64,
}

impl Load {
    fn measure(process: u32, load: impl FnOnce() -> u64 + Send) -> Self {
        let (start, before) = (Instant::now(), processor_time(process));
        let (amount, resident) = std::thread::scope(|scope| {
            let load = scope.spawn(load);
            std::thread::sleep(TIME / 2);
            let resident = resident(process);
            (load.join().unwrap(), resident)
        });
        let (seconds, processor) =
            (start.elapsed().as_secs_f64(), processor_time(process) - before);
        Self { amount: amount as f64, seconds, processor, resident }
    }
}

fn processor_time(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    // utime and stime, in hundredths of a second (proc_pid_stat(5)).
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}

fn resident(process: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

impl Table {
    fn print(&self) {
        let (squid, mayfly) = (&self.squid, &self.mayfly);
        println!("{ROUNDS} rounds by turns; the median, and what the rounds lay between\n");
        println!("{:<44} {:>28} {:>28} {:>7}", "", "squid", "Mayfly", "ratio");
        let rows: [(_, &Vec<f64>, &Vec<f64>, _); 5] = [
            ("CONNECT round trips/s, 64 at once", &squid.exchanges, &mayfly.exchanges, 0),
            ("throughput of 4 streams, Gbit/s", &squid.gigabits, &mayfly.gigabits, 1),
            ("processor seconds per GB", &squid.processor, &mayfly.processor, 3),
            (
                "resident KiB, 64 connections at once",
                &squid.resident_exchanging,
                &mayfly.resident_exchanging,
                0,
            ),
            ("resident KiB, 4 streams", &squid.resident_streaming, &mayfly.resident_streaming, 0),
        ];
        for (name, squid, mayfly, digits) in rows {
            let text = |values: &[f64]| {
                let part = |percent| percentile(values, percent);
                let (least, most) = (part(0), part(100));
                format!("{:.digits$} ({least:.digits$} to {most:.digits$})", part(50))
            };
            let ratio = percentile(mayfly, 50) / percentile(squid, 50);
            println!("{name:<44} {:>28} {:>28} {ratio:>7.2}", text(squid), text(mayfly));
        }
        println!(
            "\n{:<44} {:>9} {:>9} {:>9} {:>9}",
            "connect to first byte, µs", "median", "p99", "added", "added"
        );
        let direct = &self.latencies[0];
        for (name, values) in LATENCIES.into_iter().zip(&self.latencies) {
            let part = |percent| (percentile(values, percent), percentile(direct, percent));
            let ((median, direct_median), (late, direct_late)) = (part(50), part(99));
            println!(
                "{name:<44} {median:>9.0} {late:>9.0} {:>9.0} {:>9.0}",
                median - direct_median,
                late - direct_late
            );
        }
    }
}

fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) * percent / 100]
}
