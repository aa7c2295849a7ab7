//! One microVM as the daemon knows it, and what an event of its shepherd changes. Pure.

use std::time::Duration;

use mayfly_protocol::message::{JobStatus, NotStarted};

use super::overdue::{Patience, REGISTERING};
use crate::daemon::decide::{JobKey, Load, Machine, MachineKey, PoolId, Stage};
use crate::daemon::millis::Millis;
use crate::egress::record::{Report, Row, Total, Totals};
use crate::failure::Code;
use crate::ledger::{Destination, Egress, Verdicts};
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::Id;
use crate::shepherd::runner::{JobResult, RunnerMark};

/// A microVM that is not gone.
#[derive(Debug)]
pub(in crate::daemon) struct Microvm {
    pub(super) key: MachineKey,
    /// Its name; none until it is planned.
    pub(super) id: Option<Id>,
    /// Its pool, which the settings may no longer have.
    pub(super) pool: PoolId,
    pub(super) pool_name: String,
    pub(super) load: Load,
    pub(super) stage: Stage,
    pub(super) since: Millis,
    pub(super) work: Work,
    /// Events that were taken in; those that a re-attached shepherd tells again are fewer.
    pub(super) heard: usize,
    /// The last phase that the shepherd told.
    pub(super) phase: Phase,
    /// When its local job is to be ended.
    pub(super) deadline: Option<Millis>,
    /// How long its phases may last.
    pub(super) patience: Patience,
    /// Whether its shepherd interrupted its job.
    pub(super) interrupted: bool,
    /// Since when its runner can't reach the forge, by its own word.
    pub(super) retrying: Option<Millis>,
    /// Whether it is ended because its runner did not do what it is there for.
    pub(super) failed: bool,
    /// When it was told to end.
    pub(super) told_to_end: Option<Millis>,
    /// When it began to end by itself.
    pub(super) over: Option<Millis>,
    /// When it was last killed.
    pub(super) killed: Option<Millis>,
    /// When its job was reported as completed, by the forge.
    pub(super) completed: Option<Millis>,
    /// Why the daemon ends it, where it does.
    pub(super) ended_for: Option<String>,
    /// Whether it ended as it was told to, by its own word: whoever told it may be gone.
    pub(super) obeyed: bool,
    /// What its job reached so far. At the end the ledger has it.
    pub(super) reached: Option<Egress>,
}

/// What a microVM is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum Work {
    /// Nothing yet.
    None,
    /// A job of the daemon's own queue.
    Local(JobKey),
    /// A runner of the forge's.
    Runner(Runner),
}

/// A runner in a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct Runner {
    /// Its name at the forge.
    pub(in crate::daemon) name: String,
    /// Its number at the forge, once it has one.
    pub(in crate::daemon) id: Option<u64>,
    /// The job that it took, as it calls it.
    pub(in crate::daemon) job: Option<String>,
    /// What came of that job, as it says.
    pub(in crate::daemon) result: Option<JobResult>,
}

/// What an event means to the daemon.
#[derive(Debug, PartialEq)]
pub(in crate::daemon) enum News {
    /// Nothing that is acted upon.
    Nothing,
    /// It can be given work.
    Warm,
    /// Its job, or its runner, runs.
    Started,
    /// Its runner waits for a job.
    Listening,
    /// Its runner took a job.
    TookJob(String),
    /// It is over.
    Ended(Box<Outcome>),
}

impl Microvm {
    pub(in crate::daemon) fn key(&self) -> MachineKey {
        self.key
    }

    pub(in crate::daemon) fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }

    pub(in crate::daemon) fn pool(&self) -> PoolId {
        self.pool
    }

    pub(in crate::daemon) fn pool_name(&self) -> &str {
        &self.pool_name
    }

    pub(in crate::daemon) fn load(&self) -> Load {
        self.load
    }

    pub(in crate::daemon) fn stage(&self) -> Stage {
        self.stage
    }

    pub(in crate::daemon) fn since(&self) -> Millis {
        self.since
    }

    pub(in crate::daemon) fn work(&self) -> &Work {
        &self.work
    }

    /// Its runner, where it has one.
    pub(in crate::daemon) fn runner(&self) -> Option<&Runner> {
        match &self.work {
            Work::Runner(runner) => Some(runner),
            Work::None | Work::Local(_) => None,
        }
    }

    /// The last phase that its shepherd told.
    pub(in crate::daemon) fn phase(&self) -> Phase {
        self.phase
    }

    /// Why the daemon ends it, where it does.
    pub(in crate::daemon) fn ended_for(&self) -> Option<&str> {
        self.ended_for.as_deref()
    }

    /// Since when its runner can't reach the forge, by its own word.
    pub(in crate::daemon) fn retrying(&self) -> Option<Millis> {
        self.retrying
    }

    /// Whether its shepherd interrupted its job.
    pub(in crate::daemon) fn was_interrupted(&self) -> bool {
        self.interrupted
    }

    /// Until when its runner waits for a job, or to be one that does.
    pub(in crate::daemon) fn claim_ends(&self, claim: Duration) -> Option<Millis> {
        match self.stage {
            Stage::Registering => Some(self.since + REGISTERING),
            Stage::Registered => Some(self.since + claim),
            _ => None,
        }
    }

    /// What its job reached so far.
    pub(in crate::daemon) fn reached(&self) -> Option<&Egress> {
        self.reached.as_ref()
    }

    /// Whether it ended otherwise than a daemon wanted, this one or one before it. One that had to be
    /// killed, or was ended for what it failed to do, did.
    pub(in crate::daemon) fn was_unexpected(&self) -> bool {
        (self.ended_for.is_none() && !self.obeyed) || self.killed.is_some() || self.failed
    }
}

impl Microvm {
    /// One that is to be booted.
    pub(super) fn new(
        key: MachineKey,
        pool: PoolId,
        pool_name: &str,
        load: Load,
        now: Millis,
    ) -> Self {
        Self {
            key,
            id: None,
            pool,
            pool_name: pool_name.to_owned(),
            load,
            stage: Stage::Booting,
            since: now,
            work: Work::None,
            heard: 0,
            phase: Phase::Planned,
            deadline: None,
            patience: Patience::default(),
            interrupted: false,
            retrying: None,
            failed: false,
            told_to_end: None,
            over: None,
            killed: None,
            completed: None,
            ended_for: None,
            obeyed: false,
            reached: None,
        }
    }

    /// What the decisions see of it.
    pub(super) fn machine(&self) -> Machine {
        Machine {
            key: self.key,
            pool: self.pool,
            load: self.load,
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

    /// Takes in an event.
    pub(super) fn hear(&mut self, event: &Event, now: Millis) -> News {
        self.heard += 1;
        match &event.happened {
            Happened::Phase(phase) => {
                self.phase = *phase;
                self.phase_began(*phase, now)
            }
            Happened::Runner(mark) => self.mark(mark, now),
            Happened::Ended(outcome) => News::Ended(Box::new(outcome.clone())),
            Happened::Reached(report) => {
                self.reached = Some(egress(report));
                News::Nothing
            }
            Happened::Interrupted(_) => {
                self.interrupted = true;
                News::Nothing
            }
            Happened::Greeted { .. } | Happened::Egress(_) | Happened::Unknown(_) => News::Nothing,
        }
    }

    fn phase_began(&mut self, phase: Phase, now: Millis) -> News {
        match (phase, &self.work) {
            (Phase::Ready, Work::None) if self.stage == Stage::Booting => {
                self.enter(Stage::Warm, now);
                News::Warm
            }
            (Phase::Running, Work::Local(_)) => {
                // One that was told to end may have begun before it heard that.
                if self.stage != Stage::Ending {
                    self.enter(Stage::Busy, now);
                }
                News::Started
            }
            (Phase::Running, Work::Runner(_)) => News::Started,
            (Phase::Finished | Phase::Failed | Phase::Destroyed, _) => {
                self.over.get_or_insert(now);
                self.enter(Stage::Ending, now);
                News::Nothing
            }
            _ => News::Nothing,
        }
    }

    /// Its runner has a job, by the word of whom the job comes from.
    pub(super) fn has_job(&mut self, name: &str, now: Millis) {
        let gone = self.told_to_end.is_some() || self.phase > Phase::Running;
        let Work::Runner(runner) = &mut self.work else { return };
        if !gone && runner.job.is_none() {
            runner.job = Some(name.to_owned());
            // One that is being retired has won the race.
            self.ended_for = None;
            self.enter(Stage::Busy, now);
        }
    }

    fn mark(&mut self, mark: &RunnerMark, now: Millis) -> News {
        let over = self.phase > Phase::Running;
        let Work::Runner(runner) = &mut self.work else { return News::Nothing };
        self.retrying = match mark {
            RunnerMark::Retrying => Some(self.retrying.unwrap_or(now)),
            _ => None,
        };
        match mark {
            _ if over => News::Nothing,
            RunnerMark::Listening if runner.job.is_none() => {
                if self.stage == Stage::Registering {
                    self.enter(Stage::Registered, now);
                }
                News::Listening
            }
            RunnerMark::Running { job } if runner.job.is_none() => {
                runner.job = Some(job.clone());
                // One that is being retired has won the race: the forge says so, too.
                self.enter(Stage::Busy, now);
                News::TookJob(job.clone())
            }
            RunnerMark::Completed { result, .. } => {
                runner.result = Some(*result);
                News::Nothing
            }
            _ => News::Nothing,
        }
    }
}

/// How a local job came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) enum Verdict {
    /// It ended by itself.
    Finished { exit_code: u8, result: String },
    /// It never began, and can be given to another microVM.
    Again { cause: String },
    /// It began, or can't ever begin, and is lost.
    Failed { exit_code: u8, cause: String },
}

/// What the end of a microVM means for the local job that it was given.
pub(in crate::daemon) fn verdict(outcome: &Outcome, started: bool) -> Verdict {
    match outcome {
        Outcome::Job { status: JobStatus::Code(code), .. } => {
            Verdict::Finished { exit_code: *code, result: format!("exit {code}") }
        }
        Outcome::Job { status: JobStatus::Signal(number), .. } => Verdict::Finished {
            exit_code: 128_u8.saturating_add(*number),
            result: format!("signal {number}"),
        },
        Outcome::Job { status: JobStatus::NotStarted(why), .. } => not_started(why),
        Outcome::Failed(FailureReport { message, code, .. }) if started => {
            Verdict::Failed { exit_code: *code, cause: message.clone() }
        }
        Outcome::Failed(FailureReport { message, .. }) => Verdict::Again { cause: message.clone() },
    }
}

fn not_started(why: &NotStarted) -> Verdict {
    let (code, cause) = match why {
        NotStarted::CommandNotFound => {
            (Code::CommandNotFound, "there is no such command in the image".to_owned())
        }
        NotStarted::CommandNotExecutable(why) => {
            (Code::CommandNotExecutable, format!("the command can't be executed: {why}"))
        }
        NotStarted::UserNotFound(user) => {
            (Code::NotFound, format!("there is no user {user:?} in the image"))
        }
        NotStarted::DirectoryNotEntered(why) => {
            (Code::NotFound, format!("can't start in the working directory: {why}"))
        }
        NotStarted::CopyInFailed(_, why) | NotStarted::Other(why) => {
            (Code::MachineFailed, format!("the command did not start: {why}"))
        }
    };
    Verdict::Failed { exit_code: code as u8, cause }
}

/// What a report says, as the ledger keeps it.
pub(super) fn egress(report: &Report) -> Egress {
    let destination = |row: &Row| Destination {
        host: row.host.clone(),
        port: row.port,
        verdict: row.verdict.clone(),
        cause: row.cause.clone(),
        connections: row.connections,
        up: row.up,
        down: row.down,
    };
    let Totals { allowed, would_refuse, refused } = report.totals();
    let all = [allowed, would_refuse, refused];
    let sum = |of: fn(Total) -> u64| all.into_iter().map(of).fold(0, u64::saturating_add);
    Egress {
        verdicts: Verdicts {
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
