//! State that a microVM has in every phase: its plan, its front end, its record.

use std::future::Future;
use std::time::Duration;

use mayfly_protocol::message::Statistics;

use super::cause::FailureCause;
use super::egress::Egress;
use super::event::{Event, EventKind, Phase};
use super::front_end::FrontEnd;
use super::plan::MicrovmPlan;
use super::program_log::ProgramLog;
use super::record::Record;
use mayfly_host::clock::{self, ActiveClock, Deadline};
use mayfly_image::Hold;

/// The state that all phases share.
pub(super) struct Context {
    pub(super) plan: MicrovmPlan,
    pub(super) front: FrontEnd,
    pub(super) record: Record,
    /// Protects the image from collection while the microVM exists.
    pub(super) _image: Hold,
    pub(super) phase: Phase,
    pub(super) statistics: Option<Statistics>,
    pub(super) egress: Option<Egress>,
    pub(super) programs: ProgramLog,
    /// The clock that deadlines are measured with.
    pub(super) clock: ActiveClock,
}

impl Context {
    /// Records an event and sends it to the front end.
    pub(super) fn report(&mut self, kind: EventKind) -> Result<(), FailureCause> {
        let event = Event::now(&self.plan.id, self.plan.requested_at, kind);
        let written = self.record.write(&event);
        self.front.send_event(&event);
        written
    }

    /// Enters a phase.
    pub(super) fn enter(&mut self, phase: Phase) -> Result<(), FailureCause> {
        self.phase = phase;
        self.report(EventKind::Phase(phase))
    }

    /// Runs the work of a phase, unless the deadline passes or an end is requested first.
    pub(super) async fn with_deadline<T>(
        &mut self,
        limit: Duration,
        work: impl Future<Output = Result<T, FailureCause>>,
    ) -> Result<T, FailureCause> {
        let deadlines = [self.deadline_in(limit)];
        tokio::select! {
            biased;
            cause = self.front.wait_for_end() => Err(cause),
            result = work => result,
            _ = self.clock.wait_any(&deadlines) => Err(FailureCause::Deadline(self.phase, limit)),
        }
    }

    /// Returns a deadline that is `limit` from now.
    pub(super) fn deadline_in(&mut self, limit: Duration) -> Deadline {
        self.clock.update(clock::boot_time());
        self.clock.after(limit)
    }

    /// Reports egress so far, if there is something new.
    pub(super) fn report_reached(&mut self) -> Result<(), FailureCause> {
        match self.egress.as_mut().and_then(Egress::new_report) {
            Some(report) => self.report(EventKind::Reached(report)),
            None => Ok(()),
        }
    }

    /// Closes egress and reports it.
    pub(super) async fn close_egress(&mut self) -> Result<(), FailureCause> {
        let Some(egress) = self.egress.take() else { return Ok(()) };
        let report = egress.close().await;
        if report.rows.is_empty() { Ok(()) } else { self.report(EventKind::Egress(report)) }
    }
}
