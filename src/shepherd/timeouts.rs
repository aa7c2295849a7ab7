//! Timeouts of a job and of its guest's heartbeats, and the interrupt of a job.

use std::time::Duration;

use mayfly_protocol::message::HostMessage;

use super::cause::FailureCause;
use super::context::Context;
use super::event::{EventKind, Phase};
use super::handshake::wall_clock;
use super::plan::InterruptRequest;
use mayfly_channel::Link;
use mayfly_host::clock::Deadline;

/// The time since the last message from the guest.
///
/// Under emulation, an otherwise idle guest can lose its timer interrupt and then sleeps forever.
/// Any message wakes it, and setting its clock makes its kernel rearm every timer. So after half of
/// the timeout the guest gets such a message. A guest that hangs for another reason ignores it.
pub(super) struct HeartbeatTimeout {
    end: Deadline,
    /// `None` once the message was sent.
    wake: Option<Deadline>,
}

impl HeartbeatTimeout {
    /// Starts the timeout; the guest just sent a message.
    pub(super) fn start(context: &Context) -> Self {
        let limit = context.plan.deadlines.silence;
        let clock = &context.clock;
        Self { end: clock.after(limit), wake: Some(clock.after(limit / 2)) }
    }

    /// Returns the next deadline.
    pub(super) fn next(&self) -> Deadline {
        self.wake.unwrap_or(self.end)
    }

    /// Handles the passed deadline: wakes the guest, or fails if it was woken before.
    pub(super) fn expired(&mut self, link: &mut Link) -> Result<(), FailureCause> {
        if self.wake.take().is_none() {
            return Err(FailureCause::Silent(self.end.limit()));
        }
        Ok(link.send(&HostMessage::SetClock(wall_clock()))?)
    }
}

/// The timeouts of a job.
pub(super) struct JobTimeouts {
    pub(super) phase: Phase,
    pub(super) end: Deadline,
    pub(super) heartbeat: HeartbeatTimeout,
    // Why the microVM ends, once the job was interrupted.
    pub(super) interrupted: Option<FailureCause>,
}

impl JobTimeouts {
    pub(super) fn start(context: &mut Context, phase: Phase, limit: Duration) -> Self {
        let end = context.deadline_in(limit);
        Self { phase, end, heartbeat: HeartbeatTimeout::start(context), interrupted: None }
    }

    /// Restarts the heartbeat timeout; the guest sent a message.
    pub(super) fn guest_seen(&mut self, context: &Context) {
        self.heartbeat = HeartbeatTimeout::start(context);
    }

    /// Restarts the time limit when a waiting runner gets its job, unless it was interrupted.
    pub(super) fn restart(&mut self, context: &mut Context, limit: Duration) {
        if self.interrupted.is_none() {
            self.end = context.deadline_in(limit);
        }
    }

    /// Interrupts the job. If it does not end in the grace period, the microVM fails with `cause`.
    /// A repeated interrupt can't extend the grace period.
    pub(super) fn interrupt(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        request: InterruptRequest,
        cause: FailureCause,
    ) -> Result<(), FailureCause> {
        let end = context.deadline_in(request.grace);
        if self.interrupted.is_some() {
            // A shorter period takes effect, such as when the host shuts down meanwhile.
            if context.clock.remaining(&end) < context.clock.remaining(&self.end) {
                self.end = end;
            }
            return Ok(());
        }
        // SIGINT, because GitHub's runner shuts down cleanly on it with every .NET version. Sent to
        // the whole process group, so that steps end at once and `always()` steps run.
        link.send(&HostMessage::Signal(libc::SIGINT))?;
        self.end = end;
        self.interrupted = Some(cause);
        context.report(EventKind::Interrupted(request))
    }

    /// Handles a passed deadline. A runner is interrupted before its microVM ends.
    pub(super) fn expired(
        &mut self,
        which: usize,
        is_runner: bool,
        context: &mut Context,
        link: &mut Link,
    ) -> Result<(), FailureCause> {
        if which != 0 {
            return self.heartbeat.expired(link);
        }
        if let Some(cause) = self.interrupted.take() {
            return Err(cause);
        }
        let cause = FailureCause::Deadline(self.phase, self.end.limit());
        if !is_runner || self.phase != Phase::Running {
            return Err(cause);
        }
        let grace = context.plan.deadlines.farewell;
        let request = InterruptRequest { grace, reason: cause.to_string() };
        self.interrupt(context, link, request, cause)
    }
}
