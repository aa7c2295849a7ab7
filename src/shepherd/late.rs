//! When a job is too late, and how it is told to end.

use std::time::Duration;

use mayfly_protocol::message::HostMessage;

use super::cause::Cause;
use super::context::Context;
use super::event::{Happened, Phase};
use super::greeting::wall_clock;
use super::plan::Farewell;
use crate::channel::Link;
use crate::host::clock::Deadline;

/// How long a guest has said nothing.
///
/// Under emulation a guest can lose its timer's interrupt while it waits for nothing else, and then
/// sleeps for good. Any message wakes it, and setting its clock makes its kernel arm every timer
/// again, so a guest gets one halfway, while there is time for an answer. One that hangs for another
/// reason ignores it.
pub(super) struct Silence {
    end: Deadline,
    /// None once the message was sent.
    wake: Option<Deadline>,
}

impl Silence {
    /// The guest was heard just now.
    pub(super) fn begin(context: &Context) -> Self {
        let limit = context.plan.deadlines.silence;
        let clock = &context.clock;
        Self { end: clock.after(limit), wake: Some(clock.after(limit / 2)) }
    }

    /// The next moment at which something is to be done.
    pub(super) fn next(&self) -> Deadline {
        self.wake.unwrap_or(self.end)
    }

    /// That moment has passed: wakes the guest, or finds it silent.
    pub(super) fn passed(&mut self, link: &mut Link) -> Result<(), Cause> {
        if self.wake.take().is_none() {
            return Err(Cause::Silent(self.end.limit()));
        }
        Ok(link.say(&HostMessage::SetClock(wall_clock()))?)
    }
}

/// When the job is too late, and its guest too silent.
pub(super) struct Late {
    pub(super) phase: Phase,
    pub(super) end: Deadline,
    pub(super) silence: Silence,
    // Why the microVM ends, once the job was interrupted.
    pub(super) farewell: Option<Cause>,
}

impl Late {
    pub(super) fn begin(context: &mut Context, phase: Phase, limit: Duration) -> Self {
        let end = context.after(limit);
        Self { phase, end, silence: Silence::begin(context), farewell: None }
    }

    /// The guest was heard.
    pub(super) fn heard(&mut self, context: &Context) {
        self.silence = Silence::begin(context);
    }

    /// A runner that waited has its job now, for so long. Not where it ends already.
    pub(super) fn begin_again(&mut self, context: &mut Context, limit: Duration) {
        if self.farewell.is_none() {
            self.end = context.after(limit);
        }
    }

    /// Tells the job to end, and what its microVM ends of if it does not. Once: who is told again
    /// has no longer for it.
    pub(super) fn interrupt(
        &mut self,
        context: &mut Context,
        link: &mut Link,
        farewell: Farewell,
        cause: Cause,
    ) -> Result<(), Cause> {
        let end = context.after(farewell.within);
        if self.farewell.is_some() {
            // A shorter one counts, as where the host shuts down in the meantime.
            if context.clock.left(&end) < context.clock.left(&self.end) {
                self.end = end;
            }
            return Ok(());
        }
        // SIGINT and no other: GitHub's runner ends in an orderly way on it on every version of
        // .NET. To the whole process group, so that steps end at once and `always()` steps run.
        link.say(&HostMessage::Signal(libc::SIGINT))?;
        self.end = end;
        self.farewell = Some(cause);
        context.tell(Happened::Interrupted(farewell))
    }

    /// One of the deadlines has passed. A runner is told before it is ended.
    pub(super) fn passed(
        &mut self,
        which: usize,
        is_runner: bool,
        context: &mut Context,
        link: &mut Link,
    ) -> Result<(), Cause> {
        if which != 0 {
            return self.silence.passed(link);
        }
        if let Some(cause) = self.farewell.take() {
            return Err(cause);
        }
        let cause = Cause::Deadline(self.phase, self.end.limit());
        if !is_runner || self.phase != Phase::Running {
            return Err(cause);
        }
        let within = context.plan.deadlines.farewell;
        let farewell = Farewell { within, why: cause.to_string() };
        self.interrupt(context, link, farewell, cause)
    }
}
