//! The status page: what a person looks at first, and what probes ask for.
//!
//! ```text
//! GET /            pools, jobs, microVMs
//! GET /jobs/N      one job: where its time went, why it failed, what it reached
//! GET /events      the parts of either that change, as server-sent events
//! GET /healthz     whether the daemon's loop answers
//! GET /readyz      whether the daemon can do its work, and why not
//! GET /metrics     metrics, where there are some
//! ```
//!
//! Everything is read from the daemon by a [`Call`], shown, and changes nothing. The HTML is whole
//! without a script; the one script that there is exchanges parts of it for newer ones. Every text
//! comes from somebody who may be hostile (a guest, a repository, who submitted a job): it is
//! escaped by the templates' types, cut, and rid of what is not visible ([`words::text`]), and the
//! browser is told to run and load nothing but the page's own files.
//!
//! Owns how things look; what they mean is the daemon's to say.

mod access;
mod bar;
mod events;
mod health;
mod job;
mod page;
mod words;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use maud::Markup;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::call::Call;
use super::serve;
use super::server::{Calls, finish, valid};
use super::types::{JobId, Overview, Problem, Time};

pub use access::Access;

/// How many connections are served at a time; [`events`] leaves some of them to others.
const CONNECTIONS: usize = 64;
/// How long what was read is shown to others who ask for the same.
const FRESH: Duration = Duration::from_secs(1);

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
const ICON: &str = include_str!("icon.svg");

/// Nothing is run or loaded but the page's own files, whatever gets into its text.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Makes the text of `/metrics`.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What the pages are made of. Clones share it.
#[derive(Clone)]
pub struct Pages {
    calls: Calls,
    /// Counts what changes; the pages look again then.
    changes: watch::Receiver<u64>,
    metrics: Option<Metrics>,
    /// How many may be told what changes.
    streams: Arc<Semaphore>,
    seen: Arc<Mutex<Option<Seen>>>,
    stop: CancellationToken,
}

impl fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// What was read last.
struct Seen {
    at: Instant,
    change: u64,
    overview: Arc<Overview>,
}

impl Pages {
    /// Pages about the daemon that answers `calls` and counts its `changes`.
    pub fn new(
        calls: mpsc::Sender<Call>,
        changes: watch::Receiver<u64>,
        metrics: Option<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(events::STREAMS));
        Self { calls: Calls(calls), changes, metrics, streams, seen: Arc::default(), stop }
    }

    /// Everything at once. The daemon is asked once, however many look.
    async fn overview(&self) -> Result<Arc<Overview>, Problem> {
        let mut seen = self.seen.lock().await;
        let change = *self.changes.borrow();
        if let Some(seen) = &*seen
            && seen.change == change
            && seen.at.elapsed() < FRESH
        {
            return Ok(Arc::clone(&seen.overview));
        }
        let overview = self.calls.ask(|answer| Call::Overview { answer }).await?;
        let overview = Arc::from(overview);
        *seen = Some(Seen { at: Instant::now(), change, overview: Arc::clone(&overview) });
        Ok(overview)
    }

    /// The parts of a page, as they are now.
    async fn parts(&self, subject: Subject) -> Result<Vec<Part>, Problem> {
        match subject {
            Subject::Everything => Ok(page::parts(&*self.overview().await?)),
            Subject::Job(job) => {
                let story = self.calls.ask(|answer| Call::Explain { job, answer }).await?;
                Ok(vec![job::part(&story, Time::now())])
            }
        }
    }
}

/// What a page is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Everything,
    Job(JobId),
}

/// A part of a page that is exchanged when it changes: the id of its element, and what is in it.
type Part = (&'static str, Markup);

/// Serves the pages over TCP until `stop`.
pub async fn serve(listener: TcpListener, access: Access, pages: Pages) {
    let stop = pages.stop.clone();
    let guard = middleware::from_fn_with_state(access, access::check);
    let router = finish(routes(pages)).layer(guard);
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

/// Binds the address of the status page.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// The pages' routes; on the unix socket they are beside those of the API.
pub(super) fn routes(pages: Pages) -> Router {
    let file = |kind: &'static str, text: &'static str| {
        get(move || async move { ([(header::CONTENT_TYPE, kind)], text) })
    };
    let mut router = Router::new()
        .route("/", get(home))
        .route("/jobs/{job}", get(job_page))
        .route("/events", get(events::events))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/style.css", file("text/css; charset=utf-8", STYLE))
        .route("/live.js", file("text/javascript; charset=utf-8", SCRIPT))
        .route("/icon.svg", file("image/svg+xml", ICON));
    if let Some(metrics) = pages.metrics.clone() {
        let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
        router = router.route("/metrics", get(move || async move { (kind, metrics()) }));
    }
    router.with_state(pages).layer(middleware::map_response(protect))
}

/// What a browser is told with every answer.
async fn protect(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn home(State(pages): State<Pages>) -> Response {
    match pages.overview().await {
        Ok(overview) => Html(page::whole(&overview, pages.metrics.is_some())).into_response(),
        Err(problem) => refuse(problem),
    }
}

async fn job_page(State(pages): State<Pages>, job: Result<Path<JobId>, PathRejection>) -> Response {
    let story = async {
        let Path(job) = valid(job)?;
        pages.calls.ask(|answer| Call::Explain { job, answer }).await
    };
    match story.await {
        Ok(story) => Html(job::whole(&story, Time::now())).into_response(),
        Err(problem) => refuse(problem),
    }
}

/// A problem as a page, with the status that it has in the API.
fn refuse(problem: Problem) -> Response {
    let page = page::problem(&problem);
    let status: StatusCode = problem.into_response().status();
    (status, Html(page)).into_response()
}

#[cfg(test)]
mod tests;
