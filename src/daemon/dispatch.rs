//! Handlers for the events of the loop's tasks and of the forge.

use std::collections::BTreeSet;

use super::backlog::{Backlog, RunnerUpdate};
use super::decide::{Blocker, MicrovmKey, Stage};
use super::error::DaemonError;
use super::event::DaemonEvent;
use super::event_loop::Daemon;
use super::fleet::{Assignment, Microvm, MicrovmUpdate, PlanFailure, ReceivedUpdate};
use super::registry::DeregistrationResult;
use super::time::Millis;
use super::views::Observer;
use mayfly_forge::{ForgeError, ForgeEvent, NewRunner, RemoteRunner, RemovalOutcome};
use mayfly_shepherd::event::Event;

impl Daemon {
    pub(super) fn handle_event(&mut self, event: DaemonEvent) -> Result<(), DaemonError> {
        self.views.mark_changed();
        let _span = self.log_span(self.subject(&event));
        match event {
            DaemonEvent::Planned(key, Ok(plan)) => {
                self.fleet.start(key, *plan, &mut self.ledger, &mut self.tasks)
            }
            DaemonEvent::Planned(key, Err(PlanFailure { is_image_error, message })) => {
                let blocker = if is_image_error { Blocker::Image } else { Blocker::BootsFail };
                self.handle_start_failure(key, blocker(message))
            }
            DaemonEvent::StartFailed(key, why) => {
                self.handle_start_failure(key, Blocker::BootsFail(why))
            }
            DaemonEvent::ShepherdEvent(key, number, event) => {
                self.handle_shepherd_event(key, number, &event)
            }
            DaemonEvent::OutputSaved(key, bytes) => {
                self.pruner.add_output(bytes, &self.settings);
                self.settle_microvm(key)
            }
            DaemonEvent::Registered(key, name, Ok(new)) => self.handle_registered(key, &name, &new),
            DaemonEvent::Registered(key, name, Err(error)) => {
                self.handle_registration_failure(key, &name, &error)
            }
            DaemonEvent::Deregistered(name, removed) => self.handle_deregistration(&name, &removed),
            DaemonEvent::RunnersListed(requested_at, runners) => {
                self.handle_runner_list(requested_at, &runners)
            }
            DaemonEvent::RunnerDomainsListed(names) => {
                self.runner_domains.apply(&names, &mut self.ledger, self.clock.now())
            }
            DaemonEvent::Pruned(result) => {
                self.pruner.apply(&result, &mut self.ledger, self.clock.now())
            }
        }
    }

    /// Returns the microVM that an event is about.
    fn subject(&self, event: &DaemonEvent) -> Option<MicrovmKey> {
        match event {
            DaemonEvent::Planned(key, _)
            | DaemonEvent::StartFailed(key, _)
            | DaemonEvent::ShepherdEvent(key, ..)
            | DaemonEvent::OutputSaved(key, _)
            | DaemonEvent::Registered(key, ..) => Some(*key),
            DaemonEvent::Deregistered(name, _) => self.fleet.with_runner(name).map(Microvm::key),
            DaemonEvent::RunnersListed(..)
            | DaemonEvent::RunnerDomainsListed(_)
            | DaemonEvent::Pruned(_) => None,
        }
    }

    fn handle_start_failure(&mut self, key: MicrovmKey, why: Blocker) -> Result<(), DaemonError> {
        if let Some(microvm) = self.fleet.get(key) {
            Observer::record_start_failure(microvm.pool_name(), &why);
        }
        self.fleet.remove_unstarted(key, why, &mut self.ledger, self.clock.now())
    }

    /// Handles an event of a shepherd.
    pub(super) fn handle_shepherd_event(
        &mut self,
        key: MicrovmKey,
        number: usize,
        event: &Event,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(received) = self.fleet.apply_event(key, number, event, &mut self.ledger, now)?
        else {
            return Ok(());
        };
        if let Some(microvm) = self.fleet.get(key) {
            self.views.observer.record_event(microvm, event);
        }
        let ReceivedUpdate { id, pool, assignment, update } = received;
        match (update, assignment) {
            (MicrovmUpdate::Started, Assignment::Local(job)) => {
                Backlog::record_start(job, &mut self.ledger)?;
            }
            (MicrovmUpdate::Listening, Assignment::Runner(_)) => {
                tracing::info!("the runner is listening");
            }
            (MicrovmUpdate::TookJob(job), Assignment::Runner(runner)) => {
                tracing::info!(name = job, "the runner took a job");
                self.registry.record_job_taken(&runner.name, pool, &job, &mut self.ledger)?;
                let (backlog, mut context) = self.backlog_and_context();
                backlog.record_taken_job(pool, id.as_str(), runner.name, &job, &mut context)?;
            }
            (MicrovmUpdate::Ended(_), _) => self.finish_microvm(key)?,
            _ => {}
        }
        Ok(())
    }

    /// Handles a successful registration: the microVM gets its runner's start configuration.
    fn handle_registered(
        &mut self,
        key: MicrovmKey,
        name: &str,
        new: &NewRunner,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let pool = self.pool_of(key).map(|(id, _)| id);
        self.registry.record_registered(name, new.id, pool, &mut self.ledger, now)?;
        if self.fleet.record_registered(key, name, new) && pool.is_some() {
            tracing::info!(runner = name, "the runner is registered");
            self.send_runner_start(key, &new.start_config);
            return Ok(());
        }
        // The microVM ended in the meantime.
        self.registry.remove(name, Some(new.id), &self.ledger, now)
    }

    /// Handles a failed or unanswered registration: the microVM is warm again and gets a new runner
    /// name the next time.
    fn handle_registration_failure(
        &mut self,
        key: MicrovmKey,
        name: &str,
        error: &ForgeError,
    ) -> Result<(), DaemonError> {
        let id = self.fleet.get(key).map(Microvm::pool);
        let pool = id.and_then(|id| Some((id, self.pools.get(id)?.name.as_str())));
        self.registry.record_registration_failure(
            name,
            pool,
            error,
            &mut self.ledger,
            self.clock,
        )?;
        self.fleet.return_to_warm(key, self.clock.now());
        Ok(())
    }

    /// Handles the end of a deletion call.
    fn handle_deregistration(
        &mut self,
        name: &str,
        removed: &Result<RemovalOutcome, ForgeError>,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let key = self.fleet.with_runner(name).map(Microvm::key);
        let ledger = &mut self.ledger;
        let result =
            self.registry.record_deregistration(name, removed, key.is_some(), ledger, now)?;
        let Some(key) = key else { return Ok(()) };
        match result {
            DeregistrationResult::Gone => self.fleet.end_retired(key, now),
            DeregistrationResult::Busy => self.fleet.keep_busy(key, now),
            // While the daemon drains, each deletion is tried once. The next daemon does the rest.
            DeregistrationResult::Retrying if self.is_draining() => {
                self.fleet.end_retired(key, now);
            }
            DeregistrationResult::Retrying => {}
        }
        Ok(())
    }

    /// Handles the forge's list of runners. A microVM whose runner the forge dropped would wait for
    /// jobs in vain, so it ends.
    fn handle_runner_list(
        &mut self,
        requested_at: Millis,
        runners: &Result<Vec<RemoteRunner>, ForgeError>,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let ours = self.fleet.iter().filter_map(|one| Some((one, one.runner()?.name.as_str())));
        let (mut in_use, mut listening) = (BTreeSet::new(), BTreeSet::new());
        for (microvm, name) in ours {
            in_use.insert(name);
            if microvm.stage() == Stage::Registered && microvm.since() < requested_at {
                listening.insert(name);
            }
        }
        let dropped =
            self.registry.reconcile_runners(runners, &in_use, &listening, &self.ledger, now)?;
        for name in dropped {
            let Some(key) = self.fleet.with_runner(&name).map(Microvm::key) else { continue };
            let _span = self.log_span(Some(key));
            tracing::warn!("GitHub dropped the runner: ending its microVM");
            self.fleet.end(key, "GitHub dropped its runner", now);
        }
        Ok(())
    }

    /// Handles an event of the forge.
    pub(super) fn handle_forge_event(&mut self, event: ForgeEvent) -> Result<(), DaemonError> {
        self.views.mark_changed();
        let (now, clock) = (self.now(), self.clock);
        match event {
            ForgeEvent::JobDelivered(delivery) => {
                let (backlog, mut context) = self.backlog_and_context();
                let update = backlog.record_delivery(*delivery, &mut context)?;
                update.map_or(Ok(()), |update| self.apply_runner_update(update))
            }
            ForgeEvent::JobsListed { repository, requested_at, queued, running } => {
                let (backlog, mut context) = self.backlog_and_context();
                let jobs = (&queued[..], &running[..]);
                let updates = backlog.reconcile_list(
                    repository,
                    clock.at_instant(requested_at),
                    jobs,
                    &mut context,
                )?;
                updates.into_iter().try_for_each(|update| self.apply_runner_update(update))
            }
            ForgeEvent::JobsCounted { pool, waiting } => {
                if let Some(pool) = self.pools.find_named(&pool) {
                    self.backlog.set_waiting_count(pool, waiting, now);
                }
                Ok(())
            }
            ForgeEvent::JobStarted { pool, runner, job } => {
                if let Some(pool) = self.pools.find_named(&pool) {
                    self.backlog.record_busy_runner(pool, runner.clone(), now);
                }
                self.apply_runner_update(RunnerUpdate::HasJob { runner, job })
            }
            ForgeEvent::JobEnded { runner } => {
                self.apply_runner_update(RunnerUpdate::JobEnded { runner })
            }
            ForgeEvent::PoolReady(pool) => {
                if let Some(pool) = self.pools.find_named(&pool) {
                    self.registry.mark_ready(pool, now);
                }
                Ok(())
            }
            ForgeEvent::ScaleSetPlanned { pool, location } => {
                self.record_location(&pool, &location, true)
            }
            ForgeEvent::ScaleSetRemoved { pool, location } => {
                self.record_location(&pool, &location, false)
            }
            ForgeEvent::Reachable => {
                self.registry.mark_reachable(now);
                Ok(())
            }
            ForgeEvent::Failed(pool, error) => {
                let pool = pool
                    .as_ref()
                    .and_then(|pool| Some((self.pools.find_named(pool)?, pool.as_str())));
                self.registry.record_listen_failure(pool, &error, clock);
                Ok(())
            }
        }
    }

    /// Records where the forge keeps a pool's scale set, so that a later daemon can have it
    /// removed.
    fn record_location(
        &mut self,
        pool: &str,
        location: &str,
        is_there: bool,
    ) -> Result<(), DaemonError> {
        self.ledger.record_location(pool, location, is_there)?;
        self.registry.set_locations(self.ledger.locations()?);
        self.update_listen_request();
        Ok(())
    }

    /// Applies the forge's report about a runner. The runner's own console reports the same, only
    /// sooner.
    fn apply_runner_update(&mut self, update: RunnerUpdate) -> Result<(), DaemonError> {
        let now = self.now();
        match update {
            RunnerUpdate::HasJob { runner, job } => match self
                .fleet
                .record_runner_job(&runner, &job, now)
            {
                Some(pool) => self.registry.record_job_taken(&runner, pool, &job, &mut self.ledger),
                None => Ok(()),
            },
            RunnerUpdate::JobEnded { runner } => {
                self.fleet.record_job_completed(&runner, now);
                Ok(())
            }
        }
    }
}
