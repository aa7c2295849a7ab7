//! The views: the daemon's state as the API, the status page, the service manager and the metrics
//! read it.
//!
//! A [`DaemonView`] borrows the daemon's state in its loop. A [`Snapshot`] is a copy of what others
//! may see. They take it away and complete it from the ledger over a connection of their own
//! ([`SharedReader`]), so that no reader holds up the loop. Changes nothing.

mod explanation;
mod observer;
mod overview;
mod readiness;
mod snapshot;
mod spans;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::backlog::Backlog;
use super::clock::Clock;
use super::decide::{ActiveBlocker, PoolId};
use super::error::DaemonError;
use super::fleet::Fleet;
use super::pools::Pools;
use super::registry::Registry;
use super::tasks::Tasks;
use super::time::Millis;
pub(super) use explanation::{job_view, job_view_with_warning, unknown_job};
use mayfly_api::Responder;
use mayfly_api::types::{ApiError, ApiErrorKind};
use mayfly_config::Settings;
use mayfly_failure::chain;
use mayfly_ledger::{Ledger, LedgerError, LedgerReader};
use mayfly_telemetry::otlp;
pub(super) use observer::Observer;
pub(super) use snapshot::Snapshot;

/// The borrowed state of the daemon at one moment.
#[derive(Clone, Copy)]
pub(super) struct DaemonView<'a> {
    pub(super) settings: &'a Settings,
    pub(super) pools: &'a Pools,
    pub(super) fleet: &'a Fleet,
    pub(super) backlog: &'a Backlog,
    pub(super) registry: &'a Registry,
    /// Why each pool's jobs wait, from the last decision.
    pub(super) blockers: &'a BTreeMap<PoolId, ActiveBlocker>,
    pub(super) draining: bool,
    pub(super) clock: Clock,
}

/// The readers of the daemon's state: the observer, the ledger reader, and who waits for changes.
pub(super) struct Views {
    pub(super) observer: Observer,
    reader: SharedReader,
    /// Whether anything that the API shows has changed since the last notification.
    changed: bool,
    /// The number of notifications, watched by clients.
    changes: watch::Sender<u64>,
}

impl Views {
    /// Creates the views. If traces are configured, also returns their exporter, which the caller
    /// runs.
    pub(super) fn new(
        settings: &Settings,
        path: &Path,
        ledger: &Ledger,
        instance: &str,
    ) -> Result<(Self, Option<otlp::TraceExporter>), DaemonError> {
        let (observer, exporter) = Observer::new(settings, ledger, instance)?;
        let reader = SharedReader(Arc::new(Mutex::new(LedgerReader::open(path)?)));
        let views = Self { observer, reader, changed: true, changes: watch::Sender::new(0) };
        Ok((views, exporter))
    }

    /// Returns a receiver that is notified of changes.
    pub(super) fn watch(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Marks that something may have changed.
    pub(super) fn mark_changed(&mut self) {
        self.changed = true;
    }

    /// Publishes the state after a decision. Returns when to run again, even if nothing happens.
    pub(super) fn publish(
        &mut self,
        view: DaemonView<'_>,
        reader: &LedgerReader,
    ) -> Result<Option<Millis>, DaemonError> {
        if std::mem::take(&mut self.changed) {
            self.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
        self.observer.observe(view, reader)
    }

    /// Answers a request from the ledger in a task.
    pub(super) fn respond_from_ledger<T: Send + 'static>(
        &self,
        responder: Responder<T>,
        tasks: &mut Tasks,
        read: impl FnOnce(&LedgerReader) -> ReadResult<T> + Send + 'static,
    ) {
        let SharedReader(reader) = self.reader.clone();
        tasks.spawn(async move {
            let read = move || {
                let result = read(&reader.lock().unwrap_or_else(PoisonError::into_inner));
                // The client may have hung up.
                let _ = responder.send(result.unwrap_or_else(|error| Err(ledger_error(&error))));
            };
            // After a panic the dropped responder tells the client.
            let _ = tokio::task::spawn_blocking(read).await;
        });
    }
}

/// The result of reading a response from the ledger.
pub(super) type ReadResult<T> = Result<Result<T, ApiError>, LedgerError>;

/// A read-only connection to the ledger.
#[derive(Clone)]
struct SharedReader(Arc<Mutex<LedgerReader>>);

fn ledger_error(error: &LedgerError) -> ApiError {
    ApiError::new(ApiErrorKind::Internal, chain(error))
}
