//! The daemon under test: fake drivers, paused time, a host in memory.

mod ends;
mod fault_injection;
mod faults;
mod forge;
mod harness;
mod host;
mod pauses;
mod regressions;
mod shepherds;

use std::collections::BTreeMap;

use mayfly_config::{Environment, PoolConfig, PoolName, Settings};
use mayfly_host::size::Size;

/// Returns default settings.
pub(super) fn settings() -> Settings {
    let environment =
        Environment { variables: BTreeMap::new(), processors: 8, memory: Size::gibibytes(32) };
    Settings::load(None, &environment).unwrap()
}

/// Returns a default pool with a given name.
pub(super) fn pool(name: &str) -> PoolConfig {
    let mut pool = settings().pools.remove(0);
    pool.name = PoolName::parse(name).unwrap();
    pool
}
