//! Time in which this process ran.
//!
//! A deadline is about somebody else: a guest that says nothing, a job that does not end. While this
//! process is stopped, its container is paused or the host is suspended, it hears nobody, and time
//! that passes then says nothing about anybody. So deadlines are measured by an [`ActiveClock`],
//! which a process looks at while it runs, and which does not count what passed between two looks
//! that lie too far apart. After such an absence no deadline passes for a while, so that what came
//! in the meantime and waits is read first.
//!
//! The clock behind it is `CLOCK_BOOTTIME`: it does not jump when the host's clock is set, and it
//! sees that the host was suspended.

use std::time::Duration;

/// A process that waits looks at the clock at least this often.
pub const LOOK: Duration = Duration::from_secs(1);

/// What lies between two looks beyond this was absence. A busy host makes a process late by less.
pub const ABSENCE: Duration = Duration::from_secs(5);

/// How long after an absence no deadline passes.
pub const GRACE: Duration = Duration::from_secs(5);

/// `CLOCK_BOOTTIME` now: time since the host was booted, with that in which it was suspended.
pub fn boot_time() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    // It can't fail on any kernel that has the clock, which is any since 2.6.39.
    now.map_or(Duration::ZERO, Duration::from)
}

/// A clock that counts time in which its process ran. It never goes back.
#[derive(Debug, Clone, Copy)]
pub struct ActiveClock {
    looked: Duration,
    active: Duration,
    // No deadline passes before this.
    settled: Duration,
}

/// The moment, by an [`ActiveClock`], by which something has to have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    at: Duration,
    limit: Duration,
}

impl Deadline {
    /// How long it is from its beginning.
    pub fn limit(&self) -> Duration {
        self.limit
    }
}

impl ActiveClock {
    /// A clock that begins now, which is `now` by [`boot_time`].
    pub fn begin(now: Duration) -> Self {
        Self { looked: now, active: Duration::ZERO, settled: Duration::ZERO }
    }

    /// Looks at the clock. Gives how long the process was absent since the last look, if it was.
    pub fn look(&mut self, now: Duration) -> Option<Duration> {
        let passed = now.saturating_sub(self.looked);
        self.looked = self.looked.max(now);
        if passed <= ABSENCE {
            self.active += passed;
            return None;
        }
        // Once until it is over: one absence after another would put deadlines off for ever.
        let is_settled = self.active >= self.settled;
        self.active += LOOK;
        if is_settled {
            self.settled = self.active + GRACE;
        }
        Some(passed.saturating_sub(LOOK))
    }

    /// How long the process ran.
    pub fn active(&self) -> Duration {
        self.active
    }

    /// A deadline that is `limit` away.
    pub fn after(&self, limit: Duration) -> Deadline {
        Deadline { at: self.active.saturating_add(limit), limit }
    }

    /// How long the process has to run until a deadline has passed; zero once it has.
    pub fn left(&self, deadline: &Deadline) -> Duration {
        match deadline.at.saturating_sub(self.active) {
            left if left.is_zero() => self.settled.saturating_sub(self.active),
            left => left,
        }
    }

    /// Whether a deadline has passed.
    pub fn has_passed(&self, deadline: &Deadline) -> bool {
        self.left(deadline).is_zero()
    }

    /// Waits until one of these deadlines has passed, and tells which. Looks at the clock at once,
    /// so that no flood of other things can put it off. Nothing is lost where the wait is given up.
    pub async fn passed(&mut self, deadlines: &[Deadline]) -> usize {
        loop {
            self.look(boot_time());
            let left = deadlines.iter().map(|deadline| self.left(deadline)).enumerate();
            let first = left.min_by_key(|(_, left)| *left);
            match first {
                None => std::future::pending().await,
                Some((which, left)) if left.is_zero() => return which,
                Some((_, left)) => tokio::time::sleep(left.min(LOOK)).await,
            }
        }
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
