//! The daemon in a test: scripted drivers for its seams, time that is stood still, a host in memory.

mod absence;
mod faults;
mod forge;
mod host;
mod injection;
mod mends;
mod shepherds;
mod stage;

use std::collections::BTreeMap;

use crate::config::{Environment, Pool, PoolName, Settings};
use crate::host::size::Size;

/// Settings of which nothing is said.
pub(super) fn settings() -> Settings {
    let environment =
        Environment { variables: BTreeMap::new(), processors: 8, memory: Size::gibibytes(32) };
    Settings::load(None, &environment).unwrap()
}

/// A pool of that name, of which nothing else is said.
pub(super) fn pool(name: &str) -> Pool {
    let mut pool = settings().pools.remove(0);
    pool.name = PoolName::parse(name).unwrap();
    pool
}
