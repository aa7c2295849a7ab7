//! The pools by their names for the daemon, and what stands in the way of each.

use std::collections::BTreeMap;

use super::decide::{Backoff, Blocker, Load, Obstacle, PoolId};
use super::millis::Millis;
use crate::config::{Pool, PoolName};

/// The pools of the settings, each under a name that stays the same as long as the daemon lives:
/// through reloads, also of one that goes and comes back.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// All names that there ever were, at the places of their numbers.
    names: Vec<String>,
    /// Those of the settings, in their order.
    configured: Vec<(PoolId, Pool)>,
}

impl Pools {
    pub(super) fn new(settings: &[Pool]) -> Self {
        let mut pools = Self::default();
        pools.take_on(settings);
        pools
    }

    /// Takes on settings that were read again.
    pub(super) fn take_on(&mut self, settings: &[Pool]) {
        let named = settings.iter().map(|pool| (self.name(pool.name.as_str()), pool.clone()));
        self.configured = named.collect();
    }

    /// The pool of that name, whether the settings have it or not.
    pub(super) fn name(&mut self, name: &str) -> PoolId {
        let known = self.names.iter().position(|known| known == name);
        let place = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        PoolId(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// The pool of that name, where the settings have it.
    pub(super) fn named(&self, name: &str) -> Option<PoolId> {
        let mut named = self.iter().filter(|(_, pool)| pool.name.as_str() == name);
        named.next().map(|(id, _)| id)
    }

    /// The same for a name that is one.
    pub(super) fn of(&self, name: &PoolName) -> Option<PoolId> {
        self.named(name.as_str())
    }

    /// The settings of a pool, where they have it.
    pub(super) fn get(&self, id: PoolId) -> Option<&Pool> {
        self.iter().find(|(own, _)| *own == id).map(|(_, pool)| pool)
    }

    /// The pools of the settings, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PoolId, &Pool)> {
        self.configured.iter().map(|(id, pool)| (*id, pool))
    }
}

/// What one microVM of a pool takes.
pub(super) fn load(pool: &Pool) -> Load {
    Load { processors: pool.cpus, memory: pool.memory.0 }
}

/// Failures of one kind, pool by pool: what went wrong last, and when it may be tried again.
#[derive(Debug, Default)]
pub(super) struct Troubles(BTreeMap<PoolId, (Backoff, Obstacle)>);

impl Troubles {
    /// It failed once more.
    pub(super) fn failed(&mut self, pool: PoolId, why: Blocker, now: Millis) {
        let backoff = self.after(pool, now);
        self.0.insert(pool, (backoff, Obstacle { until: backoff.until(), why }));
    }

    /// The same, where it is known until when it will.
    pub(super) fn failed_until(&mut self, pool: PoolId, why: Blocker, until: Millis, now: Millis) {
        let backoff = self.after(pool, now);
        self.0.insert(pool, (backoff, Obstacle { until: Some(until), why }));
    }

    fn after(&self, pool: PoolId, now: Millis) -> Backoff {
        let mut backoff = self.0.get(&pool).map(|(backoff, _)| *backoff).unwrap_or_default();
        backoff.failed(now);
        backoff
    }

    /// It worked.
    pub(super) fn worked(&mut self, pool: PoolId) {
        self.0.remove(&pool);
    }

    /// What stands in the way.
    pub(super) fn obstacle(&self, pool: PoolId) -> Option<Obstacle> {
        self.0.get(&pool).map(|(_, obstacle)| obstacle.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::testing::pool;

    #[test]
    fn a_pool_keeps_its_name_whatever_others_come_and_go() {
        let mut pools = Pools::new(&[pool("a"), pool("b")]);
        let (a, b) = (pools.named("a").unwrap(), pools.named("b").unwrap());
        pools.take_on(&[pool("c"), pool("b")]);
        assert_eq!((pools.named("a"), pools.named("b")), (None, Some(b)));
        assert!(pools.get(a).is_none());
        pools.take_on(&[pool("b"), pool("a")]);
        assert_eq!(pools.named("a"), Some(a));
        let order: Vec<_> = pools.iter().map(|(id, _)| id).collect();
        assert_eq!(order, [b, a]);
        assert_eq!(pools.name("of an older daemon"), PoolId(3));
        assert_eq!(pools.named("of an older daemon"), None);
    }

    #[test]
    fn what_fails_waits_longer_each_time_until_it_works() {
        let (mut troubles, pool) = (Troubles::default(), PoolId(7));
        let (mut now, mut waits) = (Millis(5), Vec::new());
        for _ in 0..4 {
            troubles.failed(pool, Blocker::BootsFail("kernel panic".to_owned()), now);
            let obstacle = troubles.obstacle(pool).unwrap();
            assert_eq!(obstacle.why, Blocker::BootsFail("kernel panic".to_owned()));
            let until = obstacle.until.unwrap();
            waits.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8]);
        troubles.failed_until(pool, Blocker::RateLimited, Millis(99_000), now);
        assert_eq!(troubles.obstacle(pool).unwrap().until, Some(Millis(99_000)));
        assert_eq!(troubles.obstacle(PoolId(8)), None);
        troubles.worked(pool);
        assert_eq!(troubles.obstacle(pool), None);
    }
}
