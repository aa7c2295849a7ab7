//! Carrying out what was decided. What waits for anything is a task that reports back.

use mayfly_protocol::message::{Bytes, Job};
use secrecy::SecretString;

use super::decide::{Action, JobKey, MachineKey, PoolId, Retirement, Stage};
use super::error::DaemonError;
use super::fleet::{Runner, Work};
use super::pools::load;
use super::running::Daemon;
use crate::ledger::Command;
use crate::shepherd::plan::{Deadlines, Order, monotonic};
use crate::shepherd::planner::Wanted;
use crate::shepherd::{Detached, runner};

impl Daemon {
    pub(super) fn act(&mut self, action: Action) -> Result<(), DaemonError> {
        let machine = match action {
            Action::Boot { .. } => None,
            Action::Assign { machine, .. }
            | Action::Register { machine }
            | Action::Retire { machine, .. } => Some(machine),
        };
        let _about = self.about(machine);
        match action {
            Action::Boot { pool } => self.boot(pool),
            Action::Assign { machine, job } => self.assign(machine, job)?,
            Action::Register { machine } => self.register(machine)?,
            Action::Retire { machine, why } => self.retire(machine, why)?,
        }
        Ok(())
    }

    fn boot(&mut self, id: PoolId) {
        let now = self.now();
        let Some(pool) = self.pools.get(id) else { return };
        let host = &self.settings.host;
        let wanted = Wanted {
            asked: monotonic(),
            image: pool.image.clone(),
            trust: host.image_keys.clone(),
            accelerator: host.accelerator,
            processors: pool.cpus,
            memory: pool.memory,
            disk: pool.disk,
            egress: pool.egress.clone().with_listed(self.names.taken()),
            egress_record: None,
            boot: pool.deadlines.boot,
            deadlines: Deadlines {
                job: pool.deadlines.job,
                farewell: pool.deadlines.farewell,
                ..Deadlines::default()
            },
            detached: Some(Detached::default()),
        };
        let named = (id, pool.name.as_str());
        self.fleet.plan(named, load(pool), wanted, now, &mut self.tasks);
    }

    /// Gives a local job to a warm microVM.
    fn assign(&mut self, key: MachineKey, job: JobKey) -> Result<(), DaemonError> {
        let now = self.now();
        let (Some(id), Some(_)) = (self.id_of(key), self.known(job)?) else { return Ok(()) };
        self.backlog.claim(job, id.as_str(), &mut self.ledger)?;
        tracing::info!(job = job.0, "the job is given its microVM");
        self.fleet.give(key, Work::Local(job), Stage::Assigned, now);
        self.hand_over(key, job)
    }

    /// Sends a local job to its microVM; a second time has no effect there.
    pub(super) fn hand_over(&mut self, key: MachineKey, job: JobKey) -> Result<(), DaemonError> {
        let Some(command) = self.known(job)?.and_then(|job| job.command) else {
            return Ok(());
        };
        let now = self.now();
        let pool = self.pool_of(key).map(|(_, pool)| pool.environment.clone());
        let variables = pool.unwrap_or_default().into_iter();
        let variables = variables.map(|(name, value)| (bytes(name), bytes(value)));
        let timeout = command.timeout;
        let job = local_job(command, variables.collect());
        self.fleet.order(key, Order::Start(Box::new(job)));
        self.fleet.set_deadline(key, timeout.map(|timeout| now + timeout));
        Ok(())
    }

    /// Makes a warm microVM a runner: a name is recorded, then the forge is asked.
    fn register(&mut self, key: MachineKey) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(id) = self.id_of(key) else { return Ok(()) };
        let Some(pool) = self.fleet.get(key).and_then(|one| self.pools.get(one.pool())) else {
            return Ok(());
        };
        let (ledger, tasks) = (&mut self.ledger, &mut self.tasks);
        let name = self.registry.register(key, id.as_str(), pool, ledger, tasks)?;
        if let Some(name) = name {
            let runner = Runner { name, id: None, job: None, result: None };
            self.fleet.give(key, Work::Runner(runner), Stage::Registering, now);
        }
        Ok(())
    }

    /// Gives a runner what starts it.
    pub(super) fn hand_over_runner(&mut self, key: MachineKey, start: &SecretString) {
        let Some((_, pool)) = self.pool_of(key) else { return };
        let hooks = pool.hooks.variables().map(|(name, value)| (bytes(name), bytes(value)));
        let own = pool.environment.iter().map(|(name, value)| (bytes(name), bytes(value)));
        let mut job = runner::job(start, hooks.chain(own), &pool.runner_directory);
        if pool.job_log {
            job.follow = Some(runner::pages(&pool.runner_directory));
        }
        self.fleet.order(key, Order::Start(Box::new(job)));
    }

    /// Ends a microVM that has no job; at the forge first where it is known there.
    fn retire(&mut self, key: MachineKey, why: Retirement) -> Result<(), DaemonError> {
        self.fleet.retire_idle(key, why, self.clock.now());
        self.deregister(key)
    }

    /// Has the runner of a microVM deleted, if it has one.
    pub(super) fn deregister(&mut self, key: MachineKey) -> Result<(), DaemonError> {
        let now = self.now();
        match self.fleet.get(key).and_then(|microvm| microvm.runner()) {
            Some(runner) => self.registry.remove(&runner.name, runner.id, &self.ledger, now),
            None => Ok(()),
        }
    }
}

fn bytes(text: impl AsRef<[u8]>) -> Bytes {
    Bytes::from(text.as_ref().to_vec())
}

/// The job that a shepherd is given; what the command's own variables say comes later and wins.
fn local_job(command: Command, pool: Vec<(Bytes, Bytes)>) -> Job {
    let own = command.environment.into_iter().map(|(name, value)| (bytes(name.0), bytes(value.0)));
    Job {
        arguments: command.arguments.into_iter().map(|argument| bytes(argument.0)).collect(),
        environment: pool.into_iter().chain(own).collect(),
        directory: command.directory.map(|directory| bytes(directory.0)),
        user: command.user,
        terminal: None,
        stdin: false,
        copy_in: Vec::new(),
        copy_out: Vec::new(),
        follow: None,
    }
}
