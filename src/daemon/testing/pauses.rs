//! The daemon, its shepherds, or both are paused for a second to three days, at any time of any
//! job: no healthy job is ended because of it, and no dead one remains.

use std::time::Duration;

use super::harness::{FORGE, Harness};
use mayfly_ledger::{JobRecord, JobState};

/// How long each job takes.
const JOB: Duration = Duration::from_secs(5);
/// Shorter than any deadline of a shepherd plus the daemon's slack.
const SHORT_PAUSE: Duration = Duration::from_secs(20);
/// Longer than every deadline. The longest is that of a job.
const LONG_PAUSE: Duration = Duration::from_secs(40 * 60);
const TIME_LIMIT: Duration = Duration::from_secs(48 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Paused {
    Daemon,
    Shepherds,
    Both,
}

/// One run: who is paused, when, for how long, and whether the job is local.
#[derive(Debug, Clone, Copy)]
struct Run {
    paused: Paused,
    after: Duration,
    time: Duration,
    local: bool,
}

/// Pseudo-random numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn run(&mut self) -> Run {
        let paused = [Paused::Daemon, Paused::Shepherds, Paused::Both]
            [usize::try_from(self.below(3)).unwrap()];
        // Equally many of seconds, minutes, hours and days.
        let longest = [20, 600, 3600, 3 * 24 * 3600][usize::try_from(self.below(4)).unwrap()];
        Run {
            paused,
            after: Duration::from_millis(self.below(14_000)),
            time: Duration::from_millis(1000 + self.below(longest * 1000 - 999)),
            local: self.below(2) == 0,
        }
    }
}

/// Returns the state and the cause of the newest job.
fn newest(harness: &Harness) -> (JobState, Option<String>) {
    let jobs = harness.jobs();
    let newest: &JobRecord = jobs.first().unwrap();
    (newest.state, newest.cause.clone())
}

async fn pause(harness: &mut Harness, run: Run) {
    let Run { paused, after, time, local } = run;
    if local {
        harness.submit();
    } else {
        harness.forge.queue(FORGE);
    }
    harness.run(after, |_| false).await;
    if paused != Paused::Daemon {
        harness.host.set_stopped(true);
    }
    if paused == Paused::Shepherds {
        let is_over = harness.run(time, Harness::is_done).await;
        let stopped = harness.host.stopped_count();
        assert!(
            is_over || time < LONG_PAUSE || stopped == 0,
            "{run:?}: {stopped} stopped shepherds still run"
        );
    } else {
        // The daemon's loop does not run meanwhile.
        tokio::time::sleep(time).await;
    }
    harness.host.set_stopped(false);
    assert!(harness.run(TIME_LIMIT, Harness::is_done).await, "{run:?}: {:?}", newest(harness));
    if paused != Paused::Shepherds || time < SHORT_PAUSE {
        let (state, cause) = newest(harness);
        assert_eq!(state, JobState::Finished, "{run:?}: a healthy job was ended: {cause:?}");
    }
}

async fn pause_often(runs: u32, seed: u64) {
    let mut random = Random(seed);
    let mut left = runs;
    while left > 0 {
        let mut harness = Harness::new(JOB);
        harness.start_daemon().unwrap();
        for _ in 0..left.min(25) {
            let run = random.run();
            pause(&mut harness, run).await;
        }
        left -= left.min(25);
        harness.assert_exactly_once("at the end");
    }
}

#[tokio::test(start_paused = true)]
async fn no_pause_ends_a_healthy_job_or_keeps_a_dead_one() {
    pause_often(200, 4711).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn ten_thousand_pauses_end_no_healthy_job() {
    pause_often(10_000, u64::from_ne_bytes(mayfly_host::random::<8>().unwrap()) | 1).await;
}
