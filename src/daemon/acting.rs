//! Carrying out what was decided. What waits for anything is a task that reports back.

use mayfly_protocol::message::{Bytes, Job};
use secrecy::SecretString;

use super::decide::{Action, JobKey, MachineKey, Retirement, Stage};
use super::error::DaemonError;
use super::following::{self, ERRANDS, Errand};
use super::happening::{Happening, NotPlanned};
use super::microvm::{Microvm, Runner, Work};
use super::millis::Millis;
use super::overdue::{self, Patience, Step};
use super::world::{Held, Queued, World};
use crate::config::Trigger;
use crate::failure::{Failure, chain};
use crate::ledger::Command;
use crate::shepherd::plan::{Deadlines, Order, Plan, monotonic};
use crate::shepherd::planner::{self, PlanError, Wanted};
use crate::shepherd::{Detached, runner};

impl World {
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
            Action::Retire { machine, why } => self.retire(machine, why),
        }
        Ok(())
    }

    /// Plans a microVM; it is booted once it is planned and in the ledger.
    fn boot(&mut self, pool: usize) {
        let (key, now) = (self.key(), self.now());
        let Some(chosen) = self.pools.get(pool) else { return };
        let settings = &chosen.settings;
        let microvm = Microvm::new(key, Some(pool), settings.name.as_str(), chosen.load(), now);
        let wanted = Wanted {
            asked: monotonic(),
            image: settings.image.clone(),
            trust: self.settings.host.image_keys.clone(),
            accelerator: self.settings.host.accelerator,
            processors: settings.cpus,
            memory: settings.memory,
            disk: settings.disk,
            egress: settings.egress.clone(),
            egress_record: None,
            boot: settings.deadlines.boot,
            deadlines: Deadlines { job: settings.deadlines.job, ..Deadlines::default() },
            detached: Some(Detached::default()),
        };
        self.microvms.insert(key, Held { microvm, errands: None });
        let (state, to) = (self.state.clone(), self.happenings.clone());
        self.tasks.spawn(async move {
            // It reads files, and hashes an image that was not verified yet.
            let planned = tokio::task::spawn_blocking(move || planner::plan(wanted, &state)).await;
            let planned = match planned {
                Ok(Ok((plan, _))) => Ok(Box::new(plan)),
                Ok(Err(error)) => Err(NotPlanned {
                    image: matches!(error, PlanError::Image(_)),
                    why: with_hint(&error),
                }),
                Err(error) => Err(NotPlanned { image: false, why: chain(&error) }),
            };
            let _ = to.send(Happening::Planned(key, planned)).await;
        });
    }

    /// Starts the shepherd of a planned microVM.
    pub(super) fn start(&mut self, key: MachineKey, plan: Plan) -> Result<(), DaemonError> {
        let Some(held) = self.microvms.get_mut(&key) else { return Ok(()) };
        if held.microvm.stage == Stage::Ending {
            // It was retired before it began.
            self.microvms.remove(&key);
            return Ok(());
        }
        self.ledger.planned(plan.id.as_str(), &held.microvm.pool_name, &plan.image)?;
        held.microvm.id = Some(plan.id.clone());
        held.microvm.patience = Patience {
            boot: plan.deadlines.prepare + plan.deadlines.boot,
            job: plan.deadlines.job,
        };
        let (errands, received) = tokio::sync::mpsc::channel(ERRANDS);
        held.errands = Some(errands);
        let (program, to) = (self.program.clone(), self.happenings.clone());
        self.tasks.spawn(following::boot(program, plan, key, received, to));
        Ok(())
    }

    /// Gives a local job to a warm microVM.
    fn assign(&mut self, key: MachineKey, job: JobKey) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(id) = self.microvm(key).and_then(|microvm| microvm.id.clone()) else {
            return Ok(());
        };
        self.queue.retain(|queued| queued.job != job);
        let Some(known) = self.known(job)? else { return Ok(()) };
        // It is given away in the ledger first: it can't be given twice.
        self.ledger.claim(known.id, id.as_str())?;
        tracing::info!(job = job.0, "the job is given its microVM");
        if let Some(microvm) = self.microvm(key) {
            microvm.work = Work::Local(job);
            microvm.enter(Stage::Assigned, now);
        }
        self.hand_over(key, job)
    }

    /// Sends a local job to its microVM; a second time has no effect there.
    pub(super) fn hand_over(&mut self, key: MachineKey, job: JobKey) -> Result<(), DaemonError> {
        let Some(command) = self.known(job)?.and_then(|job| job.command) else {
            return Ok(());
        };
        let now = self.now();
        let pool = self.microvm(key).and_then(|microvm| microvm.pool);
        let pool = pool.and_then(|pool| self.pools.get(pool));
        let variables = pool.map(|pool| pool.settings.environment.clone()).unwrap_or_default();
        let variables = variables.into_iter().map(|(name, value)| (bytes(name), bytes(value)));
        let timeout = command.timeout;
        let job = local_job(command, variables.collect());
        self.order(key, Order::Start(Box::new(job)));
        if let Some(microvm) = self.microvm(key) {
            microvm.deadline = timeout.map(|timeout| now + timeout);
        }
        Ok(())
    }

    /// Makes a warm microVM a runner: a name is recorded, then GitHub is asked.
    fn register(&mut self, key: MachineKey) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(microvm) = self.microvms.get_mut(&key).map(|held| &mut held.microvm) else {
            return Ok(());
        };
        let pool = microvm.pool.and_then(|pool| self.pools.get(pool));
        let Some((pool, id)) = pool.zip(microvm.id.clone()) else { return Ok(()) };
        let Some(registrar) = pool.registrar.clone() else { return Ok(()) };
        let random = crate::host::random::<8>().map_err(DaemonError::Random)?;
        let random = data_encoding::BASE32_DNSSEC.encode(&random);
        let name = format!("{}{}-{}", self.prefix, microvm.pool_name, &random[..10]);
        self.ledger.intend(&name, &microvm.pool_name, id.as_str())?;
        let runner = Runner { name: name.clone(), id: None, job: None, result: None };
        microvm.work = Work::Runner(runner);
        microvm.enter(Stage::Registering, now);
        let (settings, to) = (pool.settings.clone(), self.happenings.clone());
        self.tasks.spawn(async move {
            let minted = registrar.mint(&name, &settings).await;
            let _ = to.send(Happening::Minted(key, name, minted)).await;
        });
        Ok(())
    }

    /// Gives a runner what starts it.
    pub(super) fn hand_over_runner(
        &mut self,
        key: MachineKey,
        pool: usize,
        jit_config: &SecretString,
    ) {
        let Some(pool) = self.pools.get(pool) else { return };
        let hooks =
            pool.settings.hooks.variables().map(|(name, value)| (bytes(name), bytes(value)));
        let own = pool.settings.environment.iter();
        let own = own.map(|(name, value)| (bytes(name), bytes(value)));
        let job = runner::job(jit_config, hooks.chain(own), &pool.settings.runner_directory);
        self.order(key, Order::Start(Box::new(job)));
    }

    /// Ends a microVM that has no job; at GitHub first where it is known there.
    fn retire(&mut self, key: MachineKey, why: Retirement) {
        let now = self.now();
        let Some(microvm) = self.microvm(key) else { return };
        let was = microvm.stage;
        microvm.enter(Stage::Ending, now);
        microvm.ended_for.get_or_insert_with(|| format!("retired: {why}"));
        tracing::debug!(?was, ?why, "retiring");
        match &microvm.work {
            Work::Runner(runner) => {
                let (name, number) = (runner.name.clone(), runner.id);
                let pool = microvm.pool;
                self.removals.add(&name, pool, number, now);
            }
            _ => self.order(key, Order::End),
        }
    }

    /// Ends, or kills, microVMs that took too long.
    pub(super) fn end_overdue(&mut self, now: Millis) {
        let due = self.microvms.values().filter_map(|held| {
            let (at, step) = overdue::step(&held.microvm)?;
            (at <= now).then_some((held.microvm.key, step))
        });
        for (key, step) in due.collect::<Vec<_>>() {
            let _about = self.about(Some(key));
            let Some(microvm) = self.microvm(key) else { continue };
            microvm.enter(Stage::Ending, now);
            match step {
                Step::End(why) => {
                    tracing::warn!("the microVM ends: {why}");
                    microvm.ended_for = Some(why.to_owned());
                    self.order(key, Order::End);
                }
                Step::Kill(why) => {
                    tracing::warn!("the microVM is killed: {why}");
                    if microvm.killed.replace(now).is_none() {
                        let before = microvm.ended_for.take();
                        let before = before.map(|why| format!("{why}; ")).unwrap_or_default();
                        microvm.ended_for = Some(format!("{before}{why}: it was killed"));
                    }
                    self.errand(key, Errand::Kill);
                }
            }
        }
    }

    /// When the next microVM is overdue.
    pub(super) fn overdue_wake(&self) -> Option<Millis> {
        let steps = self.microvms.values().filter_map(|held| overdue::step(&held.microvm));
        steps.map(|(at, _)| at).min()
    }

    /// Deletes runners at GitHub that have to go.
    pub(super) fn remove_due(&mut self, now: Millis) {
        for due in self.removals.due(now) {
            let pool = due.pool.and_then(|pool| self.pools.get(pool));
            let registrar = pool.and_then(|pool| pool.registrar.clone());
            // Where the pool is gone, the scope knows the runner.
            let registrar = registrar.or_else(|| self.registrar(Trigger::Always));
            let Some(registrar) = registrar else {
                self.removals.again(&due.name, now);
                continue;
            };
            let to = self.happenings.clone();
            self.tasks.spawn(async move {
                let removed = registrar.remove(&due.name, due.number).await;
                let _ = to.send(Happening::Removed(due.name, removed)).await;
            });
        }
    }

    /// Lists the runners of the scope, where it is time.
    pub(super) fn list_due(&mut self, now: Millis) {
        if self.next_list.is_none_or(|at| at > now) {
            return;
        }
        let Some(github) = self.github.clone() else { return };
        self.next_list = None;
        let to = self.happenings.clone();
        self.tasks.spawn(async move {
            let listed = github.client.runners().await;
            let _ = to.send(Happening::Listed(now, listed)).await;
        });
    }

    /// Puts a local job (back) into the queue, at its place.
    pub(super) fn enqueue(&mut self, queued: Queued) {
        let place = self.queue.partition_point(|other| other.since <= queued.since);
        self.queue.insert(place, queued);
    }
}

fn with_hint(error: &impl Failure) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})")).unwrap_or_default();
    format!("{}{hint}", chain(error))
}

pub(super) fn bytes(text: impl AsRef<[u8]>) -> Bytes {
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
    }
}
