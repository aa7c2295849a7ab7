//! The execution of decided actions. Whatever has to wait runs in a task that reports back.

use mayfly_protocol::message::{Bytes, Job};
use secrecy::SecretString;

use super::decide::{Action, JobKey, MicrovmKey, PoolId, RetireReason, Stage};
use super::error::DaemonError;
use super::event_loop::Daemon;
use super::fleet::{AssignedRunner, Assignment};
use super::pools::microvm_resources;
use mayfly_ledger::JobCommand;
use mayfly_shepherd::plan::{Deadlines, ShepherdCommand, monotonic};
use mayfly_shepherd::planner::MicrovmRequest;
use mayfly_shepherd::{DetachedLimits, runner};

impl Daemon {
    pub(super) fn execute(&mut self, action: Action) -> Result<(), DaemonError> {
        let microvm = match action {
            Action::Boot { .. } => None,
            Action::Assign { microvm, .. }
            | Action::Register { microvm }
            | Action::Retire { microvm, .. } => Some(microvm),
        };
        let _span = self.log_span(microvm);
        match action {
            Action::Boot { pool } => self.boot(pool),
            Action::Assign { microvm, job } => self.assign(microvm, job)?,
            Action::Register { microvm } => self.register(microvm)?,
            Action::Retire { microvm, reason } => self.retire(microvm, reason)?,
        }
        Ok(())
    }

    fn boot(&mut self, id: PoolId) {
        let now = self.now();
        let Some(pool) = self.pools.get(id) else { return };
        let host = &self.settings.host;
        let request = MicrovmRequest {
            requested_at: monotonic(),
            image: pool.image.clone(),
            trust: host.image_keys.clone(),
            accelerator: host.accelerator,
            processors: pool.cpus,
            memory: pool.memory,
            disk: pool.disk,
            egress: pool.egress.clone().with_github_names(self.runner_domains.accepted()),
            egress_record: None,
            boot: pool.deadlines.boot,
            deadlines: Deadlines {
                job: pool.deadlines.job,
                farewell: pool.deadlines.farewell,
                ..Deadlines::default()
            },
            detached: Some(DetachedLimits::default()),
        };
        let named = (id, pool.name.as_str());
        self.fleet.plan(named, microvm_resources(pool), request, now, &mut self.tasks);
    }

    /// Assigns a local job to a warm microVM.
    fn assign(&mut self, key: MicrovmKey, job: JobKey) -> Result<(), DaemonError> {
        let now = self.now();
        let (Some(id), Some(_)) = (self.id_of(key), self.find_job(job)?) else { return Ok(()) };
        self.backlog.claim(job, id.as_str(), &mut self.ledger)?;
        tracing::info!(job = job.0, "the job is assigned to its microVM");
        self.fleet.assign(key, Assignment::Local(job), Stage::Assigned, now);
        self.send_job(key, job)
    }

    /// Sends a local job to its microVM. Sending it twice has no effect there.
    pub(super) fn send_job(&mut self, key: MicrovmKey, job: JobKey) -> Result<(), DaemonError> {
        let Some(command) = self.find_job(job)?.and_then(|job| job.command) else {
            return Ok(());
        };
        let now = self.now();
        let pool = self.pool_of(key).map(|(_, pool)| pool.environment.clone());
        let variables = pool.unwrap_or_default().into_iter();
        let variables = variables.map(|(name, value)| (bytes(name), bytes(value)));
        let timeout = command.timeout;
        let job = local_job(command, variables.collect());
        self.fleet.send_command(key, ShepherdCommand::Start(Box::new(job)));
        self.fleet.set_deadline(key, timeout.map(|timeout| now + timeout));
        Ok(())
    }

    /// Registers a warm microVM as a runner: records a name, then calls the forge.
    fn register(&mut self, key: MicrovmKey) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(id) = self.id_of(key) else { return Ok(()) };
        let Some(pool) = self.fleet.get(key).and_then(|one| self.pools.get(one.pool())) else {
            return Ok(());
        };
        let (ledger, tasks) = (&mut self.ledger, &mut self.tasks);
        let name = self.registry.register(key, id.as_str(), pool, ledger, tasks)?;
        if let Some(name) = name {
            let runner = AssignedRunner { name, id: None, job: None, result: None };
            self.fleet.assign(key, Assignment::Runner(runner), Stage::Registering, now);
        }
        Ok(())
    }

    /// Sends a runner its start configuration.
    pub(super) fn send_runner_start(&mut self, key: MicrovmKey, start: &SecretString) {
        let Some((_, pool)) = self.pool_of(key) else { return };
        let hooks = pool.hooks.variables().map(|(name, value)| (bytes(name), bytes(value)));
        let own = pool.environment.iter().map(|(name, value)| (bytes(name), bytes(value)));
        let mut job = runner::job(start, hooks.chain(own), &pool.runner_directory);
        if pool.job_log {
            job.follow = Some(runner::log_pages(&pool.runner_directory));
        }
        self.fleet.send_command(key, ShepherdCommand::Start(Box::new(job)));
    }

    /// Ends a microVM without a job. If it has a runner, that is deleted at the forge first.
    fn retire(&mut self, key: MicrovmKey, why: RetireReason) -> Result<(), DaemonError> {
        self.fleet.retire_idle(key, why, self.clock.now());
        self.deregister(key)
    }

    /// Has the runner of a microVM deleted, if any.
    pub(super) fn deregister(&mut self, key: MicrovmKey) -> Result<(), DaemonError> {
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

/// Builds the job for a shepherd. The command's own variables come last, so they override the
/// pool's.
fn local_job(command: JobCommand, pool: Vec<(Bytes, Bytes)>) -> Job {
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
