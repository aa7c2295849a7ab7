//! The daemon, its shepherds, or both stand still for a second to three days, at any moment of any
//! job's life: no healthy job is ended for it, and no dead one is kept.

use std::time::Duration;

use super::stage::{FORGE, Stage};
use crate::ledger::{Job, JobState};

/// How long each job takes.
const JOB: Duration = Duration::from_secs(5);
/// No deadline of a shepherd is shorter than this and what the daemon adds to it.
const SHORT: Duration = Duration::from_secs(20);
/// Every deadline is shorter than this: that of a job is the longest.
const LONG: Duration = Duration::from_secs(40 * 60);
const PATIENCE: Duration = Duration::from_secs(48 * 3600);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Daemon,
    Shepherds,
    Both,
}

/// One run: who stands still, from when on, for how long, and whose job it is.
#[derive(Debug, Clone, Copy)]
struct Run {
    who: Who,
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
        let who = [Who::Daemon, Who::Shepherds, Who::Both][usize::try_from(self.below(3)).unwrap()];
        // As many of seconds as of minutes, hours and days.
        let longest = [20, 600, 3600, 3 * 24 * 3600][usize::try_from(self.below(4)).unwrap()];
        Run {
            who,
            after: Duration::from_millis(self.below(14_000)),
            time: Duration::from_millis(1000 + self.below(longest * 1000 - 999)),
            local: self.below(2) == 0,
        }
    }
}

/// The state and the cause of the job that was queued last.
fn newest(stage: &Stage) -> (JobState, Option<String>) {
    let jobs = stage.jobs();
    let newest: &Job = jobs.first().unwrap();
    (newest.state, newest.cause.clone())
}

async fn stand_still(stage: &mut Stage, run: Run) {
    let Run { who, after, time, local } = run;
    if local {
        stage.submit();
    } else {
        stage.forge.queue(FORGE);
    }
    stage.run(after, |_| false).await;
    if who != Who::Daemon {
        stage.host.stop(true);
    }
    if who == Who::Shepherds {
        let is_over = stage.run(time, Stage::is_done).await;
        let living = stage.host.stopped();
        assert!(is_over || time < LONG || living == 0, "{run:?}: {living} dead ones are kept");
    } else {
        // Nobody polls the daemon meanwhile.
        tokio::time::sleep(time).await;
    }
    stage.host.stop(false);
    assert!(stage.run(PATIENCE, Stage::is_done).await, "{run:?}: {:?}", newest(stage));
    if who != Who::Shepherds || time < SHORT {
        let (state, cause) = newest(stage);
        assert_eq!(state, JobState::Finished, "{run:?}: a healthy job was ended: {cause:?}");
    }
}

async fn stand_still_often(runs: u32, seed: u64) {
    let mut random = Random(seed);
    let mut left = runs;
    while left > 0 {
        let mut stage = Stage::new(JOB);
        stage.serve().unwrap();
        for _ in 0..left.min(25) {
            let run = random.run();
            stand_still(&mut stage, run).await;
        }
        left -= left.min(25);
        stage.assert_exactly_once("at the end");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_stands_still_no_healthy_job_is_ended_and_no_dead_one_kept() {
    stand_still_often(200, 4711).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes"]
async fn whoever_stands_still_ten_thousand_times_no_healthy_job_is_ended() {
    stand_still_often(10_000, u64::from_ne_bytes(crate::host::random::<8>().unwrap()) | 1).await;
}
