//! Compares the gate with squid: on the same machine, with the same origin and client, in turns,
//! with new processes of both in each round. Also measures the latency that the transparent path
//! and both forward proxies add to a direct connection.
//!
//! Run by `scripts/bench egress`, as root. Only the ratios mean anything on another machine.

#![allow(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_precision_loss,
    reason = "a benchmark prints rounded results and may panic"
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

use load::{NAME, ORIGIN_PORT, Origin, Route};
use mayfly_egress::{DNS_PORT, PROXY_PORT};
use nix::sched::{CloneFlags, setns};
use support::{GATEWAY, Squid};

const ROUNDS: usize = 7;
const CONNECTIONS: usize = 64;
const STREAMS: usize = 4;
/// The duration of each measurement in each round.
const TIME: Duration = Duration::from_secs(3);
/// Sequential connections of each kind in each round.
const PROBES: usize = 300;

const SQUID_PORT: u16 = 3130;

/// The kinds of connections whose latency is compared.
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

/// All results.
#[derive(Default)]
struct Table {
    squid: ProxyResults,
    mayfly: ProxyResults,
    latencies: [Latencies; 4],
}

/// The results of one proxy, a value for each round.
#[derive(Default)]
struct ProxyResults {
    exchanges: Vec<f64>,
    resident_exchanging: Vec<f64>,
    gigabits: Vec<f64>,
    processor: Vec<f64>,
    resident_streaming: Vec<f64>,
}

/// Runs one round. The namespace `world`, with the origin and squid, is connected to one client's
/// namespace. The gate's namespace, whose only way to the world is the gate, is connected to
/// another.
fn round(hello: &[u8], table: &mut Table) {
    let [world, near_squid, gate, near_gate] = [(); 4].map(|()| support::new_namespace());
    support::join(&world, &near_squid);
    support::join(&gate, &near_gate);
    for namespace in [&world, &near_squid, &gate, &near_gate] {
        support::run_in_namespace(namespace, set_up);
    }
    let _origin = support::run_in_namespace(&world, || Origin::new(CONNECTIONS + STREAMS));
    let squid = support::run_in_namespace(&world, squid);
    let mayfly = gate::GateProcess::start(&gate, &world);
    let to_squid = Route::Proxy((GATEWAY, SQUID_PORT).into(), ORIGIN_PORT);
    let to_mayfly = Route::Proxy((GATEWAY, PROXY_PORT).into(), 443);
    let direct = Route::Direct((GATEWAY, ORIGIN_PORT).into());
    let transparent = Route::Direct((support::run_in_namespace(&near_gate, look_up), 443).into());
    let routes = [
        (&near_squid, direct),
        (&near_gate, transparent),
        (&near_gate, to_mayfly),
        (&near_squid, to_squid),
    ];
    probe(routes, hello, &mut table.latencies);
    for (proxy, namespace, route, process) in [
        (&mut table.squid, &near_squid, to_squid, squid.child.id()),
        (&mut table.mayfly, &near_gate, to_mayfly, mayfly.pid()),
    ] {
        let measure = |load: fn(Route, &[u8]) -> u64| {
            Load::measure(process, || support::run_in_namespace(namespace, || load(route, hello)))
        };
        let load = measure(|route, hello| load::streams(route, hello, STREAMS, TIME));
        let gigabytes = load.amount / 1e9;
        proxy.gigabits.push(gigabytes * 8.0 / load.seconds);
        proxy.processor.push(load.processor / gigabytes);
        proxy.resident_streaming.push(load.resident);
        let load = measure(|route, hello| load::exchanges(route, hello, CONNECTIONS, TIME));
        proxy.exchanges.push(load.amount / load.seconds);
        proxy.resident_exchanging.push(load.resident);
    }
}

/// Applies the same network settings to each namespace, independent of the machine's.
fn set_up() {
    for (setting, value) in [
        // Thousands of connections a second to one address need quick reuse of ports.
        ("tcp_tw_reuse", "1"),
        ("ip_local_port_range", "10240 65535"),
        // Every kernel has it. An algorithm that paces packets would dominate the results.
        ("tcp_congestion_control", "reno"),
    ] {
        std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value).unwrap();
    }
}

/// Starts squid with a policy by name and an access log, like Mayfly.
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

/// Returns the stand-in address of the origin's name in the gate's namespace.
fn look_up() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let mut query = vec![0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in NAME.split('.') {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend(label.bytes());
    }
    query.extend(b"\0\0\x01\0\x01");
    socket.send_to(&query, (GATEWAY, DNS_PORT)).unwrap();
    let mut response = [0; 512];
    let length = socket.recv(&mut response).unwrap();
    // The response ends with the address.
    let address: [u8; 4] = response[length - 4..length].try_into().unwrap();
    address.into()
}

/// Opens connections on each route in turns, and records the time to the first byte.
fn probe(routes: [(&File, Route); 4], hello: &[u8], latencies: &mut [Latencies; 4]) {
    let enter = |namespace: &File| setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..PROBES {
                for ((namespace, route), latencies) in routes.iter().zip(&mut *latencies) {
                    enter(namespace);
                    let start = Instant::now();
                    route.open(hello);
                    latencies.push(start.elapsed().as_secs_f64() * 1e6);
                }
            }
        });
    });
}

/// Latencies in microseconds.
type Latencies = Vec<f64>;

/// The resources that a process used under a load.
struct Load {
    /// The load's own count.
    amount: f64,
    seconds: f64,
    /// Seconds of user and system time.
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
        println!("{ROUNDS} rounds in turns; median (minimum to maximum)\n");
        println!("{:<44} {:>28} {:>28} {:>7}", "", "squid", "Mayfly", "ratio");
        let rows: [(_, &Vec<f64>, &Vec<f64>, _); 5] = [
            ("CONNECT round trips/s, 64 concurrent", &squid.exchanges, &mayfly.exchanges, 0),
            ("throughput of 4 streams, Gbit/s", &squid.gigabits, &mayfly.gigabits, 1),
            ("processor seconds per GB", &squid.processor, &mayfly.processor, 3),
            (
                "resident KiB, 64 concurrent connections",
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
