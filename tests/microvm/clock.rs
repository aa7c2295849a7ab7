//! The guest's clock on a host that is busy, in emulation: it keeps the host's time, and its timers
//! fire in every boot.

use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Host, PATIENCE, Running, long};

/// Answers each line with the time.
const CLOCK: &str = "while read -r; do echo $EPOCHREALTIME; done";

/// What a boot is tried with: a timer of the kernel's, and the clock that it reads.
const BOOT: &str =
    "sleep 0.2; cat /sys/devices/system/clocksource/clocksource0/current_clocksource";

/// How far the guest's clock may run from the host's, as a share of the time that passes. The
/// crystals that clocks go by are worse than a tenth of this.
const DRIFT: f64 = 0.001;

/// A microVM that is asked for the time.
struct Asked {
    running: Running,
    stdin: ChildStdin,
    answers: usize,
}

impl Asked {
    fn start(host: &Host) -> Self {
        let mut command = host.command(["-i", "--", "bash", "-c", CLOCK]);
        let mut running = Running::start_with(&mut command, Stdio::piped());
        let stdin = running.stdin();
        let mut asked = Self { running, stdin, answers: 0 };
        // The first answer waits for the boot, and is as exact.
        asked.ahead();
        asked
    }

    /// Seconds that the guest's clock is ahead of the host's, and how exactly that is known.
    fn ahead(&mut self) -> (f64, f64) {
        let asked = now();
        self.stdin.write_all(b"\n").unwrap();
        let answers = self.answers;
        let answer = crate::support::until("the guest's time", PATIENCE, || {
            self.running.stdout().split_inclusive('\n').nth(answers).map(str::to_owned)
        });
        let answered = now();
        self.answers += 1;
        let guest: f64 = answer.trim().parse().unwrap();
        (guest - f64::midpoint(asked, answered), (answered - asked) / 2.0)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Boots microVMs two at a time until `enough` says so; gives how many, and what went wrong.
fn boot_until(host: &Host, enough: impl Fn(usize) -> bool + Sync) -> (usize, Vec<String>) {
    let (boots, wrong) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let boot = || {
        while !enough(boots.fetch_add(1, Ordering::SeqCst)) {
            let ending = host.run(["--", "sh", "-c", BOOT]);
            if ending.code() != 0 || ending.text() != "tsc\n" {
                wrong.lock().unwrap().push(format!("{ending:?}"));
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(boot);
        scope.spawn(boot);
    });
    // Each thread has counted one that it did not begin.
    (boots.into_inner() - 2, wrong.into_inner().unwrap())
}

/// In the ordinary suite for half a minute; `scripts/test --long` takes a quarter of an hour and 200
/// boots.
fn keeps_time(least_time: Duration, least_boots: usize) {
    let host = Host::new();
    let mut asked = Asked::start(&host);
    let (first, _) = asked.ahead();
    let begun = Instant::now();
    let enough = |boots| boots >= least_boots && begun.elapsed() >= least_time;
    let (boots, wrong) = boot_until(&host, enough);
    let passed = begun.elapsed().as_secs_f64();
    let (last, exactly) = asked.ahead();
    let drift = last - first;
    eprintln!(
        "{boots} boots in {passed:.0} s, {} failed; the guest's clock went {:+.1} ms (±{:.1}) from \
         the host's: {:.4} %",
        wrong.len(),
        drift * 1e3,
        exactly * 1e3,
        drift / passed * 100.0
    );
    assert!(wrong.is_empty(), "{} of {boots} boots: {wrong:#?}", wrong.len());
    assert!(drift.abs() <= DRIFT * passed + exactly, "{drift} s in {passed} s, ±{exactly}");
}

#[test]
fn a_guests_clock_keeps_time_while_the_host_boots_others() {
    keeps_time(Duration::from_secs(20), 2);
}

#[test]
#[ignore = "takes minutes"]
fn a_guests_clock_keeps_time_for_a_quarter_of_an_hour_and_200_boots() {
    assert!(long(), "run scripts/test --long");
    keeps_time(Duration::from_secs(900), 200);
}
