//! Simulated shepherds in memory: their recorded events, their commands, their jobs. They continue
//! without the daemon. [`super::shepherds`] has the daemon's access to them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mayfly_protocol::message::{Job, JobExit};
use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::{DriverCall, Fault, Faults};
use super::forge::{FakeForge, START};
use mayfly_shepherd::cause::FailureCause;
use mayfly_shepherd::event::{Event, EventKind, FailureReport, JobOutcome, Phase};
use mayfly_shepherd::plan::{InterruptRequest, MicrovmId, MicrovmPlan, ShepherdCommand};
use mayfly_shepherd::runner::{RunnerProgress, RunnerResult};

/// How long a boot, a claim and the exit of a process take here.
const BOOT: Duration = Duration::from_secs(3);
const CLAIM: Duration = Duration::from_millis(200);
const EXIT: Duration = Duration::from_millis(50);
/// How long an interrupted runner takes to end its job and report it.
const FAREWELL: Duration = Duration::from_secs(2);

/// The host.
#[derive(Debug)]
pub(crate) struct FakeHost {
    state: Mutex<State>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) faults: Arc<Faults>,
    forge: Arc<FakeForge>,
    /// How long each job takes.
    job: Duration,
    /// How long a runner tries to reach the forge during an outage, and its exit status then.
    outage: Mutex<Option<Outage>>,
}

/// The duration, and the exit status; `None` if the runner does not end by itself.
type Outage = (Duration, Option<u8>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) shepherds: BTreeMap<MicrovmId, FakeShepherd>,
    pub(super) planned: u64,
    ran: Vec<String>,
    tasks: tokio::task::JoinSet<()>,
}

/// One shepherd.
#[derive(Debug)]
pub(super) struct FakeShepherd {
    pub(super) plan: MicrovmPlan,
    pub(super) events: Vec<Event>,
    pub(super) alive: bool,
    /// Stopped as by SIGSTOP.
    pub(super) stopped: bool,
    killed: bool,
    pub(super) acknowledged: u64,
    pub(super) commands: VecDeque<ShepherdCommand>,
    /// The newest connection.
    pub(super) connection: u64,
}

/// Why a shepherd ends early.
enum EarlyEnd {
    Killed,
    Commanded,
}

impl FakeHost {
    pub(crate) fn new(faults: Arc<Faults>, forge: Arc<FakeForge>, job: Duration) -> Arc<Self> {
        let changes = watch::Sender::new(0);
        let (state, outage) = (Mutex::default(), Mutex::default());
        Arc::new(Self { state, changes, faults, forge, job, outage })
    }

    /// Starts or ends an outage of the forge for runners that start from now on.
    pub(crate) fn set_outage(&self, outage: Option<Outage>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Returns the ids of shepherds that run or whose directories exist.
    pub(crate) fn remaining(&self) -> Vec<String> {
        self.state().shepherds.keys().map(ToString::to_string).collect()
    }

    /// Returns the marks of local jobs, one for each run.
    pub(crate) fn runs(&self) -> Vec<String> {
        self.state().ran.clone()
    }

    /// Returns the phases of the running shepherds.
    pub(crate) fn phases(&self) -> Vec<Phase> {
        let state = self.state();
        let running = state.shepherds.values().filter(|shepherd| shepherd.alive);
        let phase = |shepherd: &FakeShepherd| {
            let mut events = shepherd.events.iter().rev();
            events.find_map(|event| match event.kind {
                EventKind::Phase(phase) => Some(phase),
                _ => None,
            })
        };
        running.filter_map(phase).collect()
    }

    /// Returns the requests to interrupt jobs that the shepherds received.
    pub(crate) fn interrupts(&self) -> Vec<InterruptRequest> {
        let state = self.state();
        let commands = state.shepherds.values().flat_map(|shepherd| &shepherd.commands);
        let interrupt = |command: &ShepherdCommand| match command {
            ShepherdCommand::Interrupt(request) => Some(request.clone()),
            _ => None,
        };
        commands.filter_map(interrupt).collect()
    }

    /// Returns the request to interrupt a microVM's job, if its shepherd received one.
    fn interrupt_of(&self, id: &MicrovmId) -> Option<InterruptRequest> {
        let state = self.state();
        state.shepherds.get(id)?.commands.iter().find_map(|command| match command {
            ShepherdCommand::Interrupt(request) => Some(request.clone()),
            _ => None,
        })
    }

    /// Stops or continues all shepherds.
    pub(crate) fn set_stopped(&self, stopped: bool) {
        self.state().shepherds.values_mut().for_each(|shepherd| shepherd.stopped = stopped);
        self.changed();
    }

    /// Breaks all connections.
    pub(crate) fn disconnect(&self) {
        self.state().shepherds.values_mut().for_each(|shepherd| shepherd.connection += 1);
        self.changed();
    }

    /// Returns for each microVM whether its policy allows a name on port 443.
    pub(crate) fn policy_allows(&self, name: &str) -> Vec<bool> {
        let host = mayfly_egress::host::Host::parse(name).unwrap();
        let passes =
            |shepherd: &FakeShepherd| shepherd.plan.egress.decide(&host, 443).verdict.passes();
        self.state().shepherds.values().map(passes).collect()
    }

    /// Returns the number of stopped shepherds.
    pub(crate) fn stopped_count(&self) -> usize {
        self.state()
            .shepherds
            .values()
            .filter(|shepherd| shepherd.alive && shepherd.stopped)
            .count()
    }

    pub(super) fn kill(&self, id: &MicrovmId) -> io::Result<()> {
        // A shepherd that has ended is not an error.
        if !self.state().shepherds.get(id).is_some_and(|shepherd| shepherd.alive) {
            return Ok(());
        }
        let fault = self.faults.at(DriverCall::Kill);
        if fault.is_none_or(Fault::has_effect)
            && let Some(shepherd) = self.state().shepherds.get_mut(id)
        {
            shepherd.killed = true;
        }
        self.changed();
        match fault {
            Some(Fault::Error) => Err(io::ErrorKind::PermissionDenied.into()),
            Some(Fault::KilledBefore | Fault::KilledAfter) => {
                self.faults.kill();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Returns whether any shepherd runs.
    pub(crate) fn has_running(&self) -> bool {
        self.state().shepherds.values().any(|shepherd| shepherd.alive)
    }

    pub(super) fn begin(self: &Arc<Self>, plan: &MicrovmPlan) -> bool {
        let mut state = self.state();
        if state.shepherds.contains_key(&plan.id) {
            return false;
        }
        let shepherd = FakeShepherd {
            plan: plan.clone(),
            events: Vec::new(),
            alive: true,
            stopped: false,
            killed: false,
            acknowledged: 0,
            commands: VecDeque::new(),
            connection: 0,
        };
        state.shepherds.insert(plan.id.clone(), shepherd);
        state.tasks.spawn(run_shepherd(self.clone(), plan.id.clone()));
        true
    }

    fn record(&self, id: &MicrovmId, kind: EventKind) {
        if let Some(shepherd) = self.state().shepherds.get_mut(id) {
            shepherd.events.push(Event::now(id, shepherd.plan.requested_at, kind));
        }
        self.changed();
    }

    /// Returns whether the shepherd is stopped, or why it ends.
    fn is_stopped(&self, id: &MicrovmId) -> Result<bool, EarlyEnd> {
        match self.state().shepherds.get(id) {
            None => Err(EarlyEnd::Killed),
            Some(shepherd) if shepherd.killed => Err(EarlyEnd::Killed),
            Some(shepherd) if shepherd.stopped => Ok(true),
            Some(shepherd) if shepherd.commands.iter().any(is_end_command) => {
                Err(EarlyEnd::Commanded)
            }
            Some(_) => Ok(false),
        }
    }

    /// Lets time pass for a shepherd.
    async fn pass(&self, id: &MicrovmId, time: Duration) -> Result<(), EarlyEnd> {
        let mut changes = self.changes.subscribe();
        let mut left = time;
        while !left.is_zero() {
            changes.mark_unchanged();
            if self.is_stopped(id)? {
                let _ = changes.changed().await;
                continue;
            }
            let started = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = changes.changed() => {}
            }
            left = left.saturating_sub(started.elapsed());
        }
        // It may have been stopped at the last moment.
        while self.is_stopped(id)? {
            let _ = changes.changed().await;
        }
        Ok(())
    }

    async fn next_job(&self, id: &MicrovmId) -> Result<Job, EarlyEnd> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if !self.is_stopped(id)?
                && let Some(shepherd) = self.state().shepherds.get_mut(id)
                && let Some(ShepherdCommand::Start(job)) = shepherd.commands.pop_front()
            {
                return Ok(*job);
            }
            let _ = changes.changed().await;
        }
    }

    /// Returns the exit status of the job.
    async fn run_to_end(&self, id: &MicrovmId) -> Result<u8, EarlyEnd> {
        for phase in [Phase::Planned, Phase::Prepared, Phase::Booting] {
            self.record(id, EventKind::Phase(phase));
        }
        self.pass(id, BOOT).await?;
        self.record(id, EventKind::Phase(Phase::Ready));
        let job = self.next_job(id).await?;
        self.record(id, EventKind::Phase(Phase::Claimed));
        self.pass(id, CLAIM).await?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut values = job.environment.iter().map(|(_, value)| words(value.as_slice()));
        let runner = values.find_map(|value| value.strip_prefix(START).map(str::to_owned));
        self.record(id, EventKind::Phase(Phase::Running));
        let mut status = 0;
        if let Some(runner) = runner {
            status = self.run(id, &runner).await?;
        } else {
            let mark = job.arguments.first().map(|word| words(word.as_slice()));
            self.state().ran.extend(mark);
            self.pass(id, self.job).await?;
        }
        self.record(id, EventKind::Phase(Phase::Finished));
        Ok(status)
    }

    async fn run(&self, id: &MicrovmId, runner: &str) -> Result<u8, EarlyEnd> {
        let outage = *self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, status)) = outage {
            self.record(id, EventKind::Runner(RunnerProgress::Retrying));
            self.pass(id, time).await?;
            return Ok(status.unwrap_or(1));
        }
        self.record(id, EventKind::Runner(RunnerProgress::Listening));
        let waits = async {
            loop {
                if let Err(end) = self.pass(id, Duration::from_secs(1 << 20)).await {
                    return end;
                }
            }
        };
        let (number, job) = tokio::select! {
            given = self.forge.job_for(runner) => given,
            end = waits => return Err(end),
        };
        self.record(id, EventKind::Runner(RunnerProgress::Running { job: job.clone() }));
        let passed = self.pass(id, self.job).await;
        if let Some(request) = self.interrupt_of(id) {
            self.record(id, EventKind::Interrupted(request));
            tokio::time::sleep(FAREWELL).await;
        }
        self.forge.end_job(number, if passed.is_ok() { "success" } else { "failure" });
        passed?;
        let result = RunnerResult::Succeeded;
        self.record(id, EventKind::Runner(RunnerProgress::Completed { job, result }));
        Ok(0)
    }
}

/// Returns whether a command ends the microVM. A runner here ends as soon as it is interrupted.
fn is_end_command(command: &ShepherdCommand) -> bool {
    matches!(command, ShepherdCommand::End | ShepherdCommand::Interrupt(_))
}

/// Runs a shepherd.
async fn run_shepherd(host: Arc<FakeHost>, id: MicrovmId) {
    let outcome = match host.run_to_end(&id).await {
        Ok(status) => {
            let status = JobExit::Code(status);
            Some(JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 })
        }
        Err(EarlyEnd::Commanded) => {
            let (cause, message) =
                (FailureCause::Ended.name().to_owned(), FailureCause::Ended.to_string());
            Some(JobOutcome::Failed(FailureReport { cause, message, ..FailureReport::default() }))
        }
        Err(EarlyEnd::Killed) => None,
    };
    if let Some(outcome) = outcome {
        host.record(&id, EventKind::Ended(outcome));
        tokio::time::sleep(EXIT).await;
    }
    if let Some(shepherd) = host.state().shepherds.get_mut(&id) {
        shepherd.alive = false;
    }
    host.changed();
}
