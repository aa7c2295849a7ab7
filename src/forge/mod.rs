//! The seam to a forge: who has work, who is registered for it, and what became of both.
//!
//! The daemon knows a forge by this trait and these words alone; `github/forge/` is the one real
//! implementation, and the daemon's tests have a scripted one. Another forge is a folder like that
//! one. Nothing is believed of a forge that it did not say: what it says may come twice, late, in
//! any order or never.
//!
//! Owns no state. Knows nothing of microVMs or of the ledger.

mod error;
mod said;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::{mpsc, watch};

use crate::config::{Pool, PoolName};
pub use error::ForgeError;
pub use said::{Change, Delivery, Job, Said};

/// What a call comes to. A trait object's methods can't be `async`.
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A forge, as its settings name it.
pub trait Forge: Send + Sync {
    /// Makes a runner for a pool. `name` is new, and was recorded before the call. Not idempotent:
    /// after [`ForgeError::Ambiguous`] the runner may be there.
    fn register<'a>(
        &'a self,
        name: &'a str,
        pool: &'a Pool,
    ) -> Promise<'a, Result<Registered, ForgeError>>;

    /// Deletes a runner by its number or, where that never came back, by its name. `pool` is whose
    /// runner it is, where that is known. That it is gone already is well.
    fn deregister<'a>(
        &'a self,
        name: &'a str,
        pool: Option<&'a str>,
        number: Option<u64>,
    ) -> Promise<'a, Result<Removal, ForgeError>>;

    /// All runners that are registered where this forge registers them, others' among them.
    fn runners(&self) -> Promise<'_, Result<Vec<Runner>, ForgeError>>;

    /// The names that its runners contact, where it has a list of them.
    fn names(&self) -> Promise<'_, Result<Option<Vec<String>>, ForgeError>> {
        Box::pin(async { Ok(None) })
    }

    /// Listens for work, and for what became of it, as `wanted` has it at each moment; ends with
    /// it. What is heard is told one after another; where nobody takes it, it waits.
    fn listen(
        self: Arc<Self>,
        wanted: watch::Receiver<Wanted>,
        to: mpsc::Sender<Said>,
    ) -> Promise<'static, ()>;

    /// Whether runners of a pool with those labels are given a job that asks for these.
    fn serves(&self, job: &[String], pool: &[String]) -> bool;

    /// Whether [`Self::listen`] says of waiting jobs again and again that they wait.
    fn confirms(&self) -> bool;
}

/// Where a forge has something for pools, by their names, in its own words.
pub type Places = BTreeMap<String, BTreeSet<String>>;

/// What is to be listened for.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// The pools that jobs may be for, with the runners that each may have at most: 0 where no more
    /// work is to be taken.
    pub pools: BTreeMap<PoolName, (Pool, u32)>,
    /// What [`Said::Holds`] said, now or to a daemon before this one, and no [`Said::Left`] since:
    /// places by the pools' names, of which there may be some that are no more.
    pub held: Places,
    /// How often this process was absent: what was said meanwhile may be lost.
    pub absences: u64,
}

/// A runner that was just made.
#[derive(Debug)]
pub struct Registered {
    /// Its number.
    pub number: u64,
    /// What starts it, once.
    pub start: SecretString,
}

/// A runner as a forge knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runner {
    /// Its number.
    pub number: u64,
    /// Its name.
    pub name: String,
    /// Whether it has a job.
    pub busy: bool,
}

/// What became of a runner that was to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is no more, by this call or before it.
    Gone,
    /// It has a job, and stays.
    Busy,
}
