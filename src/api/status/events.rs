//! Telling browsers what has changed.
//!
//! Each stream sends the parts of its page that differ from what it last sent, at most twice a
//! second; where nothing differs, a beat, by which the page knows that the daemon is there. The
//! number of streams is bounded, and they end with the daemon.

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

use super::{Pages, Subject};
use crate::api::server::valid;
use crate::api::types::{JobId, Problem, ProblemKind, Time};

/// How many streams there may be.
pub(super) const STREAMS: usize = 32;
/// Between two messages of a stream at least.
const GAP: Duration = Duration::from_millis(500);
/// Between two messages of a stream at most, beside the time that the daemon takes to answer. The
/// script knows it, too.
const BEAT: Duration = Duration::from_secs(5);

/// `?job=7`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct About {
    job: Option<JobId>,
    /// The token has been looked at.
    #[serde(rename = "token")]
    _token: serde::de::IgnoredAny,
}

/// A message.
#[derive(Serialize)]
struct News<'a> {
    /// The time by the daemon's clock.
    at: Time,
    /// The parts that differ, by the id of their element.
    parts: BTreeMap<&'static str, &'a str>,
}

pub(super) async fn events(
    State(pages): State<Pages>,
    about: Result<Query<About>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(about) = valid(about)?;
    let permit = std::sync::Arc::clone(&pages.streams).try_acquire_owned().map_err(|_| {
        Problem::new(ProblemKind::Unavailable, "too many pages are open")
            .hint("The page itself shows the same; it is read again when it is loaded again.")
    })?;
    let subject = about.job.map_or(Subject::Everything, Subject::Job);
    let stream = Stream {
        changes: pages.changes.clone(),
        pages,
        subject,
        sent: BTreeMap::new(),
        last: None,
        _permit: permit,
    };
    let stream = Sse::new(futures_util::stream::unfold(stream, Stream::next));
    // Proxies that collect answers would hold these back.
    let unbuffered = (header::HeaderName::from_static("x-accel-buffering"), "no");
    Ok(([unbuffered], stream).into_response())
}

struct Stream {
    pages: Pages,
    changes: watch::Receiver<u64>,
    subject: Subject,
    /// What the browser has.
    sent: BTreeMap<&'static str, String>,
    last: Option<Instant>,
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        let stop = self.pages.stop.clone();
        let news = stop.run_until_cancelled(self.news()).await.flatten()?;
        Some((Ok(news), self))
    }

    /// The next message; none where the daemon no longer answers, or its job is forgotten. The
    /// browser says so, and tries again.
    async fn news(&mut self) -> Option<Event> {
        if let Some(last) = self.last {
            let beat = sleep_until(last + BEAT);
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                () = beat => {}
            }
            sleep_until(last + GAP).await;
        }
        self.changes.mark_unchanged();
        self.last = Some(Instant::now());
        let parts = self.pages.parts(self.subject).await.ok()?;
        let mut different = Vec::new();
        for (name, part) in parts {
            let part = part.into_string();
            if self.sent.get(name) != Some(&part) {
                different.push(name);
                self.sent.insert(name, part);
            }
        }
        let parts =
            different.iter().filter_map(|name| Some((*name, self.sent.get(name)?.as_str())));
        Event::default().json_data(News { at: Time::now(), parts: parts.collect() }).ok()
    }
}
