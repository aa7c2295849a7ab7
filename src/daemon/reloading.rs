//! Settings that are read again while the daemon runs.
//!
//! Pools are known by their places; those that stay may get another one.

use std::collections::HashMap;

use super::adoption::NO_POOL;
use super::answering::problem;
use super::error::DaemonError;
use super::pools::Pool;
use super::registrar::{GitHub, Registrar};
use super::serving::Reread;
use super::world::World;
use crate::api::types::{Problem, ReloadReport};
use crate::config::{Settings, Trigger};
use crate::failure::Code;

impl World {
    /// Takes on settings that were read again, as far as a running daemon can. Wrong ones change
    /// nothing.
    pub(super) fn reload(
        &mut self,
        reread: &mut Reread,
    ) -> Result<Result<ReloadReport, Problem>, DaemonError> {
        let new = match reread() {
            Ok(new) => new,
            Err(problem) => return Ok(Err(problem)),
        };
        // Tried here, so that a key that can't be used is told now and not at the next start.
        if let Err(error) = new.github.as_ref().map(GitHub::new).transpose() {
            return Ok(Err(problem(&error)));
        }
        let warnings = new.warnings.clone();
        let (new, changes) = new.take_on(&self.settings);
        self.take_on(new)?;
        Ok(Ok(ReloadReport {
            applied: changes.applied,
            needs_restart: changes.needs_restart,
            warnings,
        }))
    }

    fn take_on(&mut self, new: Settings) -> Result<(), DaemonError> {
        let old = std::mem::take(&mut self.pools);
        let names: Vec<_> = old.iter().map(|pool| pool.settings.name.clone()).collect();
        let mut old: HashMap<_, _> =
            old.into_iter().map(|pool| (pool.settings.name.clone(), pool)).collect();
        let pools = new.pools.iter().map(|settings| match old.remove(&settings.name) {
            Some(mut pool) => {
                pool.settings = settings.clone();
                pool
            }
            None => Pool::new(settings.clone(), self.registrar(settings.trigger)),
        });
        self.pools = pools.collect();
        let place = |index: usize| {
            let name = names.get(index)?;
            new.pools.iter().position(|pool| pool.name == *name)
        };
        self.demand.renumber(place);
        self.removals.renumber(place);
        let dropped: Vec<_> =
            self.queue.iter().filter(|queued| place(queued.pool).is_none()).copied().collect();
        self.queue.retain_mut(|queued| place(queued.pool).map(|new| queued.pool = new).is_some());
        for queued in dropped {
            if let Some(job) = self.known(queued.job)? {
                self.ledger.fail(job.id, NO_POOL, Some(Code::BadConfiguration as u8))?;
            }
        }
        for held in self.microvms.values_mut() {
            held.microvm.pool = held.microvm.pool.and_then(place);
        }
        self.settings = new;
        // A pool that is new may serve what waited for one.
        self.seed_demand()?;
        self.changed = true;
        self.hold_sets();
        Ok(())
    }

    /// Whom a pool registers with that has no scale set of its own.
    pub(super) fn registrar(&self, trigger: Trigger) -> Option<Registrar> {
        match trigger {
            Trigger::None | Trigger::ScaleSet | Trigger::Auto => None,
            Trigger::Webhook | Trigger::Poll | Trigger::Always => {
                self.github.as_ref().map(|github| Registrar::Scope(github.client.clone()))
            }
        }
    }
}
