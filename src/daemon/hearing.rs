//! What the loop does with what it hears.

use super::decide::{Blocker, JobKey, MachineKey, Stage};
use super::error::DaemonError;
use super::happening::Happening;
use super::microvm::{News, Work, egress};
use super::millis::Millis;
use super::observing::not_started;
use super::pools::from_now;
use super::registrations::orphans;
use super::world::World;
use crate::failure::chain;
use crate::github::{CallError, Minted, Removal, Runner};
use crate::ledger::{Phase, RegistrationState};
use crate::shepherd::event::{Event, Happened};
use crate::shepherd::plan::Order;

/// Between two lists of the scope's runners at most after an answer that never came: what it left
/// behind shows itself by then.
const LIST_SOON: std::time::Duration = std::time::Duration::from_secs(20);
/// The least wait after a rate limit, whose end is told in whole seconds.
const SOON: std::time::Duration = std::time::Duration::from_secs(1);

impl World {
    pub(super) fn hear(&mut self, happening: Happening) -> Result<(), DaemonError> {
        self.changed = true;
        let now = self.now();
        self.github_heard.take(&happening, now);
        let _about = self.about(self.subject(&happening));
        match happening {
            Happening::Planned(key, Ok(plan)) => self.start(key, *plan),
            Happening::Planned(key, Err(why)) => {
                let blocker = if why.image { Blocker::Image } else { Blocker::BootsFail };
                self.not_booted(key, blocker(why.why))
            }
            Happening::NotBooted(key, why) => self.not_booted(key, Blocker::BootsFail(why)),
            Happening::Event(key, number, event) => self.event(key, number, &event),
            Happening::Minted(key, name, Ok(minted)) => self.minted(key, &name, &minted),
            Happening::Minted(key, name, Err(error)) => self.not_minted(key, &name, &error),
            Happening::Removed(name, removed) => self.removed(&name, &removed),
            Happening::Listed(asked, Ok(runners)) => self.listed(asked, &runners),
            Happening::Listed(_, Err(error)) => {
                tracing::warn!("can't list the runners: {}", chain(&error));
                self.next_list = Some(self.now() + self.reconcile().min(LIST_SOON));
                Ok(())
            }
            Happening::Hint(hint) => self.hint(hint),
            Happening::Source(pool, error) => {
                let pool = pool.and_then(|pool| self.pool_named(pool.as_str()));
                self.source(pool, error.as_ref());
                Ok(())
            }
            Happening::ScaleSet(pool, registrar) => {
                let pool = self.pool_named(pool.as_str());
                if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(pool)) {
                    pool.registrar = Some(registrar);
                    pool.call_worked();
                }
                Ok(())
            }
        }
    }

    fn not_booted(&mut self, key: MachineKey, why: Blocker) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(held) = self.microvms.remove(&key) else { return Ok(()) };
        tracing::warn!("{why}");
        not_started(&held.microvm.pool_name, &why);
        if let Some(id) = &held.microvm.id {
            self.ledger.ended(id.as_str(), "failed", Some(&why.to_string()), None)?;
        }
        if let Some(pool) = held.microvm.pool.and_then(|pool| self.pools.get_mut(pool)) {
            pool.boot_failed(why, now);
        }
        Ok(())
    }

    /// An event of a shepherd.
    pub(super) fn event(
        &mut self,
        key: MachineKey,
        number: usize,
        event: &Event,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(microvm) = self.microvm(key) else { return Ok(()) };
        if number <= microvm.heard {
            return Ok(());
        }
        self.observe_event(key, event);
        let Some(microvm) = self.microvm(key) else { return Ok(()) };
        let news = microvm.hear(event, now);
        let (pool, work) = (microvm.pool, microvm.work.clone());
        let id = event.microvm.as_str();
        if let Happened::Phase(phase) = event.happened {
            let at = humantime::parse_rfc3339(&event.time)
                .unwrap_or_else(|_| std::time::SystemTime::now());
            let phase = Phase {
                event: number as u64,
                phase: phase.to_string(),
                elapsed_ms: event.elapsed_ms,
                at: at.into(),
            };
            self.ledger.transition(id, &phase)?;
        }
        if let Happened::Egress(report) = &event.happened {
            self.ledger.note_egress(id, &egress(report))?;
        }
        match (news, work) {
            (News::Warm, _) => {
                if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(pool)) {
                    pool.boot_worked();
                }
            }
            (News::Started, Work::Local(job)) => self.job_started(job)?,
            (News::Listening, Work::Runner(_)) => tracing::info!("the runner listens"),
            (News::TookJob(job), Work::Runner(runner)) => {
                tracing::info!(name = job, "the runner took a job");
                if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(pool)) {
                    pool.runner_worked();
                }
                // One that was taken back tells it again.
                if self.is_open(&runner.name)? {
                    self.ledger.job_taken(&runner.name, &job)?;
                }
                self.taken(pool, id, runner.name, &job)?;
            }
            (News::Ended(outcome), _) => self.ended(key, &outcome)?,
            _ => {}
        }
        Ok(())
    }

    fn job_started(&mut self, job: JobKey) -> Result<(), DaemonError> {
        if let Some(job) = self.known(job)?
            && job.state == crate::ledger::JobState::Claimed
        {
            self.ledger.start(job.id)?;
        }
        Ok(())
    }

    /// GitHub made a runner: its microVM is given what starts it.
    fn minted(&mut self, key: MachineKey, name: &str, minted: &Minted) -> Result<(), DaemonError> {
        let now = self.now();
        // Its microVM may have ended in the meantime, and the runner been looked for in vain.
        if self.is_open(name)? {
            self.ledger.registered(name, minted.runner_id)?;
        }
        let waits = match self.microvms.get_mut(&key).map(|held| &mut held.microvm) {
            Some(microvm) => match &mut microvm.work {
                Work::Runner(runner) if runner.name == name => {
                    runner.id = Some(minted.runner_id);
                    microvm.stage == Stage::Registering
                }
                _ => false,
            },
            None => false,
        };
        let pool = self.microvm(key).and_then(|microvm| microvm.pool);
        match pool {
            Some(pool) if waits => {
                tracing::info!(runner = name, "registered");
                if let Some(pool) = self.pools.get_mut(pool) {
                    pool.call_worked();
                }
                self.hand_over_runner(key, pool, &minted.jit_config);
            }
            // It ended in the meantime.
            pool => {
                let known = self.ledger.reader().registration(name)?;
                let pool = pool.or(known.and_then(|known| self.pool_named(&known.pool)));
                self.removals.add(name, pool, Some(minted.runner_id), now);
            }
        }
        Ok(())
    }

    /// Whether a registration still waits for its runner, or for its runner's job.
    pub(super) fn is_open(&self, name: &str) -> Result<bool, DaemonError> {
        let known = self.ledger.reader().registration(name)?;
        Ok(known.is_some_and(|known| {
            matches!(known.state, RegistrationState::Intended | RegistrationState::Registered)
        }))
    }

    /// GitHub made no runner, or did not say so: the microVM is warm again and takes a new name the
    /// next time.
    fn not_minted(
        &mut self,
        key: MachineKey,
        name: &str,
        error: &CallError,
    ) -> Result<(), DaemonError> {
        let (now, clock) = (self.now(), self.clock);
        tracing::warn!(runner = name, "not registered: {}", chain(error));
        let pool = self.microvm(key).and_then(|microvm| microvm.pool);
        if let Some(pool) = pool.and_then(|pool| self.pools.get_mut(pool)) {
            pool.call_failed(error, clock);
        }
        if let Some(microvm) = self.microvm(key)
            && microvm.stage == Stage::Registering
        {
            microvm.work = Work::None;
            microvm.enter(Stage::Warm, now);
        }
        match error {
            // It may be there all the same, now or in a moment.
            CallError::Ambiguous { .. } | CallError::NameTaken { .. } => {
                self.removals.add(name, pool, None, now);
                self.list_soon();
            }
            _ => _ = self.ledger.deleted(name)?,
        }
        Ok(())
    }

    /// A runner was to be deleted at GitHub.
    fn removed(
        &mut self,
        name: &str,
        removed: &Result<Removal, CallError>,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let key = self.with_runner(name).map(|microvm| microvm.key);
        match (removed, key) {
            (Ok(Removal::Deleted | Removal::Gone), key) => {
                self.removals.done(name);
                if self.ledger.reader().registration(name)?.is_some() {
                    self.ledger.deleted(name)?;
                }
                // One that took a job between the two is busy, and goes on.
                if let Some(key) = key
                    && self.microvm(key).is_some_and(|microvm| microvm.stage == Stage::Ending)
                {
                    self.order(key, Order::End);
                }
            }
            (Ok(Removal::Busy), Some(key)) => {
                // It got its job while it was being retired: it stays.
                self.removals.done(name);
                if let Some(microvm) = self.microvm(key) {
                    microvm.ended_for = None;
                    microvm.enter(Stage::Busy, now);
                }
            }
            (Ok(Removal::Busy), None) => self.removals.again(name, now),
            (Err(error), key) => {
                // While the daemon drains, each is tried once; the next daemon sweeps.
                if let (Some(key), true) = (key, self.draining.is_some())
                    && self.microvm(key).is_some_and(|microvm| microvm.stage == Stage::Ending)
                {
                    self.order(key, Order::End);
                }
                tracing::warn!(runner = name, "can't delete the runner: {}", chain(error));
                match error {
                    CallError::RateLimited { until, .. } => {
                        self.removals.postpone(name, now + from_now(*until).max(SOON), now);
                    }
                    _ => self.removals.again(name, now),
                }
            }
        }
        Ok(())
    }

    /// The runners that GitHub has: ours that nothing uses any more have to go, and those of ours
    /// that it no longer has don't wait for jobs in vain.
    fn listed(&mut self, asked: Millis, runners: &[Runner]) -> Result<(), DaemonError> {
        let now = self.now();
        self.next_list = Some(now + self.reconcile());
        let names = self.microvms.values().filter_map(|held| match &held.microvm.work {
            Work::Runner(runner) => Some(runner.name.clone()),
            _ => None,
        });
        let names: Vec<String> = names.collect();
        let in_use = names.iter().map(String::as_str).collect();
        let orphans: Vec<_> = orphans(runners, &self.prefix, &in_use)
            .into_iter()
            .filter(|runner| !runner.busy && !self.removals.contains(&runner.name))
            .map(|runner| (runner.name.clone(), runner.id))
            .collect();
        for (name, number) in orphans {
            tracing::warn!(runner = name, "a runner of ours that nothing uses is deleted");
            let known = self.ledger.reader().registration(&name)?;
            let pool = known.and_then(|known| self.pool_named(&known.pool));
            self.removals.add(&name, pool, Some(number), now);
        }
        self.retire_dropped(asked, runners, now);
        Ok(())
    }

    /// Runners that have listened since before the list, and that two lists did not have, are
    /// retired: GitHub dropped them.
    fn retire_dropped(&mut self, asked: Millis, runners: &[Runner], now: Millis) {
        let before = std::mem::take(&mut self.missed);
        let listening = self.microvms.values().filter_map(|held| match &held.microvm.work {
            Work::Runner(runner)
                if held.microvm.stage == Stage::Registered && held.microvm.since < asked =>
            {
                Some((held.microvm.key, runner.name.clone()))
            }
            _ => None,
        });
        let missing: Vec<_> = listening
            .filter(|(_, name)| !runners.iter().any(|runner| runner.name == *name))
            .collect();
        for (key, name) in missing {
            if before.contains(&name) {
                let _about = self.about(Some(key));
                tracing::warn!("GitHub dropped the runner; its microVM ends");
                if let Some(microvm) = self.microvm(key) {
                    microvm.ended_for = Some("GitHub dropped its runner".to_owned());
                    microvm.enter(Stage::Ending, now);
                }
                self.order(key, Order::End);
            } else {
                self.missed.push(name);
            }
        }
        if !self.missed.is_empty() {
            self.list_soon();
        }
    }

    /// Between two lists of the scope's runners.
    fn reconcile(&self) -> std::time::Duration {
        self.settings.github.as_ref().map_or(LIST_SOON, |github| github.reconcile)
    }

    /// Lists the runners sooner than usual.
    pub(super) fn list_soon(&mut self) {
        let soon = self.now() + self.reconcile().min(LIST_SOON);
        self.next_list = self.next_list.map(|at| at.min(soon));
    }

    fn source(&mut self, pool: Option<usize>, error: Option<&CallError>) {
        match (pool, error) {
            (_, None) => {}
            (Some(pool), Some(error)) => {
                let name = self.pools.get(pool).map(|pool| pool.settings.name.as_str());
                tracing::warn!(pool = name, "the scale set can't be heard: {}", chain(error));
                let clock = self.clock;
                if let Some(pool) = self.pools.get_mut(pool)
                    && pool.registrar.is_none()
                {
                    pool.call_failed(error, clock);
                }
            }
            (None, Some(error)) => tracing::warn!("can't poll: {}", chain(error)),
        }
    }
}
