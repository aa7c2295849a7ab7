//! The daemon's clocks: one that never goes back for decisions, the host's for records.

use std::time::{Instant, SystemTime};

use super::millis::Millis;
use crate::api::types::Time;

/// Where the daemon's time begins.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    origin: Instant,
    wall: Time,
}

/// Decisions look back to what was before this daemon; so its time begins not at 0.
const HEAD_START: Millis = Millis(48 * 3600 * 1000);

impl Clock {
    pub(super) fn start() -> Self {
        Self { origin: Instant::now(), wall: Time::now() }
    }

    pub(super) fn now(&self) -> Millis {
        HEAD_START + self.origin.elapsed()
    }

    /// The time of this clock at which the host's showed `time`, no later than now.
    pub(super) fn at(&self, time: SystemTime) -> Millis {
        let ago = SystemTime::now().duration_since(time).unwrap_or_default();
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Millis(self.now().0.saturating_sub(ago))
    }

    /// The time of this clock so long ago.
    pub(super) fn ago(&self, ago: std::time::Duration) -> Millis {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        Millis(self.now().0.saturating_sub(ago))
    }

    /// A moment as the host's clock shows it.
    pub(super) fn wall(&self, moment: Millis) -> Time {
        Time((self.wall.0 + moment.0).saturating_sub(HEAD_START.0))
    }

    /// A moment as the runtime's timers take it.
    pub(super) fn instant(&self, moment: Millis) -> Instant {
        self.origin + moment.since(HEAD_START)
    }

    /// When the daemon was started.
    pub(super) fn started(&self) -> Time {
        self.wall
    }
}
