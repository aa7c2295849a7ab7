//! The seam to shepherds: start, attach, order, kill, list. One real driver (`processes`), and a
//! scripted one for tests.
//!
//! What can't be looked at may live: every method that could take a living shepherd for a dead one
//! has an error for "not known".

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::daemon::decide::Load;
use crate::forge::Promise;
use crate::shepherd::AttachError;
use crate::shepherd::event::Event;
use crate::shepherd::plan::{Id, Order, Plan};
use crate::shepherd::planner::Wanted;

/// Orders that a shepherd did not acknowledge, with their numbers.
pub(in crate::daemon) type Unacknowledged = VecDeque<(u64, Order)>;

/// All shepherds of this host's daemon.
pub(in crate::daemon) trait Shepherds: Send + Sync {
    /// Plans a microVM. Nothing of it is there yet.
    fn plan(&self, wanted: Wanted) -> Promise<'static, Result<Box<Plan>, NotPlanned>>;

    /// Starts the shepherd of a plan. Where this fails, nothing is left.
    fn start(&self, plan: Plan) -> Promise<'_, Result<Box<dyn Shepherd>, String>>;

    /// Takes up a shepherd that was started earlier, living or not. That this fails never means
    /// that it is gone, but for [`AttachError::NoDirectory`].
    fn attach<'a>(&'a self, id: &'a Id) -> Promise<'a, Result<Box<dyn Shepherd>, AttachError>>;

    /// Whether nothing of a microVM is left. What can't be looked at may live.
    fn is_gone(&self, id: &Id) -> bool;

    /// Kills a shepherd that is not attached to, and with it everything of its microVM. One that has
    /// ended is no error.
    fn kill(&self, id: &Id) -> io::Result<()>;

    /// Those that were not put away yet, living or not.
    fn list(&self) -> io::Result<Vec<Left>>;

    /// Keeps the output of a microVM that is gone in a file. Gives how many bytes are kept.
    fn keep_output(&self, id: &Id, log: PathBuf) -> Promise<'static, u64>;

    /// Puts away what is left of a microVM that is gone: for good, or as a black box of a pool.
    fn put_away(&self, id: &Id, black_box_of: Option<String>) -> Promise<'static, io::Result<()>>;
}

/// A shepherd that is attached to. Dropped, it goes on.
pub(in crate::daemon) trait Shepherd: Send {
    /// The next event: every connection is told all of them, from the first on. None once no more
    /// come. Nothing is lost where the wait is given up.
    fn event(&mut self) -> Promise<'_, Option<Event>>;

    /// Gives an order. Never waits; whether it was received is seen by what it does not leave in
    /// [`Self::into_unacknowledged`].
    fn order(&mut self, order: &Order) -> Result<(), String>;

    /// Kills it, and nothing else, whatever it wrote of itself. One that has ended is no error.
    fn kill(&self) -> io::Result<()>;

    /// Gives again, to one that was attached to again, what was not acknowledged.
    fn resume(&mut self, orders: Unacknowledged) -> Result<(), String>;

    /// The orders that were not acknowledged.
    fn into_unacknowledged(self: Box<Self>) -> Unacknowledged;

    /// Waits for the end of its process, and tells how it ended.
    fn ended(self: Box<Self>) -> Promise<'static, String>;
}

/// Why a microVM can't be planned.
#[derive(Debug)]
pub(in crate::daemon) struct NotPlanned {
    /// Whether it is for the image.
    pub(in crate::daemon) image: bool,
    /// Why, in words.
    pub(in crate::daemon) why: String,
}

/// What a daemon that comes back finds of a microVM.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Left {
    /// Its name.
    pub(in crate::daemon) id: Id,
    /// Whether it lives.
    pub(in crate::daemon) living: bool,
    /// What it recorded. Complete where it lives no more.
    pub(in crate::daemon) events: Vec<Event>,
    /// Its image and what it takes of the host, where its record says so.
    pub(in crate::daemon) summary: Option<(String, Load)>,
    /// How long ago its job, or else its claim, began, where that is known.
    pub(in crate::daemon) ran: Option<Duration>,
}
