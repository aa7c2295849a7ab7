//! Shepherds in memory: what each of them recorded, the orders that it has, its job. They live on
//! when the daemon does not.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mayfly_protocol::message::{Job, JobStatus};
use tokio::sync::watch;
use tokio::time::Instant;

use super::faults::{Call, Fault, Faults};
use super::forge::{FakeForge, START};
use crate::daemon::decide::Load;
use crate::daemon::fleet::{Left, NotPlanned, Shepherd, Shepherds, Unacknowledged};
use crate::forge::Promise;
use crate::machine::Programs;
use crate::machine::accelerator::Accelerator;
use crate::shepherd::AttachError;
use crate::shepherd::event::{Event, FailureReport, Happened, Outcome, Phase};
use crate::shepherd::plan::{Boot, Id, Order, Plan, monotonic};
use crate::shepherd::planner::Wanted;
use crate::shepherd::runner::{JobResult, RunnerMark};

/// How long a boot, a claim and the end of a process take here.
const BOOT: Duration = Duration::from_secs(3);
const CLAIM: Duration = Duration::from_millis(200);
const EXIT: Duration = Duration::from_millis(50);

/// The host.
#[derive(Debug)]
pub(in crate::daemon) struct FakeHost {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
    faults: Arc<Faults>,
    forge: Arc<FakeForge>,
    /// How long each job takes.
    job: Duration,
}

#[derive(Debug, Default)]
struct State {
    machines: BTreeMap<Id, Machine>,
    planned: u64,
    ran: Vec<String>,
    tasks: tokio::task::JoinSet<()>,
}

/// One shepherd.
#[derive(Debug)]
struct Machine {
    plan: Plan,
    events: Vec<Event>,
    alive: bool,
    /// Stopped as by SIGSTOP.
    stopped: bool,
    killed: bool,
    acknowledged: u64,
    orders: VecDeque<Order>,
    /// The newest connection.
    connection: u64,
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
        Arc::new(Self { state: Mutex::default(), changes, faults, forge, job })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
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

    /// How many living shepherds are stopped.
    pub(in crate::daemon) fn stopped(&self) -> usize {
        self.state().machines.values().filter(|machine| machine.alive && machine.stopped).count()
    }

    fn kill(&self, id: &Id) -> io::Result<()> {
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

    fn begin(self: &Arc<Self>, plan: &Plan) -> bool {
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
            Some(machine) if machine.orders.iter().any(|one| matches!(one, Order::End)) => {
                Err(Over::Told)
            }
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

    async fn serve(&self, id: &Id) -> Result<(), Over> {
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
        if let Some(runner) = runner {
            self.run(id, &runner).await?;
        } else {
            let mark = job.arguments.first().map(|word| words(word.as_slice()));
            self.state().ran.extend(mark);
            self.pass(id, self.job).await?;
        }
        self.tell(id, Happened::Phase(Phase::Finished));
        Ok(())
    }

    async fn run(&self, id: &Id, runner: &str) -> Result<(), Over> {
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
        Ok(())
    }
}

/// The life of a shepherd.
async fn live(host: Arc<FakeHost>, id: Id) {
    let outcome = match host.serve(&id).await {
        Ok(()) => {
            let status = JobStatus::Code(0);
            Some(Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 })
        }
        Err(Over::Told) => {
            let message = "it was told to end".to_owned();
            Some(Outcome::Failed(FailureReport { message, ..FailureReport::default() }))
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

/// A connection to a shepherd.
struct Connection {
    host: Arc<FakeHost>,
    id: Id,
    number: u64,
    told: usize,
    last: u64,
    unacknowledged: Unacknowledged,
}

impl Connection {
    fn open(host: &Arc<FakeHost>, id: &Id) -> Result<Box<dyn Shepherd>, AttachError> {
        let mut state = host.state();
        let machine = state.machines.get_mut(id).ok_or(AttachError::NoDirectory)?;
        if machine.stopped && machine.alive {
            return Err(AttachError::Silent);
        }
        machine.connection += 1;
        let (number, last) = (machine.connection, machine.acknowledged);
        let (host, id) = (host.clone(), id.clone());
        let unacknowledged = Unacknowledged::new();
        Ok(Box::new(Self { host, id, number, told: 0, last, unacknowledged }))
    }

    /// The next event; none where the connection ended; an error where there is none yet.
    fn next(&mut self) -> Result<Option<Event>, ()> {
        let state = self.host.state();
        let Some(machine) = state.machines.get(&self.id) else { return Ok(None) };
        if machine.connection != self.number {
            return Ok(None);
        }
        match machine.events.get(self.told) {
            Some(event) => {
                self.told += 1;
                Ok(Some(event.clone()))
            }
            None if machine.alive => Err(()),
            None => Ok(None),
        }
    }

    /// Gives an order with its number; whether it was received.
    fn give(&self, number: u64, order: &Order) -> bool {
        let mut state = self.host.state();
        let machine = state.machines.get_mut(&self.id);
        let Some(machine) = machine.filter(|one| one.connection == self.number && !one.stopped)
        else {
            return false;
        };
        if number > machine.acknowledged {
            machine.acknowledged = number;
            machine.orders.push_back(order.clone());
        }
        drop(state);
        self.host.changed();
        true
    }
}

impl Shepherd for Connection {
    fn event(&mut self) -> Promise<'_, Option<Event>> {
        Box::pin(async move {
            let mut changes = self.host.changes.subscribe();
            let mut stalled = false;
            loop {
                changes.mark_unchanged();
                let next = self.next();
                let ended = matches!(next, Ok(None));
                if let Ok(next) = next
                    && (ended || !stalled)
                {
                    match self.host.faults.at(Call::Event).filter(|_| !ended) {
                        None => return next,
                        Some(Fault::Error | Fault::Twice) => return None,
                        Some(Fault::Late(time)) => {
                            tokio::time::sleep(time).await;
                            return next;
                        }
                        Some(Fault::Never) => stalled = true,
                        Some(Fault::KilledBefore | Fault::KilledAfter) => {
                            self.host.faults.kill();
                            std::future::pending::<()>().await;
                        }
                    }
                }
                let _ = changes.changed().await;
            }
        })
    }

    fn order(&mut self, order: &Order) -> Result<(), String> {
        let number = self.last + 1;
        let fault = self.host.faults.at(Call::Order);
        if fault == Some(Fault::Error) {
            return Err("the shepherd takes no more orders".to_owned());
        }
        self.last = number;
        let is_killed = matches!(fault, Some(Fault::KilledBefore | Fault::KilledAfter));
        let is_given = !matches!(fault, Some(Fault::Never | Fault::KilledBefore));
        if !is_given || !self.give(number, order) {
            self.unacknowledged.push_back((number, order.clone()));
        }
        if fault == Some(Fault::Twice) {
            self.give(number, order);
        }
        if is_killed {
            self.host.faults.kill();
        }
        Ok(())
    }

    fn kill(&self) -> io::Result<()> {
        self.host.kill(&self.id)
    }

    fn resume(&mut self, orders: Unacknowledged) -> Result<(), String> {
        for (number, order) in orders {
            if number > self.last {
                self.last = number;
                if !self.give(number, &order) {
                    self.unacknowledged.push_back((number, order));
                }
            }
        }
        Ok(())
    }

    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged {
        self.unacknowledged
    }

    fn ended(self: Box<Self>) -> Promise<'static, String> {
        Box::pin(async { "signal 9".to_owned() })
    }
}

/// The seam itself, for one daemon after another.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Scripted(pub(in crate::daemon) Arc<FakeHost>);

impl Shepherds for Scripted {
    fn plan(&self, wanted: Wanted) -> Promise<'static, Result<Box<Plan>, NotPlanned>> {
        let host = self.0.clone();
        Box::pin(async move {
            let effect = || {
                let mut state = host.state();
                state.planned += 1;
                Ok(Box::new(plan(&wanted, state.planned)))
            };
            let why = "no program".to_owned();
            host.faults.call(Call::Plan, effect, || Err(NotPlanned { image: false, why })).await
        })
    }

    fn start(&self, plan: Plan) -> Promise<'_, Result<Box<dyn Shepherd>, String>> {
        Box::pin(async move {
            let effect = || {
                if !self.0.begin(&plan) {
                    return Err("its directory is there already".to_owned());
                }
                Connection::open(&self.0, &plan.id).map_err(|error| error.to_string())
            };
            let error = || Err("no more processes".to_owned());
            self.0.faults.call(Call::Start, effect, error).await
        })
    }

    fn attach<'a>(&'a self, id: &'a Id) -> Promise<'a, Result<Box<dyn Shepherd>, AttachError>> {
        let effect = || Connection::open(&self.0, id);
        let error = || Err(AttachError::Busy(io::ErrorKind::OutOfMemory.into()));
        Box::pin(self.0.faults.call(Call::Attach, effect, error))
    }

    fn is_gone(&self, id: &Id) -> bool {
        self.0.state().machines.get(id).is_none_or(|machine| !machine.alive)
    }

    fn kill(&self, id: &Id) -> io::Result<()> {
        self.0.kill(id)
    }

    fn list(&self) -> io::Result<Vec<Left>> {
        if self.0.faults.at(Call::List).is_some() {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let state = self.0.state();
        let left = state.machines.iter().map(|(id, machine)| {
            let Plan { image, processors, memory, .. } = &machine.plan;
            let load = Load { processors: *processors, memory: memory.0 };
            Left {
                id: id.clone(),
                living: machine.alive,
                events: machine.events.clone(),
                summary: Some((image.clone(), load)),
                ran: None,
            }
        });
        Ok(left.collect())
    }

    fn keep_output(&self, _id: &Id, _log: PathBuf) -> Promise<'static, u64> {
        let host = self.0.clone();
        Box::pin(async move { host.faults.call(Call::KeepOutput, || 10, || 0).await })
    }

    fn put_away(&self, id: &Id, _black_box_of: Option<String>) -> Promise<'static, io::Result<()>> {
        let (host, id) = (self.0.clone(), id.clone());
        Box::pin(async move {
            let effect = || {
                host.state().machines.remove(&id);
                Ok(())
            };
            let error = || Err(io::ErrorKind::StorageFull.into());
            host.faults.call(Call::PutAway, effect, error).await
        })
    }
}

fn plan(wanted: &Wanted, number: u64) -> Plan {
    let id = Id::parse(&format!("m-{number:010}")).unwrap();
    let boot = Boot {
        directory: "/image".into(),
        kernel: "/image/kernel".into(),
        initramfs: "/image/initramfs".into(),
        rootfs: "/image/rootfs".into(),
        arguments: String::new(),
    };
    let programs = Programs { qemu: "qemu".into(), qemu_img: "img".into(), vsock: "vsock".into() };
    Plan {
        asked: monotonic(),
        image: "base@0123".to_owned(),
        boot,
        accelerator: Accelerator::Kvm,
        processors: wanted.processors,
        memory: wanted.memory,
        disk: wanted.memory,
        egress: wanted.egress.clone(),
        egress_record: PathBuf::new(),
        deadlines: wanted.deadlines,
        programs,
        directory: format!("/microvms/{id}").into(),
        private: "/private".into(),
        detached: wanted.detached,
        id,
    }
}
