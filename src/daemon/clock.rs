//! The daemon's clocks: time in which it ran for decisions, the host's for records.
//!
//! While this process is stopped, paused or suspended it hears nobody, and nothing that it measures
//! (deadlines of phases, leases, back-offs, what is believed of waiting jobs) may go on: see
//! [`crate::host::clock`]. The loop looks at the clock before each turn; within one turn it is the
//! same time everywhere.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::millis::Millis;
use crate::api::types::Time;
use crate::host::clock::{ActiveClock, LOOK, boot_time};

/// Time in which the daemon ran.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    /// Time that never stands still.
    time: fn() -> Duration,
    active: ActiveClock,
    absences: u64,
    started: Time,
}

/// Decisions look back to what was before this daemon; so its time begins not at 0.
const HEAD_START: Millis = Millis(48 * 3600 * 1000);

impl Clock {
    pub(super) fn start() -> Self {
        Self::by(boot_time)
    }

    /// One that measures by a time of its own.
    pub(super) fn by(time: fn() -> Duration) -> Self {
        let active = ActiveClock::begin(time());
        Self { time, active, absences: 0, started: Time::now() }
    }

    /// Looks at the clock; to be done at least every [`LOOK`]. Whether the process was absent.
    pub(super) fn look(&mut self) -> bool {
        let Some(absent) = self.active.look((self.time)()) else { return false };
        self.absences += 1;
        let absent = humantime::format_duration(Duration::from_secs(absent.as_secs()));
        tracing::warn!("the daemon did not run for {absent}, which does not count");
        true
    }

    /// How often the process was absent.
    pub(super) fn absences(&self) -> u64 {
        self.absences
    }

    pub(super) fn now(&self) -> Millis {
        HEAD_START + self.active.active()
    }

    /// When deadlines may pass again: after an absence what came meanwhile is heard first.
    pub(super) fn settles(&self) -> Millis {
        self.now() + self.active.left(&self.active.after(Duration::ZERO))
    }

    /// Waits until that moment, or shorter: it is to be looked at the clock then.
    pub(super) async fn wait(&self, until: Millis) {
        tokio::time::sleep(until.since(self.now()).min(LOOK)).await;
    }

    /// The time of this clock at which the host's showed `time`, no later than now.
    pub(super) fn at(&self, time: SystemTime) -> Millis {
        self.ago(SystemTime::now().duration_since(time).unwrap_or_default())
    }

    /// The time of this clock at that instant, no later than now.
    pub(super) fn of(&self, instant: Instant) -> Millis {
        self.ago(instant.elapsed())
    }

    /// The time of this clock so long ago.
    pub(super) fn ago(&self, ago: Duration) -> Millis {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Millis(self.now().0.saturating_sub(ago))
    }

    /// A moment as the host's clock shows it, if the daemon runs until then, and ran since.
    pub(super) fn wall(&self, moment: Millis) -> Time {
        Time((Time::now().0 + moment.0).saturating_sub(self.now().0))
    }

    /// When the daemon was started.
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
        let mut clock = Clock::by(|| TIME.get());
        let begin = clock.now();
        for _ in 0..60 {
            pass(1);
            assert!(!clock.look());
        }
        assert_eq!(clock.now().since(begin), Duration::from_secs(60));
        assert_eq!(clock.settles(), clock.now());
        pass(3 * 24 * 3600);
        assert!(clock.look());
        assert_eq!((clock.absences(), clock.now().since(begin).as_secs()), (1, 61));
        assert!(clock.settles() > clock.now(), "what came meanwhile is heard first");
        for _ in 0..5 {
            pass(1);
            clock.look();
        }
        assert_eq!(clock.settles(), clock.now());
    }

    #[test]
    fn a_moment_is_shown_by_the_hosts_clock() {
        let clock = Clock::by(|| TIME.get());
        let now = Time::now().0;
        let hour = Duration::from_secs(3600);
        assert!(clock.wall(clock.now() + hour).0.abs_diff(now + 3_600_000) < 60_000);
        assert!(clock.wall(clock.ago(hour)).0.abs_diff(now - 3_600_000) < 60_000);
    }
}
