//! Polling of repositories for the jobs that wait for a runner.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use hyper::header::ETAG;
use serde::Deserialize;

use super::classify::next_page;
use super::client::GitHubClient;
use super::error::CallError;
use super::job::{RawJob, WorkflowJob, WorkflowJobStatus};
use super::wire::{ApiCall, read};
use mayfly_config::github::Repository;

/// The maximum number of pages of one list: GitHub's filtered searches end at 1,000 results.
const MAX_PAGES: usize = 10;
/// The maximum number of cached pages. Further pages count against the rate limit each time.
const MAX_CACHED_PAGES: usize = 2048;
/// The maximum number of attempts to get a page.
const MAX_ATTEMPTS: u32 = 4;
/// The delay between two attempts.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The permission that polling needs.
const PERMISSION: &str = "repository permission Actions: read, for that repository";

/// The result of one poll of all repositories.
#[derive(Debug)]
pub struct JobSnapshot {
    /// When the first request was sent: later changes may be missing.
    pub at: SystemTime,
    /// Jobs that wait for a runner.
    pub queued: Vec<WorkflowJob>,
    /// Jobs that a runner has; `runner_name` is the runner.
    pub in_progress: Vec<WorkflowJob>,
    /// The repositories whose poll failed: their jobs are unknown or incomplete.
    pub failures: Vec<(Repository, CallError)>,
    /// The number of calls that the poll took.
    pub calls: u64,
}

/// Pages with their `ETags` by path, for conditional requests.
#[derive(Default)]
pub(super) struct Cache {
    pages: HashMap<String, CachedPage>,
    round: u64,
}

#[derive(Clone)]
struct CachedPage {
    etag: String,
    page: Page,
    /// The last poll that requested it.
    round: u64,
}

/// The parsed content of a page.
#[derive(Clone)]
struct Page {
    runs: Vec<u64>,
    jobs: Vec<WorkflowJob>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct RawPage {
    #[serde(default)]
    workflow_runs: Vec<RawRun>,
    #[serde(default)]
    jobs: Vec<RawJob>,
}

#[derive(Deserialize)]
struct RawRun {
    id: u64,
}

impl GitHubClient {
    /// Lists the queued and running jobs of each repository. Pages that have not changed since the
    /// last poll don't count against the rate limit (conditional requests).
    pub async fn waiting_jobs(&self, repositories: &[Repository]) -> JobSnapshot {
        // Polls don't overlap: a second one waits for the first and reuses its cache.
        let mut cache = self.0.cache.lock().await;
        cache.round += 1;
        let mut snapshot = JobSnapshot {
            at: SystemTime::now(),
            queued: Vec::new(),
            in_progress: Vec::new(),
            failures: Vec::new(),
            calls: 0,
        };
        for repository in repositories {
            if let Err(error) = self.poll(repository, &mut cache, &mut snapshot).await {
                snapshot.failures.push((repository.clone(), error));
            }
        }
        let round = cache.round;
        cache.pages.retain(|_, page| page.round == round);
        snapshot
    }

    async fn poll(
        &self,
        repository: &Repository,
        cache: &mut Cache,
        snapshot: &mut JobSnapshot,
    ) -> Result<(), CallError> {
        let root = format!("/repos/{repository}/actions/runs");
        let mut runs = BTreeSet::new();
        // A run with a running job can have other jobs that wait.
        for status in ["queued", "in_progress"] {
            let first = format!("{root}?status={status}&per_page=100");
            for page in self.pages(repository, first, cache, &mut snapshot.calls).await? {
                runs.extend(page.runs);
            }
        }
        for run in runs {
            let first = format!("{root}/{run}/jobs?filter=latest&per_page=100");
            for page in self.pages(repository, first, cache, &mut snapshot.calls).await? {
                for job in page.jobs {
                    match job.status {
                        WorkflowJobStatus::Queued => snapshot.queued.push(job),
                        WorkflowJobStatus::InProgress => snapshot.in_progress.push(job),
                        _ => {}
                    }
                }
            }
        }
        Ok(())
    }

    async fn pages(
        &self,
        repository: &Repository,
        first: String,
        cache: &mut Cache,
        calls: &mut u64,
    ) -> Result<Vec<Page>, CallError> {
        let mut pages = Vec::new();
        let mut next = Some(first);
        for _ in 0..MAX_PAGES {
            let Some(path) = next.take() else { break };
            let page = self.page_with_retries(repository, path, cache, calls).await?;
            next = page.next.clone().filter(|page| self.0.wire.is_api_url(page));
            pages.push(page);
        }
        Ok(pages)
    }

    /// Gets a page, with retries: one missing page makes the whole list useless.
    async fn page_with_retries(
        &self,
        repository: &Repository,
        path: String,
        cache: &mut Cache,
        calls: &mut u64,
    ) -> Result<Page, CallError> {
        for _ in 1..MAX_ATTEMPTS {
            *calls += 1;
            match self.page(repository, path.clone(), cache).await {
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY_DELAY).await,
                result => return result,
            }
        }
        *calls += 1;
        self.page(repository, path, cache).await
    }

    async fn page(
        &self,
        repository: &Repository,
        path: String,
        cache: &mut Cache,
    ) -> Result<Page, CallError> {
        let round = cache.round;
        let etag = cache.pages.get(&path).map(|cached| cached.etag.clone());
        let call = ApiCall { etag, ..ApiCall::get(&*path).needs(PERMISSION) };
        let response = self.call(&call).await?;
        if response.status == 304
            && let Some(cached) = cache.pages.get_mut(&path)
        {
            cached.round = round;
            return Ok(cached.page.clone());
        }
        let raw: RawPage = read(&response, &call.name())?;
        let name = repository.to_string();
        let page = Page {
            runs: raw.workflow_runs.into_iter().map(|run| run.id).collect(),
            jobs: raw.jobs.into_iter().map(|job| job.into_job(&name)).collect(),
            next: next_page(&response.headers),
        };
        let etag = response.headers.get(ETAG).and_then(|etag| etag.to_str().ok());
        if let Some(etag) = etag.filter(|_| cache.pages.len() < MAX_CACHED_PAGES) {
            let cached = CachedPage { etag: etag.to_owned(), page: page.clone(), round };
            cache.pages.insert(path, cached);
        }
        Ok(page)
    }
}
