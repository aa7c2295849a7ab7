//! Which jobs of named repositories wait for a runner, by asking.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use hyper::header::ETAG;
use serde::Deserialize;

use super::classify::next_page;
use super::client::Client;
use super::error::CallError;
use super::job::{Job, RawJob, Status};
use super::target::Repository;
use super::wire::{Ask, read};

/// The most pages of one list: GitHub's filtered searches end at 1,000 results.
const MOST_PAGES: usize = 10;
/// The most answers that are remembered; beyond that, calls cost what they cost.
const MOST_REMEMBERED: usize = 2048;
/// How often a page is asked for that does not come.
const TRIES: u32 = 4;
/// Between two of these tries.
const AGAIN: Duration = Duration::from_secs(1);
/// The right that polling needs.
const RIGHT: &str = "repository permission Actions: read, for that repository";

/// What the repositories said.
#[derive(Debug)]
pub struct Snapshot {
    /// When the first question was asked: what happened since may be missing.
    pub at: SystemTime,
    /// Jobs that wait for a runner.
    pub queued: Vec<Job>,
    /// Jobs that a runner has; `runner_name` says which.
    pub in_progress: Vec<Job>,
    /// The repositories that could not be asked (or not to the end): what they hold is not known.
    pub problems: Vec<(Repository, CallError)>,
    /// The calls that it took.
    pub calls: u64,
}

/// Answers that GitHub may say are still right, by address.
#[derive(Default)]
pub(super) struct Cache {
    pages: HashMap<String, Remembered>,
    round: u64,
}

#[derive(Clone)]
struct Remembered {
    etag: String,
    page: Page,
    /// The last round that asked for it.
    round: u64,
}

/// What is of use of a page.
#[derive(Clone)]
struct Page {
    runs: Vec<u64>,
    jobs: Vec<Job>,
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

impl Client {
    /// Asks each repository for its queued and running jobs. What has not changed since the last
    /// time costs nothing of the rate limit (conditional requests).
    pub async fn waiting_jobs(&self, repositories: &[Repository]) -> Snapshot {
        // Polls don't overlap: a second one waits for the first, and finds its answers.
        let mut cache = self.0.cache.lock().await;
        cache.round += 1;
        let mut snapshot = Snapshot {
            at: SystemTime::now(),
            queued: Vec::new(),
            in_progress: Vec::new(),
            problems: Vec::new(),
            calls: 0,
        };
        for repository in repositories {
            if let Err(error) = self.poll(repository, &mut cache, &mut snapshot).await {
                snapshot.problems.push((repository.clone(), error));
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
        snapshot: &mut Snapshot,
    ) -> Result<(), CallError> {
        let root = format!("/repos/{repository}/actions/runs");
        let mut runs = BTreeSet::new();
        // A run with a job that runs can have others that wait.
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
                        Status::Queued => snapshot.queued.push(job),
                        Status::InProgress => snapshot.in_progress.push(job),
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
        for _ in 0..MOST_PAGES {
            let Some(path) = next.take() else { break };
            let page = self.page_at_last(repository, path, cache, calls).await?;
            next = page.next.clone().filter(|page| self.0.wire.is_ours(page));
            pages.push(page);
        }
        Ok(pages)
    }

    /// Asks for a page until it comes: one that is missing makes the whole list useless.
    async fn page_at_last(
        &self,
        repository: &Repository,
        path: String,
        cache: &mut Cache,
        calls: &mut u64,
    ) -> Result<Page, CallError> {
        for _ in 1..TRIES {
            *calls += 1;
            match self.page(repository, path.clone(), cache).await {
                Err(error) if error.is_transient() => tokio::time::sleep(AGAIN).await,
                end => return end,
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
        let etag = cache.pages.get(&path).map(|remembered| remembered.etag.clone());
        let ask = Ask { etag, ..Ask::get(&*path).needs(RIGHT) };
        let answer = self.ask(&ask).await?;
        if answer.status == 304
            && let Some(remembered) = cache.pages.get_mut(&path)
        {
            remembered.round = round;
            return Ok(remembered.page.clone());
        }
        let raw: RawPage = read(&answer, &ask.name())?;
        let name = repository.to_string();
        let page = Page {
            runs: raw.workflow_runs.into_iter().map(|run| run.id).collect(),
            jobs: raw.jobs.into_iter().map(|job| job.of(&name)).collect(),
            next: next_page(&answer.headers),
        };
        let etag = answer.headers.get(ETAG).and_then(|etag| etag.to_str().ok());
        if let Some(etag) = etag.filter(|_| cache.pages.len() < MOST_REMEMBERED) {
            let remembered = Remembered { etag: etag.to_owned(), page: page.clone(), round };
            cache.pages.insert(path, remembered);
        }
        Ok(page)
    }
}
