//! What a microVM has in every phase of its life: its plan, its front end, its record.

use std::future::Future;
use std::time::Duration;

use mayfly_protocol::message::Statistics;

use super::cause::Cause;
use super::egress::Egress;
use super::event::{Event, Happened, Phase};
use super::front::Front;
use super::plan::Plan;
use super::programs::Programs;
use super::record::Record;
use crate::host::clock::{self, ActiveClock, Deadline};
use crate::image::Hold;

/// What every phase has.
pub(super) struct Context {
    pub(super) plan: Plan,
    pub(super) front: Front,
    pub(super) record: Record,
    /// The image can't be collected before the microVM is gone.
    pub(super) _image: Hold,
    pub(super) phase: Phase,
    pub(super) statistics: Option<Statistics>,
    pub(super) egress: Option<Egress>,
    pub(super) programs: Programs,
    /// What deadlines are measured by.
    pub(super) clock: ActiveClock,
}

impl Context {
    /// Records and reports what happened.
    pub(super) fn tell(&mut self, happened: Happened) -> Result<(), Cause> {
        let event = Event::now(&self.plan.id, self.plan.asked, happened);
        let written = self.record.write(&event);
        self.front.tell(&event);
        written
    }

    /// Begins a phase.
    pub(super) fn enter(&mut self, phase: Phase) -> Result<(), Cause> {
        self.phase = phase;
        self.tell(Happened::Phase(phase))
    }

    /// Does the work of a step, unless the deadline or the wish to end comes first.
    pub(super) async fn within<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = Result<T, Cause>>,
    ) -> Result<T, Cause> {
        let deadlines = [self.after(limit)];
        tokio::select! {
            biased;
            cause = self.front.ended() => Err(cause),
            result = work => result,
            _ = self.clock.passed(&deadlines) => Err(Cause::Deadline(self.phase, limit)),
        }
    }

    /// A deadline that is `limit` away.
    pub(super) fn after(&mut self, limit: Duration) -> Deadline {
        self.clock.look(clock::boot_time());
        self.clock.after(limit)
    }

    /// Tells what went out so far, where something is new.
    pub(super) fn tell_reached(&mut self) -> Result<(), Cause> {
        match self.egress.as_mut().and_then(Egress::news) {
            Some(report) => self.tell(Happened::Reached(report)),
            None => Ok(()),
        }
    }

    /// Ends what goes out, and tells what did.
    pub(super) async fn close_egress(&mut self) -> Result<(), Cause> {
        let Some(egress) = self.egress.take() else { return Ok(()) };
        let report = egress.close().await;
        if report.rows.is_empty() { Ok(()) } else { self.tell(Happened::Egress(report)) }
    }
}
