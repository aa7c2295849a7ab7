//! The daemon's clocks: active time for decisions, the host's time for records.
//!
//! While the process is stopped, paused or suspended it receives nothing, so its measured times
//! (deadlines of phases, leases, back-offs, the age of waiting jobs) must stand still: see
//! [`mayfly_host::clock`]. The loop updates the clock before each round; within one round the time
//! is the same everywhere.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::time::Millis;
use mayfly_api::types::Time;
use mayfly_host::clock::{ActiveClock, POLL_INTERVAL, boot_time};

/// A clock that measures the time in which the daemon ran.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// A source of time that never stands still.
    source: fn() -> Duration,
    active: ActiveClock,
    absences: u64,
    started: Time,
}

/// The clock's value at the start. Not 0, because decisions look back to times before this daemon.
const HEAD_START: Millis = Millis(48 * 3600 * 1000);

impl Clock {
    pub(super) fn start() -> Self {
        Self::with_source(boot_time)
    }

    /// Creates a clock with a given time source.
    pub(super) fn with_source(source: fn() -> Duration) -> Self {
        let active = ActiveClock::start(source());
        Self { source, active, absences: 0, started: Time::now() }
    }

    /// Updates the clock. Must be called at least every [`POLL_INTERVAL`]. Returns whether the
    /// process was suspended since the last call.
    pub(super) fn update(&mut self) -> bool {
        let Some(suspended_for) = self.active.update((self.source)()) else { return false };
        self.absences += 1;
        let suspended_for =
            humantime::format_duration(Duration::from_secs(suspended_for.as_secs()));
        tracing::warn!(
            "the daemon was suspended for {suspended_for}; deadlines are extended by that time"
        );
        true
    }

    /// Returns how often the process was suspended.
    pub(super) fn absences(&self) -> u64 {
        self.absences
    }

    pub(super) fn now(&self) -> Millis {
        HEAD_START + self.active.active()
    }

    /// Returns when deadlines apply again: after a suspension, events that came meanwhile are
    /// handled first.
    pub(super) fn deadlines_resume_at(&self) -> Millis {
        self.now() + self.active.remaining(&self.active.after(Duration::ZERO))
    }

    /// Waits until that time, or shorter, so that the clock is updated often enough.
    pub(super) async fn wait(&self, until: Millis) {
        tokio::time::sleep(until.since(self.now()).min(POLL_INTERVAL)).await;
    }

    /// Returns the time of this clock at the host's time `time`, no later than now.
    pub(super) fn at_wall_time(&self, time: SystemTime) -> Millis {
        self.before_now(SystemTime::now().duration_since(time).unwrap_or_default())
    }

    /// Returns the time of this clock at that instant, no later than now.
    pub(super) fn at_instant(&self, instant: Instant) -> Millis {
        self.before_now(instant.elapsed())
    }

    /// Returns the time of this clock that long ago.
    pub(super) fn before_now(&self, ago: Duration) -> Millis {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Millis(self.now().0.saturating_sub(ago))
    }

    /// Converts a time of this clock to the host's time, as if the daemon ran without a break
    /// between that time and now.
    pub(super) fn wall_time(&self, moment: Millis) -> Time {
        Time((Time::now().0 + moment.0).saturating_sub(self.now().0))
    }

    /// Returns when the daemon was started.
    pub(super) fn started(&self) -> Time {
        self.started
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local!(static TIME: Cell<Duration> = const { Cell::new(Duration::ZERO) });

    fn pass(seconds: u64) {
        TIME.set(TIME.get() + Duration::from_secs(seconds));
    }

    #[test]
    fn time_in_which_the_daemon_did_not_run_does_not_count() {
        let mut clock = Clock::with_source(|| TIME.get());
        let begin = clock.now();
        for _ in 0..60 {
            pass(1);
            assert!(!clock.update());
        }
        assert_eq!(clock.now().since(begin), Duration::from_secs(60));
        assert_eq!(clock.deadlines_resume_at(), clock.now());
        pass(3 * 24 * 3600);
        assert!(clock.update());
        assert_eq!((clock.absences(), clock.now().since(begin).as_secs()), (1, 61));
        assert!(
            clock.deadlines_resume_at() > clock.now(),
            "events that came meanwhile are handled first"
        );
        for _ in 0..5 {
            pass(1);
            clock.update();
        }
        assert_eq!(clock.deadlines_resume_at(), clock.now());
    }

    #[test]
    fn a_time_is_converted_to_the_hosts_clock() {
        let clock = Clock::with_source(|| TIME.get());
        let now = Time::now().0;
        let hour = Duration::from_secs(3600);
        assert!(clock.wall_time(clock.now() + hour).0.abs_diff(now + 3_600_000) < 60_000);
        assert!(clock.wall_time(clock.before_now(hour)).0.abs_diff(now - 3_600_000) < 60_000);
    }
}
