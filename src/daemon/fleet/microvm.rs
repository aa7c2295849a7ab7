//! The daemon's state of one microVM, and how events of its shepherd change it. Pure.

use std::time::Duration;

use mayfly_protocol::message::JobExit;

use super::overdue::{PhaseTimeouts, REGISTERING};
use crate::decide::{JobKey, MicrovmKey, MicrovmState, PoolId, Resources, Stage};
use crate::time::Millis;
use mayfly_egress::record::{EgressReport, EgressRow, EgressTotal, EgressTotals};
use mayfly_ledger::{DestinationRecord, EgressSummary, VerdictTotals};
use mayfly_shepherd::event::{
    Event, EventKind, FailureReport, JobOutcome, Phase, describe_start_failure,
};
use mayfly_shepherd::plan::MicrovmId;
use mayfly_shepherd::runner::{RunnerProgress, RunnerResult};

/// A microVM of the fleet.
#[derive(Debug)]
pub(crate) struct Microvm {
    pub(super) key: MicrovmKey,
    /// Its id; `None` until it is planned.
    pub(super) id: Option<MicrovmId>,
    /// Its pool, which may no longer be configured.
    pub(super) pool: PoolId,
    pub(super) pool_name: String,
    pub(super) resources: Resources,
    pub(super) stage: Stage,
    pub(super) since: Millis,
    pub(super) assignment: Assignment,
    /// The number of applied events. A new connection sends events again from the first on.
    pub(super) events_applied: usize,
    /// The last phase that the shepherd reported.
    pub(super) phase: Phase,
    /// When its local job times out.
    pub(super) job_deadline: Option<Millis>,
    /// The deadlines of its phases.
    pub(super) timeouts: PhaseTimeouts,
    /// Why its shepherd has interrupted its job, if it has. The daemon that commanded it may be
    /// gone.
    pub(super) interrupted: Option<String>,
    /// Since when its runner reports that it can't reach the forge.
    pub(super) retrying_since: Option<Millis>,
    /// Whether it is ended because its runner failed.
    pub(super) is_runner_failed: bool,
    /// When it was commanded to end.
    pub(super) end_requested_at: Option<Millis>,
    /// When it began to end by itself.
    pub(super) ended_at: Option<Millis>,
    /// When it was last killed.
    pub(super) killed_at: Option<Millis>,
    /// When its job was reported as completed, by the forge.
    pub(super) job_completed_at: Option<Millis>,
    /// Why the daemon ends it, if it does.
    pub(super) end_reason: Option<String>,
    /// Whether it reported that it ended on command. The daemon that commanded it may be gone.
    pub(super) ended_as_requested: bool,
    /// The egress of its job so far. At the end the ledger has it.
    pub(super) reached: Option<EgressSummary>,
}

/// The work that a microVM is assigned to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// Nothing yet.
    None,
    /// A job of the daemon's own queue.
    Local(JobKey),
    /// A runner of the forge.
    Runner(AssignedRunner),
}

/// A runner in a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AssignedRunner {
    /// Its name at the forge.
    pub(crate) name: String,
    /// Its number at the forge, once it has one.
    pub(crate) id: Option<u64>,
    /// The name of the job that it took.
    pub(crate) job: Option<String>,
    /// The result of that job, as the runner reported it.
    pub(crate) result: Option<RunnerResult>,
}

/// What the daemon has to do about an event.
#[derive(Debug, PartialEq)]
pub(crate) enum MicrovmUpdate {
    /// Nothing.
    NoAction,
    /// The microVM is ready for work.
    Warm,
    /// Its job or its runner has started.
    Started,
    /// Its runner is listening for a job.
    Listening,
    /// Its runner took a job.
    TookJob(String),
    /// It has ended.
    Ended(Box<JobOutcome>),
}

impl Microvm {
    pub(crate) fn key(&self) -> MicrovmKey {
        self.key
    }

    pub(crate) fn id(&self) -> Option<&MicrovmId> {
        self.id.as_ref()
    }

    pub(crate) fn pool(&self) -> PoolId {
        self.pool
    }

    pub(crate) fn pool_name(&self) -> &str {
        &self.pool_name
    }

    pub(crate) fn resources(&self) -> Resources {
        self.resources
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn since(&self) -> Millis {
        self.since
    }

    pub(crate) fn assignment(&self) -> &Assignment {
        &self.assignment
    }

    /// Returns its runner, if any.
    pub(crate) fn runner(&self) -> Option<&AssignedRunner> {
        match &self.assignment {
            Assignment::Runner(runner) => Some(runner),
            Assignment::None | Assignment::Local(_) => None,
        }
    }

    /// Returns the last phase that its shepherd reported.
    pub(crate) fn phase(&self) -> Phase {
        self.phase
    }

    /// Returns why the daemon ends it, if it does.
    pub(crate) fn end_reason(&self) -> Option<&str> {
        self.end_reason.as_deref()
    }

    /// Returns since when its runner reports that it can't reach the forge.
    pub(crate) fn retrying_since(&self) -> Option<Millis> {
        self.retrying_since
    }

    /// Returns whether its shepherd has interrupted its job.
    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupted.is_some()
    }

    /// Returns until when its runner may wait for a job, or may take to start listening.
    pub(crate) fn claim_ends(&self, claim: Duration) -> Option<Millis> {
        match self.stage {
            Stage::Registering => Some(self.since + REGISTERING),
            Stage::Registered => Some(self.since + claim),
            _ => None,
        }
    }

    /// Returns whether it has a job. A runner that is being ended has its job until it ends.
    pub(crate) fn has_job(&self) -> bool {
        match self.stage {
            Stage::Assigned | Stage::Busy => true,
            Stage::Ending => {
                self.phase <= Phase::Running
                    && self.runner().is_some_and(|runner| runner.job.is_some())
            }
            _ => false,
        }
    }

    /// Returns the egress of its job so far.
    pub(crate) fn reached(&self) -> Option<&EgressSummary> {
        self.reached.as_ref()
    }

    /// Returns whether it ended otherwise than this or an earlier daemon intended. That includes a
    /// kill, and an end because its runner failed.
    pub(crate) fn was_unexpected(&self) -> bool {
        (self.end_reason.is_none() && !self.ended_as_requested)
            || self.killed_at.is_some()
            || self.is_runner_failed
    }
}

impl Microvm {
    /// Creates a microVM that is about to boot.
    pub(super) fn new(
        key: MicrovmKey,
        pool: PoolId,
        pool_name: &str,
        resources: Resources,
        now: Millis,
    ) -> Self {
        Self {
            key,
            id: None,
            pool,
            pool_name: pool_name.to_owned(),
            resources,
            stage: Stage::Booting,
            since: now,
            assignment: Assignment::None,
            events_applied: 0,
            phase: Phase::Planned,
            job_deadline: None,
            timeouts: PhaseTimeouts::default(),
            interrupted: None,
            retrying_since: None,
            is_runner_failed: false,
            end_requested_at: None,
            ended_at: None,
            killed_at: None,
            job_completed_at: None,
            end_reason: None,
            ended_as_requested: false,
            reached: None,
        }
    }

    /// Returns the microVM as decisions see it.
    pub(super) fn state(&self) -> MicrovmState {
        MicrovmState {
            key: self.key,
            pool: self.pool,
            resources: self.resources,
            stage: self.stage,
            since: self.since,
        }
    }

    pub(super) fn enter(&mut self, stage: Stage, now: Millis) {
        if self.stage != stage {
            self.stage = stage;
            self.since = now;
        }
    }

    /// Records a reason to end it. The first reason stays. Returns it if there was one before.
    pub(super) fn add_end_reason(&mut self, why: &str) -> Option<String> {
        let first = self.end_reason.clone().or_else(|| self.interrupted.clone());
        self.end_reason = Some(first.clone().unwrap_or_else(|| why.to_owned()));
        first
    }

    /// Applies an event.
    pub(super) fn apply_event(&mut self, event: &Event, now: Millis) -> MicrovmUpdate {
        self.events_applied += 1;
        match &event.kind {
            EventKind::Phase(phase) => {
                self.phase = *phase;
                self.apply_phase(*phase, now)
            }
            EventKind::Runner(mark) => self.apply_mark(mark, now),
            EventKind::Ended(outcome) => MicrovmUpdate::Ended(Box::new(outcome.clone())),
            EventKind::Reached(report) => {
                self.reached = Some(egress(report));
                MicrovmUpdate::NoAction
            }
            EventKind::Interrupted(request) => {
                self.interrupted.get_or_insert_with(|| request.reason.clone());
                MicrovmUpdate::NoAction
            }
            EventKind::Greeted { .. } | EventKind::Egress(_) | EventKind::Unknown(_) => {
                MicrovmUpdate::NoAction
            }
        }
    }

    fn apply_phase(&mut self, phase: Phase, now: Millis) -> MicrovmUpdate {
        match (phase, &self.assignment) {
            (Phase::Ready, Assignment::None) if self.stage == Stage::Booting => {
                self.enter(Stage::Warm, now);
                MicrovmUpdate::Warm
            }
            (Phase::Running, Assignment::Local(_)) => {
                // The job may have started before the command to end arrived.
                if self.stage != Stage::Ending {
                    self.enter(Stage::Busy, now);
                }
                MicrovmUpdate::Started
            }
            (Phase::Running, Assignment::Runner(_)) => MicrovmUpdate::Started,
            (Phase::Finished | Phase::Failed | Phase::Destroyed, _) => {
                self.ended_at.get_or_insert(now);
                self.enter(Stage::Ending, now);
                MicrovmUpdate::NoAction
            }
            _ => MicrovmUpdate::NoAction,
        }
    }

    /// Records the forge's report that its runner has a job.
    pub(super) fn record_job(&mut self, name: &str, now: Millis) {
        let gone = self.end_requested_at.is_some() || self.phase > Phase::Running;
        let Assignment::Runner(runner) = &mut self.assignment else { return };
        if !gone && runner.job.is_none() {
            runner.job = Some(name.to_owned());
            // If it was being retired, it keeps the job.
            self.end_reason = None;
            self.enter(Stage::Busy, now);
        }
    }

    fn apply_mark(&mut self, mark: &RunnerProgress, now: Millis) -> MicrovmUpdate {
        let over = self.phase > Phase::Running;
        let Assignment::Runner(runner) = &mut self.assignment else {
            return MicrovmUpdate::NoAction;
        };
        self.retrying_since = match mark {
            RunnerProgress::Retrying => Some(self.retrying_since.unwrap_or(now)),
            _ => None,
        };
        match mark {
            _ if over => MicrovmUpdate::NoAction,
            RunnerProgress::Listening if runner.job.is_none() => {
                if self.stage == Stage::Registering {
                    self.enter(Stage::Registered, now);
                }
                MicrovmUpdate::Listening
            }
            RunnerProgress::Running { job } if runner.job.is_none() => {
                runner.job = Some(job.clone());
                // If it was being retired, it keeps the job. The forge reports the same.
                if self.end_requested_at.is_none() {
                    self.end_reason = None;
                }
                self.enter(Stage::Busy, now);
                MicrovmUpdate::TookJob(job.clone())
            }
            RunnerProgress::Completed { result, .. } => {
                runner.result = Some(*result);
                MicrovmUpdate::NoAction
            }
            _ => MicrovmUpdate::NoAction,
        }
    }
}

/// The result of a local job after its microVM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum JobVerdict {
    /// It ended by itself.
    Finished { exit_code: u8, result: String },
    /// It never started, and can be assigned to another microVM.
    Retry { cause: String },
    /// It started and is lost, or it can't start anywhere.
    Failed { exit_code: u8, cause: String },
}

/// Determines the result of a local job from the end of its microVM. `program` is the name of the
/// job's program.
pub(crate) fn job_verdict(outcome: &JobOutcome, started: bool, program: &str) -> JobVerdict {
    match outcome {
        JobOutcome::Job { status: JobExit::Code(code), .. } => {
            JobVerdict::Finished { exit_code: *code, result: format!("exit {code}") }
        }
        JobOutcome::Job { status: JobExit::Signal(number), .. } => JobVerdict::Finished {
            exit_code: 128_u8.saturating_add(*number),
            result: format!("signal {number}"),
        },
        JobOutcome::Job { status: JobExit::NotStarted(why), .. } => {
            let (code, cause) = describe_start_failure(why, program);
            JobVerdict::Failed { exit_code: code as u8, cause }
        }
        JobOutcome::Failed(FailureReport { message, code, .. }) if started => {
            JobVerdict::Failed { exit_code: *code, cause: message.clone() }
        }
        JobOutcome::Failed(FailureReport { message, .. }) => {
            JobVerdict::Retry { cause: message.clone() }
        }
    }
}

/// Converts an egress report for the ledger.
pub(super) fn egress(report: &EgressReport) -> EgressSummary {
    let destination = |row: &EgressRow| DestinationRecord {
        host: row.host.clone(),
        port: row.port,
        verdict: row.verdict.clone(),
        cause: row.cause.clone(),
        connections: row.connections,
        up: row.up,
        down: row.down,
    };
    let EgressTotals { allowed, would_refuse, refused } = report.totals();
    let all = [allowed, would_refuse, refused];
    let sum = |of: fn(EgressTotal) -> u64| all.into_iter().map(of).fold(0, u64::saturating_add);
    EgressSummary {
        verdicts: VerdictTotals {
            allowed: allowed.connections,
            refused: refused.connections,
            would_refuse: would_refuse.connections,
            up: sum(|total| total.up),
            down: sum(|total| total.down),
            omitted: report.omitted,
            unrecorded: report.unrecorded,
        },
        destinations: report.rows.iter().map(destination).collect(),
    }
}
