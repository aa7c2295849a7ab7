//! What the loop does with what it hears: from its tasks, and from the forge.

use std::collections::BTreeSet;

use super::backlog::{Backlog, Word};
use super::decide::{Blocker, MachineKey, Stage};
use super::error::DaemonError;
use super::fleet::{Microvm, News, NotPlanned, Told, Work};
use super::happening::Happening;
use super::millis::Millis;
use super::registry::Deregistered;
use super::running::Daemon;
use super::views::Observer;
use crate::forge::{ForgeError, Registered, Removal, Runner, Said};
use crate::shepherd::event::Event;

impl Daemon {
    pub(super) fn hear(&mut self, happening: Happening) -> Result<(), DaemonError> {
        self.views.change();
        let _about = self.about(self.subject(&happening));
        match happening {
            Happening::Planned(key, Ok(plan)) => {
                self.fleet.start(key, *plan, &mut self.ledger, &mut self.tasks)
            }
            Happening::Planned(key, Err(NotPlanned { image, why })) => {
                let blocker = if image { Blocker::Image } else { Blocker::BootsFail };
                self.not_booted(key, blocker(why))
            }
            Happening::NotBooted(key, why) => self.not_booted(key, Blocker::BootsFail(why)),
            Happening::Event(key, number, event) => self.event(key, number, &event),
            Happening::Kept(key, bytes) => {
                self.keeping.kept(bytes, &self.settings);
                self.over(key)
            }
            Happening::Registered(key, name, Ok(made)) => self.registered(key, &name, &made),
            Happening::Registered(key, name, Err(error)) => self.not_registered(key, &name, &error),
            Happening::Deregistered(name, removed) => self.deregistered(&name, &removed),
            Happening::Listed(asked, runners) => self.runners(asked, &runners),
            Happening::Named(names) => self.names.named(&names, &mut self.ledger, self.clock.now()),
            Happening::Swept(swept) => {
                self.keeping.swept(&swept, &mut self.ledger, self.clock.now())
            }
        }
    }

    /// The microVM that something is heard of.
    fn subject(&self, happening: &Happening) -> Option<MachineKey> {
        match happening {
            Happening::Planned(key, _)
            | Happening::NotBooted(key, _)
            | Happening::Event(key, ..)
            | Happening::Kept(key, _)
            | Happening::Registered(key, ..) => Some(*key),
            Happening::Deregistered(name, _) => self.fleet.with_runner(name).map(Microvm::key),
            Happening::Listed(..) | Happening::Named(_) | Happening::Swept(_) => None,
        }
    }

    fn not_booted(&mut self, key: MachineKey, why: Blocker) -> Result<(), DaemonError> {
        if let Some(microvm) = self.fleet.get(key) {
            Observer::not_started(microvm.pool_name(), &why);
        }
        self.fleet.not_booted(key, why, &mut self.ledger, self.clock.now())
    }

    /// An event of a shepherd.
    pub(super) fn event(
        &mut self,
        key: MachineKey,
        number: usize,
        event: &Event,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let Some(told) = self.fleet.hear(key, number, event, &mut self.ledger, now)? else {
            return Ok(());
        };
        if let Some(microvm) = self.fleet.get(key) {
            self.views.observer.event(microvm, event);
        }
        let Told { id, pool, work, news } = told;
        match (news, work) {
            (News::Started, Work::Local(job)) => Backlog::started(job, &mut self.ledger)?,
            (News::Listening, Work::Runner(_)) => tracing::info!("the runner listens"),
            (News::TookJob(job), Work::Runner(runner)) => {
                tracing::info!(name = job, "the runner took a job");
                self.registry.took(&runner.name, pool, &job, &mut self.ledger)?;
                let (backlog, mut desk) = self.desk();
                backlog.taken(pool, id.as_str(), runner.name, &job, &mut desk)?;
            }
            (News::Ended(_), _) => self.ended(key)?,
            _ => {}
        }
        Ok(())
    }

    /// The forge made a runner: its microVM is given what starts it.
    fn registered(
        &mut self,
        key: MachineKey,
        name: &str,
        made: &Registered,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let pool = self.pool_of(key).map(|(id, _)| id);
        self.registry.registered(name, made.number, pool, &mut self.ledger, now)?;
        if self.fleet.registered(key, name, made) && pool.is_some() {
            tracing::info!(runner = name, "registered");
            self.hand_over_runner(key, &made.start);
            return Ok(());
        }
        // It ended in the meantime.
        self.registry.remove(name, Some(made.number), &self.ledger, now)
    }

    /// The forge made no runner, or did not say so: the microVM is warm again and takes a new name
    /// the next time.
    fn not_registered(
        &mut self,
        key: MachineKey,
        name: &str,
        error: &ForgeError,
    ) -> Result<(), DaemonError> {
        let id = self.fleet.get(key).map(Microvm::pool);
        let pool = id.and_then(|id| Some((id, self.pools.get(id)?.name.as_str())));
        self.registry.not_registered(name, pool, error, &mut self.ledger, self.clock)?;
        self.fleet.unregister(key, self.clock.now());
        Ok(())
    }

    /// A runner was to be deleted at the forge.
    fn deregistered(
        &mut self,
        name: &str,
        removed: &Result<Removal, ForgeError>,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let key = self.fleet.with_runner(name).map(Microvm::key);
        let ledger = &mut self.ledger;
        let became = self.registry.deregistered(name, removed, key.is_some(), ledger, now)?;
        let Some(key) = key else { return Ok(()) };
        match became {
            Deregistered::Gone => self.fleet.end_retired(key, now),
            Deregistered::Busy => self.fleet.stays(key, now),
            // While the daemon drains, each is tried once; the next daemon sweeps.
            Deregistered::Later if self.is_draining() => self.fleet.end_retired(key, now),
            Deregistered::Later => {}
        }
        Ok(())
    }

    /// The runners that the forge has: those of ours that it no longer has don't wait for jobs in
    /// vain.
    fn runners(
        &mut self,
        asked: Millis,
        runners: &Result<Vec<Runner>, ForgeError>,
    ) -> Result<(), DaemonError> {
        let now = self.now();
        let ours = self.fleet.iter().filter_map(|one| Some((one, one.runner()?.name.as_str())));
        let (mut in_use, mut listening) = (BTreeSet::new(), BTreeSet::new());
        for (microvm, name) in ours {
            in_use.insert(name);
            if microvm.stage() == Stage::Registered && microvm.since() < asked {
                listening.insert(name);
            }
        }
        let dropped = self.registry.listed(runners, &in_use, &listening, &self.ledger, now)?;
        for name in dropped {
            let Some(key) = self.fleet.with_runner(&name).map(Microvm::key) else { continue };
            let _about = self.about(Some(key));
            tracing::warn!("the forge dropped the runner; its microVM ends");
            self.fleet.end(key, "GitHub dropped its runner", now);
        }
        Ok(())
    }

    /// The forge said something.
    pub(super) fn listen(&mut self, said: Said) -> Result<(), DaemonError> {
        self.views.change();
        let (now, clock) = (self.now(), self.clock);
        match said {
            Said::Delivered(delivery) => {
                let (backlog, mut desk) = self.desk();
                let word = backlog.delivered(*delivery, &mut desk)?;
                word.map_or(Ok(()), |word| self.word(word))
            }
            Said::Listed { repository, begun, queued, running } => {
                let (backlog, mut desk) = self.desk();
                let jobs = (&queued[..], &running[..]);
                let words = backlog.listed(repository, clock.of(begun), jobs, &mut desk)?;
                words.into_iter().try_for_each(|word| self.word(word))
            }
            Said::Counted { pool, waiting } => {
                if let Some(pool) = self.pools.of(&pool) {
                    self.backlog.counted(pool, waiting, now);
                }
                Ok(())
            }
            Said::Took { pool, runner, job } => {
                if let Some(pool) = self.pools.of(&pool) {
                    self.backlog.took(pool, runner.clone(), now);
                }
                self.word(Word::Has { runner, job })
            }
            Said::Ended { runner } => self.word(Word::Had { runner }),
            Said::Ready(pool) => {
                if let Some(pool) = self.pools.of(&pool) {
                    self.registry.is_ready(pool, now);
                }
                Ok(())
            }
            Said::Holds { pool, place } => self.holds(&pool, &place, true),
            Said::Left { pool, place } => self.holds(&pool, &place, false),
            Said::Answers => {
                self.registry.answers(now);
                Ok(())
            }
            Said::Fails(pool, error) => {
                let pool =
                    pool.as_ref().and_then(|pool| Some((self.pools.of(pool)?, pool.as_str())));
                self.registry.fails(pool, &error, clock);
                Ok(())
            }
        }
    }

    /// What the forge has for a pool is kept, so that a daemon after this one can have it removed.
    fn holds(&mut self, pool: &str, place: &str, is_there: bool) -> Result<(), DaemonError> {
        self.ledger.note_place(pool, place, is_there)?;
        self.registry.holds(self.ledger.places()?);
        self.want();
        Ok(())
    }

    /// The forge's word on a runner; what the runner says on its console is only sooner.
    fn word(&mut self, word: Word) -> Result<(), DaemonError> {
        let now = self.now();
        match word {
            Word::Has { runner, job } => match self.fleet.has_job(&runner, &job, now) {
                Some(pool) => self.registry.took(&runner, pool, &job, &mut self.ledger),
                None => Ok(()),
            },
            Word::Had { runner } => {
                self.fleet.had_job(&runner, now);
                Ok(())
            }
        }
    }
}
