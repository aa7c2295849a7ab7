//! A clock of the time in which this process ran.
//!
//! A deadline is about another party: a guest that sends nothing, a job that does not end. While
//! this process is stopped, its container paused or the host suspended, it receives nothing, and
//! time that passes then says nothing about the other party. So deadlines are measured by an
//! [`ActiveClock`], which a process updates while it runs, and which does not count the time
//! between two updates that are too far apart. After such a pause no deadline passes for a while,
//! so that messages that arrived meanwhile are read first.
//!
//! The clock source is `CLOCK_BOOTTIME`: it does not jump when the host's clock is set, and it
//! includes the time of a host suspend.

use std::time::Duration;

/// How often a waiting process updates the clock, at least.
pub const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// A longer time between two updates was a pause. A busy host delays a process by less.
pub const PAUSE_THRESHOLD: Duration = Duration::from_secs(5);

/// How long after a pause no deadline passes.
pub const PAUSE_GRACE: Duration = Duration::from_secs(5);

/// Returns `CLOCK_BOOTTIME`: the time since the host booted, including suspends.
pub fn boot_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // It can't fail on kernels that have the clock: all since 2.6.39.
    now.map_or(Duration::ZERO, Duration::from)
}

/// A clock that counts the time in which its process ran. It never goes back.
#[derive(Debug, Clone, Copy)]
pub struct ActiveClock {
    updated: Duration,
    active: Duration,
    // No deadline passes before this.
    settled: Duration,
}

/// A deadline measured by an [`ActiveClock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Duration,
    limit: Duration,
}

impl Deadline {
    /// Returns its length from when it was set.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

impl ActiveClock {
    /// Creates a clock that starts now; `now` is the current [`boot_time`].
    pub fn start(now: Duration) -> Self {
        Self { updated: now, active: Duration::ZERO, settled: Duration::ZERO }
    }

    /// Updates the clock. Returns how long the process was paused since the last update, if it was.
    pub fn update(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.updated);
        self.updated = self.updated.max(now);
        if passed <= PAUSE_THRESHOLD {
            self.active += passed;
            return None;
        }
        // Not again until the grace is over: repeated pauses would put deadlines off forever.
        let is_settled = self.active >= self.settled;
        self.active += POLL_INTERVAL;
        if is_settled {
            self.settled = self.active + PAUSE_GRACE;
        }
        Some(passed.saturating_sub(POLL_INTERVAL))
    }

    /// Returns how long the process has run.
    pub fn active(&self) -> Duration {
        self.active
    }

    /// Returns a deadline in `limit` from now.
    pub fn after(&self, limit: Duration) -> Deadline {
        Deadline { at: self.active.saturating_add(limit), limit }
    }

    /// Returns how long the process has to run until a deadline passes; zero once it has.
    pub fn remaining(&self, deadline: &Deadline) -> Duration {
        match deadline.at.saturating_sub(self.active) {
            remaining if remaining.is_zero() => self.settled.saturating_sub(self.active),
            remaining => remaining,
        }
    }

    /// Returns whether a deadline has passed.
    pub fn has_passed(&self, deadline: &Deadline) -> bool {
        self.remaining(deadline).is_zero()
    }

    /// Waits until one of these deadlines has passed, and returns its index. Updates the clock
    /// first, so that a flood of other events can't delay it. Cancellation safe.
    pub async fn wait_any(&mut self, deadlines: &[Deadline]) -> usize {
        loop {
            self.update(boot_time());
            let remaining = deadlines.iter().map(|deadline| self.remaining(deadline)).enumerate();
            let first = remaining.min_by_key(|(_, remaining)| *remaining);
            match first {
                None => std::future::pending().await,
                Some((which, remaining)) if remaining.is_zero() => return which,
                Some((_, remaining)) => tokio::time::sleep(remaining.min(POLL_INTERVAL)).await,
            }
        }
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
