//! Event streams that update open pages.
//!
//! Each stream sends the parts of its page that differ from what it sent last, at most twice a
//! second. If nothing differs, it sends an empty update every few seconds, so that the page knows
//! that the daemon is alive. The number of streams is bounded, and they end with the daemon.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

use super::{PageSubject, Pages};
use crate::server::valid;
use crate::types::{ApiError, ApiErrorKind, JobId, Time};

/// The maximum number of streams.
pub(super) const STREAMS: usize = 32;
/// The minimum time between two messages of a stream.
const MIN_INTERVAL: Duration = Duration::from_millis(500);
/// The maximum time between two messages of a stream, apart from the daemon's response time. The
/// script relies on it.
const MAX_INTERVAL: Duration = Duration::from_secs(5);

/// The query `?job=7`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct EventsQuery {
    job: Option<JobId>,
    /// Checked already by the access check.
    #[serde(rename = "token")]
    _token: serde::de::IgnoredAny,
}

/// An update.
#[derive(Serialize)]
struct Update<'a> {
    /// The time by the daemon's clock.
    at: Time,
    /// The changed parts, by the ID of their element.
    parts: BTreeMap<&'static str, &'a str>,
}

pub(super) async fn events(
    State(pages): State<Pages>,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = valid(query)?;
    let permit = std::sync::Arc::clone(&pages.streams).try_acquire_owned().map_err(|_| {
        ApiError::new(ApiErrorKind::Unavailable, "too many status pages are open")
            .hint("Reload the page to see the current state.")
    })?;
    let subject = query.job.map_or(PageSubject::Everything, PageSubject::Job);
    let stream = EventStream {
        changes: pages.changes.clone(),
        pages,
        subject,
        sent: BTreeMap::new(),
        last: None,
        _permit: permit,
    };
    let stream = Sse::new(futures_util::stream::unfold(stream, EventStream::next));
    // Keeps proxies from buffering the stream.
    let unbuffered = (header::HeaderName::from_static("x-accel-buffering"), "no");
    Ok(([unbuffered], stream).into_response())
}

struct EventStream {
    pages: Pages,
    changes: watch::Receiver<u64>,
    subject: PageSubject,
    /// The parts that the browser has.
    sent: BTreeMap<&'static str, String>,
    last: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl EventStream {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        let stop = self.pages.stop.clone();
        let update = stop.run_until_cancelled(self.update()).await.flatten()?;
        Some((Ok(update), self))
    }

    /// Returns the next update; `None` if the daemon no longer responds or has pruned the job. The
    /// browser shows that, and reconnects.
    async fn update(&mut self) -> Option<Event> {
        if let Some(last) = self.last {
            let heartbeat = sleep_until(last + MAX_INTERVAL);
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = heartbeat => {}
            }
            sleep_until(last + MIN_INTERVAL).await;
        }
        self.changes.mark_unchanged();
        self.last = Some(Instant::now());
        let parts = self.pages.parts(self.subject).await.ok()?;
        let mut changed_parts = Vec::new();
        for (name, part) in parts {
            let part = part.into_string();
            if self.sent.get(name) != Some(&part) {
                changed_parts.push(name);
                self.sent.insert(name, part);
            }
        }
        let parts =
            changed_parts.iter().filter_map(|name| Some((*name, self.sent.get(name)?.as_str())));
        Event::default().json_data(Update { at: Time::now(), parts: parts.collect() }).ok()
    }
}
