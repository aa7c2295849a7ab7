//! The traits through which the daemon reaches shepherds: start, attach, command, kill, list. One
//! real implementation ([`processes`](super::processes)), and a fake one for tests.
//!
//! A shepherd whose state can't be read may be running: every method that could mistake a running
//! shepherd for a dead one has an error for "unknown".

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::decide::Resources;
use mayfly_forge::BoxFuture;
use mayfly_shepherd::AttachError;
use mayfly_shepherd::event::Event;
use mayfly_shepherd::plan::{MicrovmId, MicrovmPlan, ShepherdCommand};
use mayfly_shepherd::planner::MicrovmRequest;
use mayfly_shepherd::record::RecordedDeadlines;

/// Commands that a shepherd did not acknowledge, with their numbers.
pub(crate) type Unacknowledged = VecDeque<(u64, ShepherdCommand)>;

/// The shepherds of this host's daemon.
pub(crate) trait Shepherds: Send + Sync {
    /// Plans a microVM. Creates nothing yet.
    fn plan(
        &self,
        wanted: MicrovmRequest,
    ) -> BoxFuture<'static, Result<Box<MicrovmPlan>, PlanFailure>>;

    /// Starts the shepherd of a plan. If this fails, nothing is left behind.
    fn start(&self, plan: MicrovmPlan) -> BoxFuture<'_, Result<Box<dyn Shepherd>, String>>;

    /// Attaches to a shepherd that was started earlier, running or not. A failure does not mean
    /// that it is gone, except [`AttachError::NoDirectory`].
    fn attach<'a>(
        &'a self,
        id: &'a MicrovmId,
    ) -> BoxFuture<'a, Result<Box<dyn Shepherd>, AttachError>>;

    /// Returns whether nothing of a microVM runs. If that can't be read, it may run.
    fn is_gone(&self, id: &MicrovmId) -> bool;

    /// Kills a shepherd that is not attached, and with it everything of its microVM. A shepherd
    /// that has already ended is not an error.
    fn kill(&self, id: &MicrovmId) -> io::Result<()>;

    /// Lists the microVMs whose directories still exist, running or not.
    fn list(&self) -> io::Result<Vec<FoundMicrovm>>;

    /// Saves the output of an ended microVM's job in a file. Returns the number of saved bytes.
    fn save_output(&self, id: &MicrovmId, log: PathBuf) -> BoxFuture<'static, u64>;

    /// Removes the directory of an ended microVM, or retains it as a black box of a pool.
    fn dispose(
        &self,
        id: &MicrovmId,
        black_box_pool: Option<String>,
    ) -> BoxFuture<'static, io::Result<()>>;
}

/// A connection to a shepherd. The shepherd continues when it is dropped.
pub(crate) trait Shepherd: Send {
    /// Returns the next event. Every connection receives all events from the first on. `None` means
    /// that no more come. Cancel-safe.
    fn event(&mut self) -> BoxFuture<'_, Option<Event>>;

    /// Sends a command. Never waits. Commands that were not received stay in
    /// [`Self::into_unacknowledged`].
    fn send_command(&mut self, command: &ShepherdCommand) -> Result<(), String>;

    /// Kills this process only, whatever its files say. A shepherd that has already ended is no
    /// error.
    fn kill(&self) -> io::Result<()>;

    /// Sends unacknowledged commands again after a new attach.
    fn resume(&mut self, commands: Unacknowledged) -> Result<(), String>;

    /// Returns the commands that were not acknowledged.
    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged;

    /// Waits for its process to end, and returns how it ended.
    fn wait(self: Box<Self>) -> BoxFuture<'static, String>;
}

/// The reason why a microVM can't be planned.
#[derive(Debug)]
pub(crate) struct PlanFailure {
    /// Whether the image is the cause.
    pub(crate) is_image_error: bool,
    /// The error message.
    pub(crate) message: String,
}

/// A microVM that a starting daemon finds.
#[derive(Debug, Clone)]
pub(crate) struct FoundMicrovm {
    /// Its id.
    pub(crate) id: MicrovmId,
    /// Whether its shepherd is running.
    pub(crate) is_alive: bool,
    /// Its recorded events. Complete if the shepherd is not running.
    pub(crate) events: Vec<Event>,
    /// Its image and resources, if its record has them.
    pub(crate) summary: Option<(String, Resources)>,
    /// Its deadlines, if its record has them.
    pub(crate) deadlines: Option<RecordedDeadlines>,
    /// How long ago its job began, or its claim; `None` if unknown.
    pub(crate) ran_for: Option<Duration>,
}
