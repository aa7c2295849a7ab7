//! The interface to a forge: which jobs wait, which runners are registered, and what happens to
//! both.
//!
//! The daemon knows a forge only through this trait and these types. `github/forge/` is the one
//! real implementation; the daemon's tests have a fake one. A new forge needs a crate like
//! `github`. Only what a forge reports is taken as true, and its events can be repeated, late, out
//! of order or lost.
//!
//! Owns no state. Knows nothing of microVMs or the ledger.

mod error;
mod event;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;

use secrecy::SecretString;
use tokio::sync::{mpsc, watch};

pub use error::{ForgeError, ForgeSetupError};
pub use event::{ForgeEvent, JobChange, JobDelivery, RemoteJob};
use mayfly_config::{PoolConfig, PoolName, Settings};

/// A boxed future. The methods of a trait object can't be `async`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Opens the forge of the settings. The command line passes a driver to the daemon, which knows none
/// itself.
pub trait ForgeDriver: Send + Sync {
    /// Checks the settings as far as that needs no call to the forge.
    ///
    /// # Errors
    ///
    /// [`Self::open`] would fail with these settings.
    fn check(&self, settings: &Settings) -> Result<(), ForgeSetupError>;

    /// Opens the forge, if the settings name one. `daemon` identifies this daemon to people at the
    /// forge.
    fn open<'a>(
        &'a self,
        settings: &'a Settings,
        daemon: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<dyn Forge>>, ForgeSetupError>>;
}

/// A forge, as configured in the settings.
pub trait Forge: Send + Sync {
    /// Creates a runner for a pool. `name` is new and was recorded before the call. Not idempotent:
    /// after [`ForgeError::Ambiguous`] the runner may exist.
    fn register<'a>(
        &'a self,
        name: &'a str,
        pool: &'a PoolConfig,
    ) -> BoxFuture<'a, Result<NewRunner, ForgeError>>;

    /// Deletes a runner by its ID or, if the ID never arrived, by its name. `pool` is the runner's
    /// pool, if known. Succeeds if the runner is already gone.
    fn deregister<'a>(
        &'a self,
        name: &'a str,
        pool: Option<&'a str>,
        id: Option<u64>,
    ) -> BoxFuture<'a, Result<RemovalOutcome, ForgeError>>;

    /// Lists all runners registered in this forge's scope, including those of others.
    fn runners(&self) -> BoxFuture<'_, Result<Vec<RemoteRunner>, ForgeError>>;

    /// Returns the domain names that the forge's runners contact, if it publishes a list.
    fn runner_domains(&self) -> BoxFuture<'_, Result<Option<Vec<String>>, ForgeError>> {
        Box::pin(async { Ok(None) })
    }

    /// Listens for jobs and their changes according to the current `request`; ends when `request`
    /// closes. Sends events one at a time and waits while the receiver is full.
    fn listen(
        self: Arc<Self>,
        request: watch::Receiver<ListenRequest>,
        events: mpsc::Sender<ForgeEvent>,
    ) -> BoxFuture<'static, ()>;

    /// Whether the forge assigns a job with the labels `job` to runners with the labels `pool`.
    fn serves(&self, job: &[String], pool: &[String]) -> bool;

    /// Whether [`Self::listen`] reports waiting jobs again and again for as long as they wait.
    fn relists_waiting_jobs(&self) -> bool;
}

/// Locations of scale sets by pool name, in the forge's own format.
pub type ScaleSetLocations = BTreeMap<String, BTreeSet<String>>;

/// What [`Forge::listen`] listens for.
#[derive(Debug, Clone, Default)]
pub struct ListenRequest {
    /// The pools that take jobs, each with its maximum number of runners; 0 takes no more jobs.
    pub pools: BTreeMap<PoolName, (PoolConfig, u32)>,
    /// Locations from [`ForgeEvent::ScaleSetPlanned`], of this daemon or an earlier one, without a
    /// [`ForgeEvent::ScaleSetRemoved`] since. Some of these pools may no longer exist.
    pub locations: ScaleSetLocations,
    /// How often this process was suspended: events sent meanwhile may be lost.
    pub absences: u64,
}

/// A newly registered runner.
#[derive(Debug)]
pub struct NewRunner {
    /// The forge's ID of the runner.
    pub id: u64,
    /// The secret that starts the runner, once.
    pub start_config: SecretString,
}

/// A registered runner as the forge lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRunner {
    /// The forge's ID of the runner.
    pub id: u64,
    /// The runner's name.
    pub name: String,
    /// Whether it has a job.
    pub busy: bool,
}

/// The result of a request to delete a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemovalOutcome {
    /// The runner no longer exists.
    Gone,
    /// The runner has a job and was not deleted.
    Busy,
}
