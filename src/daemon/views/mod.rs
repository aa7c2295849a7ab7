//! The views: what API, status page, service manager and metrics read of the daemon.
//!
//! A [`Look`] is the daemon at one moment, as its loop sees it; a [`Sight`] is what others are shown
//! of that, which they may take away and complete from the ledger in their own time, by a connection
//! of their own ([`Reading`]): nobody who looks on holds up the loop. Changes nothing.

mod explaining;
mod observing;
mod overview;
mod readiness;
mod sight;
mod spans;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::backlog::Backlog;
use super::clock::Clock;
use super::decide::{Obstacle, PoolId};
use super::error::DaemonError;
use super::fleet::Fleet;
use super::millis::Millis;
use super::pools::Pools;
use super::registry::Registry;
use super::tasks::Tasks;
use crate::api::Answer;
use crate::api::types::{Problem, ProblemKind};
use crate::config::Settings;
use crate::failure::chain;
use crate::ledger::{Ledger, LedgerError, Reader};
use crate::telemetry::otlp;
pub(super) use explaining::{job_view, judged_view, no_job};
pub(super) use observing::Observer;
pub(super) use sight::Sight;

/// The daemon at one moment.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) settings: &'a Settings,
    pub(super) pools: &'a Pools,
    pub(super) fleet: &'a Fleet,
    pub(super) backlog: &'a Backlog,
    pub(super) registry: &'a Registry,
    /// Why each pool's jobs wait, by the last decision.
    pub(super) blockers: &'a BTreeMap<PoolId, Obstacle>,
    pub(super) draining: bool,
    pub(super) clock: Clock,
}

/// What is shown, to whom, and whether there is something new.
pub(super) struct Views {
    pub(super) observer: Observer,
    reading: Reading,
    /// Whether anything that the API shows has changed since that was last told.
    changed: bool,
    /// Counts such changes, for those who look on.
    changes: watch::Sender<u64>,
}

impl Views {
    /// Where traces are wanted, what takes them to their collector is beside it, to be run.
    pub(super) fn new(
        settings: &Settings,
        path: &Path,
        ledger: &Ledger,
        instance: &str,
    ) -> Result<(Self, Option<otlp::Exporter>), DaemonError> {
        let (observer, exporter) = Observer::new(settings, ledger, instance)?;
        let reading = Reading(Arc::new(Mutex::new(Reader::open(path)?)));
        let views = Self { observer, reading, changed: true, changes: watch::Sender::new(0) };
        Ok((views, exporter))
    }

    /// Tells of changes from here on.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Something may have changed.
    pub(super) fn change(&mut self) {
        self.changed = true;
    }

    /// Shows how things are after a decision. Gives when to come back, even if nothing happens.
    pub(super) fn show(
        &mut self,
        look: Look<'_>,
        reader: &Reader,
    ) -> Result<Option<Millis>, DaemonError> {
        if std::mem::take(&mut self.changed) {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        self.observer.observe(look, reader)
    }

    /// Answers a question from the ledger, in the time that takes.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        answer: Answer<T>,
        tasks: &mut Tasks,
        read: impl FnOnce(&Reader) -> Read<T> + Send + 'static,
    ) {
        let Reading(reader) = self.reading.clone();
        tasks.spawn(async move {
            let read = move || {
                let answered = read(&reader.lock().unwrap_or_else(PoisonError::into_inner));
                // Whoever asked may have hung up.
                let _ = answer.send(answered.unwrap_or_else(|error| Err(unread(&error))));
            };
            // A panic there is told to whoever asked by the answer that does not come.
            let _ = tokio::task::spawn_blocking(read).await;
        });
    }
}

/// What reading for an answer comes to.
pub(super) type Read<T> = Result<Result<T, Problem>, LedgerError>;

/// A connection to the ledger that only reads.
#[derive(Clone)]
struct Reading(Arc<Mutex<Reader>>);

fn unread(error: &LedgerError) -> Problem {
    Problem::new(ProblemKind::Internal, chain(error))
}
