//! The lives of shepherds in memory: what each of them recorded, the orders that it has, its job. They
//! go on when the daemon does not. How a daemon reaches them is in [`super::shepherds`].

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mayfly_protocol::message::{Job, JobStatus};
use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::{Call, Fault, Faults};
use super::forge::{FakeForge, START};
use crate::shepherd::cause::Cause;
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::{Id, Order, Plan};
use crate::shepherd::runner::{JobResult, RunnerMark};

/// How long a boot, a claim and the end of a process take here.
const BOOT: Duration = Duration::from_secs(3);
const CLAIM: Duration = Duration::from_millis(200);
const EXIT: Duration = Duration::from_millis(50);

/// The host.
#[derive(Debug)]
pub(in crate::daemon) struct FakeHost {
    state: Mutex<State>,
    pub(super) changes: watch::Sender<u64>,
    pub(super) faults: Arc<Faults>,
    forge: Arc<FakeForge>,
    /// How long each job takes.
    job: Duration,
    /// How long a runner tries in vain to reach the forge, and what it ends with then.
    outage: Mutex<Option<Outage>>,
}

/// How long, and the status; none that ends by itself, if none.
type Outage = (Duration, Option<u8>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) machines: BTreeMap<Id, Machine>,
    pub(super) planned: u64,
    ran: Vec<String>,
    tasks: tokio::task::JoinSet<()>,
}

/// One shepherd.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) plan: Plan,
    pub(super) events: Vec<Event>,
    pub(super) alive: bool,
    /// Stopped as by SIGSTOP.
    pub(super) stopped: bool,
    killed: bool,
    pub(super) acknowledged: u64,
    pub(super) orders: VecDeque<Order>,
    /// The newest connection.
    pub(super) connection: u64,
}

/// Why a life is over before its time.
enum Over {
    Killed,
    Told,
}

impl FakeHost {
    pub(in crate::daemon) fn new(
        faults: Arc<Faults>,
        forge: Arc<FakeForge>,
        job: Duration,
    ) -> Arc<Self> {
        let changes = watch::Sender::new(0);
        let (state, outage) = (Mutex::default(), Mutex::default());
        Arc::new(Self { state, changes, faults, forge, job, outage })
    }

    /// Runners that start from here on can't reach the forge, or can.
    pub(in crate::daemon) fn outage(&self, outage: Option<Outage>) {
        *self.outage.lock().unwrap_or_else(PoisonError::into_inner) = outage;
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// What is left: the names of shepherds that live or were not put away.
    pub(in crate::daemon) fn left(&self) -> Vec<String> {
        self.state().machines.keys().map(ToString::to_string).collect()
    }

    /// The marks of local jobs, as often as each ran.
    pub(in crate::daemon) fn ran(&self) -> Vec<String> {
        self.state().ran.clone()
    }

    /// The phases that living shepherds are in.
    pub(in crate::daemon) fn phases(&self) -> Vec<Phase> {
        let state = self.state();
        let living = state.machines.values().filter(|machine| machine.alive);
        let phase = |machine: &Machine| {
            let mut events = machine.events.iter().rev();
            events.find_map(|event| match event.happened {
                Happened::Phase(phase) => Some(phase),
                _ => None,
            })
        };
        living.filter_map(phase).collect()
    }

    /// Stops all shepherds, or lets them go on.
    pub(in crate::daemon) fn stop(&self, stopped: bool) {
        self.state().machines.values_mut().for_each(|machine| machine.stopped = stopped);
        self.changed();
    }

    /// Breaks all connections.
    pub(in crate::daemon) fn disconnect(&self) {
        self.state().machines.values_mut().for_each(|machine| machine.connection += 1);
        self.changed();
    }

    /// What the policies of all microVMs say of a name, on port 443.
    pub(in crate::daemon) fn lets_pass(&self, name: &str) -> Vec<bool> {
        let host = crate::egress::host::Host::parse(name).unwrap();
        let passes = |machine: &Machine| machine.plan.egress.decide(&host, 443).verdict.passes();
        self.state().machines.values().map(passes).collect()
    }

    /// How many living shepherds are stopped.
    pub(in crate::daemon) fn stopped(&self) -> usize {
        self.state().machines.values().filter(|machine| machine.alive && machine.stopped).count()
    }

    pub(super) fn kill(&self, id: &Id) -> io::Result<()> {
        // One that is gone already is none to fail with.
        if !self.state().machines.get(id).is_some_and(|machine| machine.alive) {
            return Ok(());
        }
        let fault = self.faults.at(Call::Kill);
        if fault.is_none_or(Fault::has_effect)
            && let Some(machine) = self.state().machines.get_mut(id)
        {
            machine.killed = true;
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

    /// Whether any shepherd lives.
    pub(in crate::daemon) fn lives(&self) -> bool {
        self.state().machines.values().any(|machine| machine.alive)
    }

    pub(super) fn begin(self: &Arc<Self>, plan: &Plan) -> bool {
        let mut state = self.state();
        if state.machines.contains_key(&plan.id) {
            return false;
        }
        let machine = Machine {
            plan: plan.clone(),
            events: Vec::new(),
            alive: true,
            stopped: false,
            killed: false,
            acknowledged: 0,
            orders: VecDeque::new(),
            connection: 0,
        };
        state.machines.insert(plan.id.clone(), machine);
        state.tasks.spawn(live(self.clone(), plan.id.clone()));
        true
    }

    fn tell(&self, id: &Id, happened: Happened) {
        if let Some(machine) = self.state().machines.get_mut(id) {
            machine.events.push(Event::now(id, machine.plan.asked, happened));
        }
        self.changed();
    }

    /// Whether the life goes on, and whether it stands still.
    fn look(&self, id: &Id) -> Result<bool, Over> {
        match self.state().machines.get(id) {
            None => Err(Over::Killed),
            Some(machine) if machine.killed => Err(Over::Killed),
            Some(machine) if machine.stopped => Ok(true),
            Some(machine) if machine.orders.iter().any(ends) => Err(Over::Told),
            Some(_) => Ok(false),
        }
    }

    /// Lets so much time pass in a life.
    async fn pass(&self, id: &Id, time: Duration) -> Result<(), Over> {
        let mut changes = self.changes.subscribe();
        let mut left = time;
        while !left.is_zero() {
            changes.mark_unchanged();
            if self.look(id)? {
                let _ = changes.changed().await;
                continue;
            }
            let begun = Instant::now();
            tokio::select! {
                () = tokio::time::sleep(left) => {}
                _ = changes.changed() => {}
            }
            left = left.saturating_sub(begun.elapsed());
        }
        // What stopped it in the last moment stops it.
        while self.look(id)? {
            let _ = changes.changed().await;
        }
        Ok(())
    }

    async fn started(&self, id: &Id) -> Result<Job, Over> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if !self.look(id)?
                && let Some(machine) = self.state().machines.get_mut(id)
                && let Some(Order::Start(job)) = machine.orders.pop_front()
            {
                return Ok(*job);
            }
            let _ = changes.changed().await;
        }
    }

    /// Gives what the job ended with.
    async fn serve(&self, id: &Id) -> Result<u8, Over> {
        for phase in [Phase::Planned, Phase::Prepared, Phase::Booting] {
            self.tell(id, Happened::Phase(phase));
        }
        self.pass(id, BOOT).await?;
        self.tell(id, Happened::Phase(Phase::Ready));
        let job = self.started(id).await?;
        self.tell(id, Happened::Phase(Phase::Claimed));
        self.pass(id, CLAIM).await?;
        let words = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut values = job.environment.iter().map(|(_, value)| words(value.as_slice()));
        let runner = values.find_map(|value| value.strip_prefix(START).map(str::to_owned));
        self.tell(id, Happened::Phase(Phase::Running));
        let mut status = 0;
        if let Some(runner) = runner {
            status = self.run(id, &runner).await?;
        } else {
            let mark = job.arguments.first().map(|word| words(word.as_slice()));
            self.state().ran.extend(mark);
            self.pass(id, self.job).await?;
        }
        self.tell(id, Happened::Phase(Phase::Finished));
        Ok(status)
    }

    async fn run(&self, id: &Id, runner: &str) -> Result<u8, Over> {
        let outage = *self.outage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((time, status)) = outage {
            self.tell(id, Happened::Runner(RunnerMark::Retrying));
            self.pass(id, time).await?;
            return Ok(status.unwrap_or(1));
        }
        self.tell(id, Happened::Runner(RunnerMark::Listening));
        let waits = async {
            loop {
                if let Err(over) = self.pass(id, Duration::from_secs(1 << 20)).await {
                    return over;
                }
            }
        };
        let (number, job) = tokio::select! {
            given = self.forge.job_for(runner) => given,
            over = waits => return Err(over),
        };
        self.tell(id, Happened::Runner(RunnerMark::Running { job: job.clone() }));
        let passed = self.pass(id, self.job).await;
        self.forge.over(number, if passed.is_ok() { "success" } else { "failure" });
        passed?;
        let result = JobResult::Succeeded;
        self.tell(id, Happened::Runner(RunnerMark::Completed { job, result }));
        Ok(0)
    }
}

/// Whether an order ends the microVM. A runner here ends as soon as it is told.
fn ends(order: &Order) -> bool {
    matches!(order, Order::End | Order::Farewell(_))
}

/// The life of a shepherd.
async fn live(host: Arc<FakeHost>, id: Id) {
    let outcome = match host.serve(&id).await {
        Ok(status) => {
            let status = JobStatus::Code(status);
            Some(Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 })
        }
        Err(Over::Told) => {
            let (cause, message) = (Cause::Ended.name().to_owned(), Cause::Ended.to_string());
            Some(Outcome::Failed(FailureReport { cause, message, ..FailureReport::default() }))
        }
        Err(Over::Killed) => None,
    };
    if let Some(outcome) = outcome {
        host.tell(&id, Happened::Ended(outcome));
        tokio::time::sleep(EXIT).await;
    }
    if let Some(machine) = host.state().machines.get_mut(&id) {
        machine.alive = false;
    }
    host.changed();
}
