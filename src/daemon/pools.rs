//! The pools of the settings under stable ids, and the failures of each.

use std::collections::BTreeMap;

use super::decide::{ActiveBlocker, Backoff, Blocker, PoolId, Resources};
use super::time::Millis;
use mayfly_config::{PoolConfig, PoolName};

/// The pools of the settings. Each has an id that stays the same for the daemon's life: through
/// reloads, and for a pool that is removed and comes back.
#[derive(Debug, Default)]
pub(super) struct Pools {
    /// All pool names seen so far. A pool's id is its index here.
    names: Vec<String>,
    /// The pools of the settings, in their order.
    configured: Vec<(PoolId, PoolConfig)>,
}

impl Pools {
    pub(super) fn new(settings: &[PoolConfig]) -> Self {
        let mut pools = Self::default();
        pools.apply_settings(settings);
        pools
    }

    /// Applies settings that were read again.
    pub(super) fn apply_settings(&mut self, settings: &[PoolConfig]) {
        let named = settings.iter().map(|pool| (self.intern(pool.name.as_str()), pool.clone()));
        self.configured = named.collect();
    }

    /// Returns the id for a pool name, and assigns one if it has none.
    pub(super) fn intern(&mut self, name: &str) -> PoolId {
        let known = self.names.iter().position(|known| known == name);
        let index = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        PoolId(u32::try_from(index).unwrap_or(u32::MAX))
    }

    /// Returns the id of a configured pool.
    pub(super) fn find(&self, name: &str) -> Option<PoolId> {
        let mut named = self.iter().filter(|(_, pool)| pool.name.as_str() == name);
        named.next().map(|(id, _)| id)
    }

    /// Returns the id of a configured pool by its checked name.
    pub(super) fn find_named(&self, name: &PoolName) -> Option<PoolId> {
        self.find(name.as_str())
    }

    /// Returns the settings of a configured pool.
    pub(super) fn get(&self, id: PoolId) -> Option<&PoolConfig> {
        self.iter().find(|(own, _)| *own == id).map(|(_, pool)| pool)
    }

    /// Returns the configured pools, in their order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (PoolId, &PoolConfig)> {
        self.configured.iter().map(|(id, pool)| (*id, pool))
    }
}

/// Returns the resources of one microVM of a pool.
pub(super) fn microvm_resources(pool: &PoolConfig) -> Resources {
    Resources { processors: pool.cpus, memory: pool.memory.0 }
}

/// Failures of one kind per pool: the last reason, and when to try again.
#[derive(Debug, Default)]
pub(super) struct PoolFailures(BTreeMap<PoolId, (Backoff, ActiveBlocker)>);

impl PoolFailures {
    /// Records a failure.
    pub(super) fn record(&mut self, pool: PoolId, reason: Blocker, now: Millis) {
        let backoff = self.next_backoff(pool, now);
        self.0.insert(pool, (backoff, ActiveBlocker { until: backoff.until(), reason }));
    }

    /// Records a failure that is known to last until a given time.
    pub(super) fn record_until(
        &mut self,
        pool: PoolId,
        reason: Blocker,
        until: Millis,
        now: Millis,
    ) {
        let backoff = self.next_backoff(pool, now);
        self.0.insert(pool, (backoff, ActiveBlocker { until: Some(until), reason }));
    }

    fn next_backoff(&self, pool: PoolId, now: Millis) -> Backoff {
        let mut backoff = self.0.get(&pool).map(|(backoff, _)| *backoff).unwrap_or_default();
        backoff.record_failure(now);
        backoff
    }

    /// Forgets the failures of a pool.
    pub(super) fn clear(&mut self, pool: PoolId) {
        self.0.remove(&pool);
    }

    /// Returns the blocker of a pool, if any.
    pub(super) fn blocker(&self, pool: PoolId) -> Option<ActiveBlocker> {
        self.0.get(&pool).map(|(_, blocker)| blocker.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pool;

    #[test]
    fn a_pool_keeps_its_id_when_others_come_and_go() {
        let mut pools = Pools::new(&[pool("a"), pool("b")]);
        let (a, b) = (pools.find("a").unwrap(), pools.find("b").unwrap());
        pools.apply_settings(&[pool("c"), pool("b")]);
        assert_eq!((pools.find("a"), pools.find("b")), (None, Some(b)));
        assert!(pools.get(a).is_none());
        pools.apply_settings(&[pool("b"), pool("a")]);
        assert_eq!(pools.find("a"), Some(a));
        let order: Vec<_> = pools.iter().map(|(id, _)| id).collect();
        assert_eq!(order, [b, a]);
        assert_eq!(pools.intern("of an older daemon"), PoolId(3));
        assert_eq!(pools.find("of an older daemon"), None);
    }

    #[test]
    fn waits_grow_with_each_failure_until_a_success() {
        let (mut failures, pool) = (PoolFailures::default(), PoolId(7));
        let (mut now, mut waits) = (Millis(5), Vec::new());
        for _ in 0..4 {
            failures.record(pool, Blocker::BootsFail("kernel panic".to_owned()), now);
            let blocker = failures.blocker(pool).unwrap();
            assert_eq!(blocker.reason, Blocker::BootsFail("kernel panic".to_owned()));
            let until = blocker.until.unwrap();
            waits.push(until.since(now).as_secs());
            now = until;
        }
        assert_eq!(waits, [1, 2, 4, 8]);
        failures.record_until(pool, Blocker::RateLimited, Millis(99_000), now);
        assert_eq!(failures.blocker(pool).unwrap().until, Some(Millis(99_000)));
        assert_eq!(failures.blocker(PoolId(8)), None);
        failures.clear(pool);
        assert_eq!(failures.blocker(pool), None);
    }
}
