//! The status page and the health and metrics endpoints.
//!
//! ```text
//! GET /            pools, jobs, microVMs
//! GET /jobs/N      one job: timeline, cause of a failure, egress
//! GET /events      updates of these pages, as server-sent events
//! GET /healthz     whether the daemon's event loop responds
//! GET /readyz      whether the daemon can do its work, and why not
//! GET /metrics     metrics, if enabled
//! ```
//!
//! The pages are read-only: they get everything from the daemon through a [`Call`]. They work
//! without JavaScript; the one script replaces parts of the page with newer ones. Every text may be
//! hostile (from a guest, a repository, the person who submitted a job). The templates escape it,
//! [`format::text`] truncates it and makes invisible characters visible, and the content security
//! policy lets the browser run and load only the page's own files.
//!
//! Owns how things look. How they read is up to [`present`](crate::present), what they mean to the
//! daemon.

mod access;
mod bar;
mod events;
mod format;
mod health;
mod job;
mod page;

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
use super::types::{ApiError, JobId, Overview, Time};

pub use access::Access;

/// The maximum number of connections served at a time; [`events`] leaves some of them to others.
const CONNECTIONS: usize = 64;
/// How long an overview is reused for other requests.
const CACHE_TIME: Duration = Duration::from_secs(1);

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("live.js");
const ICON: &str = include_str!("icon.svg");

/// The browser runs and loads only the page's own files, whatever the page contains.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; \
    connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// Renders the text of `/metrics`.
pub type Metrics = Arc<dyn Fn() -> String + Send + Sync>;

/// The data source of the pages. Clones share it.
#[derive(Clone)]
pub struct Pages {
    calls: Calls,
    /// Counts changes of the daemon's state; streams update then.
    changes: watch::Receiver<u64>,
    metrics: Option<Metrics>,
    /// Permits for event streams.
    streams: Arc<Semaphore>,
    cache: Arc<Mutex<Option<CachedOverview>>>,
    stop: CancellationToken,
}

impl fmt::Debug for Pages {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pages").finish_non_exhaustive()
    }
}

/// The last overview that was read.
struct CachedOverview {
    at: Instant,
    change: u64,
    overview: Arc<Overview>,
}

impl Pages {
    /// Creates pages about the daemon that receives `calls` and counts its `changes`.
    pub fn new(
        calls: mpsc::Sender<Call>,
        changes: watch::Receiver<u64>,
        metrics: Option<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let streams = Arc::new(Semaphore::new(events::STREAMS));
        Self { calls: Calls(calls), changes, metrics, streams, cache: Arc::default(), stop }
    }

    /// Returns the overview. Concurrent requests share one call to the daemon.
    async fn overview(&self) -> Result<Arc<Overview>, ApiError> {
        let mut cache = self.cache.lock().await;
        let change = *self.changes.borrow();
        if let Some(cached) = &*cache
            && cached.change == change
            && cached.at.elapsed() < CACHE_TIME
        {
            return Ok(Arc::clone(&cached.overview));
        }
        let overview = self.calls.request(|responder| Call::Overview { responder }).await?;
        let overview = Arc::from(overview);
        *cache =
            Some(CachedOverview { at: Instant::now(), change, overview: Arc::clone(&overview) });
        Ok(overview)
    }

    /// Returns the current parts of a page.
    async fn parts(&self, subject: PageSubject) -> Result<Vec<Part>, ApiError> {
        match subject {
            PageSubject::Everything => Ok(page::parts(&*self.overview().await?)),
            PageSubject::Job(job) => {
                let explanation =
                    self.calls.request(|responder| Call::Explain { job, responder }).await?;
                Ok(vec![job::part(&explanation, Time::now())])
            }
        }
    }
}

/// The subject of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageSubject {
    Everything,
    Job(JobId),
}

/// A part of a page that is replaced when it changes: the ID of its element, and its content.
type Part = (&'static str, Markup);

/// Serves the pages over TCP until `stop`.
pub async fn serve(listener: TcpListener, access: Access, pages: Pages) {
    let stop = pages.stop.clone();
    let access_check = middleware::from_fn_with_state(access, access::check);
    let router = finish(routes(pages)).layer(access_check);
    serve::serve(listener, router, CONNECTIONS, stop).await;
}

/// Binds the address of the status page.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Returns the routes of the pages. The Unix socket serves them beside the API.
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
    router.with_state(pages).layer(middleware::map_response(add_security_headers))
}

/// Adds the security headers to a response.
async fn add_security_headers(mut response: Response) -> Response {
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
        Ok(overview) => Html(page::render(&overview, pages.metrics.is_some())).into_response(),
        Err(error) => render_error(error),
    }
}

async fn job_page(State(pages): State<Pages>, job: Result<Path<JobId>, PathRejection>) -> Response {
    let explanation = async {
        let Path(job) = valid(job)?;
        pages.calls.request(|responder| Call::Explain { job, responder }).await
    };
    match explanation.await {
        Ok(explanation) => Html(job::render(&explanation, Time::now())).into_response(),
        Err(error) => render_error(error),
    }
}

/// Renders an error as a page, with the status code of the API.
fn render_error(error: ApiError) -> Response {
    let page = page::error_page(&error);
    let status: StatusCode = error.into_response().status();
    (status, Html(page)).into_response()
}

#[cfg(test)]
mod tests;
