//! The clock of an emulated guest on a busy host: it follows the host's clock, and its timers fire
//! in every boot.

use std::io::Write;
use std::process::{ChildStdin, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::{Host, Running, TIMEOUT, is_long_run};

/// Prints the time for each input line.
const CLOCK: &str = "while read -r; do echo $EPOCHREALTIME; done";

/// Checks of a boot: a kernel timer, and the current clock source.
const BOOT: &str =
    "sleep 0.2; cat /sys/devices/system/clocksource/clocksource0/current_clocksource";

/// The largest drift between the clocks of guest and host, as a fraction of the elapsed time.
/// Hardware oscillators drift by more than a tenth of this.
const DRIFT: f64 = 0.001;

/// A microVM that reports its time.
struct GuestClock {
    running: Running,
    stdin: ChildStdin,
    responses: usize,
}

impl GuestClock {
    fn start(host: &Host) -> Self {
        let mut command = host.command(["-i", "--", "bash", "-c", CLOCK]);
        let mut running = Running::start_with(&mut command, Stdio::piped());
        let stdin = running.stdin();
        let mut clock = Self { running, stdin, responses: 0 };
        // The first response includes the boot, so it is discarded.
        clock.ahead();
        clock
    }

    /// Returns the seconds that the guest's clock is ahead of the host's, and the uncertainty.
    fn ahead(&mut self) -> (f64, f64) {
        let requested = now();
        self.stdin.write_all(b"\n").unwrap();
        let responses = self.responses;
        let response = crate::support::until("the guest's time", TIMEOUT, || {
            self.running.stdout().split_inclusive('\n').nth(responses).map(str::to_owned)
        });
        let received = now();
        self.responses += 1;
        let guest: f64 = response.trim().parse().unwrap();
        (guest - f64::midpoint(requested, received), (received - requested) / 2.0)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Boots microVMs two at a time until `enough` returns true. Returns the number of boots and the
/// failures.
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
    // Each thread has counted one boot that it did not start.
    (boots.into_inner() - 2, wrong.into_inner().unwrap())
}

/// Runs for half a minute in the ordinary suite, and for a quarter of an hour and 200 boots with
/// `scripts/test --long`.
fn keeps_time(least_time: Duration, least_boots: usize) {
    let host = Host::new();
    let mut clock = GuestClock::start(&host);
    let (first, _) = clock.ahead();
    let start = Instant::now();
    let enough = |boots| boots >= least_boots && start.elapsed() >= least_time;
    let (boots, wrong) = boot_until(&host, enough);
    let passed = start.elapsed().as_secs_f64();
    let (last, error_bound) = clock.ahead();
    let drift = last - first;
    eprintln!(
        "{boots} boots in {passed:.0} s, {} failed; the guest's clock went {:+.1} ms (±{:.1}) from \
         the host's: {:.4} %",
        wrong.len(),
        drift * 1e3,
        error_bound * 1e3,
        drift / passed * 100.0
    );
    assert!(wrong.is_empty(), "{} of {boots} boots: {wrong:#?}", wrong.len());
    assert!(drift.abs() <= DRIFT * passed + error_bound, "{drift} s in {passed} s, ±{error_bound}");
}

#[test]
fn a_guests_clock_keeps_time_while_the_host_boots_others() {
    keeps_time(Duration::from_secs(20), 2);
}

#[test]
#[ignore = "takes minutes"]
fn a_guests_clock_keeps_time_for_a_quarter_of_an_hour_and_200_boots() {
    assert!(is_long_run(), "run scripts/test --long");
    keeps_time(Duration::from_secs(900), 200);
}
