//! The JSON of GitHub's responses and webhooks, with every field that its `OpenAPI` description
//! requires.

use serde_json::{Value, json};

use crate::state::hooks::Delivery;
use crate::state::jobs::{Conclusion, Job, Status};
use crate::state::settings::App;
use crate::state::{Group, State};
use crate::time::{Millis, text};

/// The commit of every run.
const COMMIT: &str = "3484a3fb816e0859fd6e1cea078d76385ff50625";

/// The link fields of a user with their paths.
const USER_LINKS: [(&str, &str); 9] = [
    ("followers_url", "/followers"),
    ("following_url", "/following{/other_user}"),
    ("gists_url", "/gists{/gist_id}"),
    ("starred_url", "/starred{/owner}{/repo}"),
    ("subscriptions_url", "/subscriptions"),
    ("organizations_url", "/orgs"),
    ("repos_url", "/repos"),
    ("events_url", "/events{/privacy}"),
    ("received_events_url", "/received_events"),
];

/// The link fields of a repository, without `_url`.
const REPOSITORY_LINKS: [&str; 36] = [
    "archive",
    "assignees",
    "blobs",
    "branches",
    "collaborators",
    "comments",
    "commits",
    "compare",
    "contents",
    "contributors",
    "deployments",
    "downloads",
    "events",
    "forks",
    "git_commits",
    "git_refs",
    "git_tags",
    "hooks",
    "issue_comment",
    "issue_events",
    "issues",
    "keys",
    "labels",
    "languages",
    "merges",
    "milestones",
    "notifications",
    "pulls",
    "releases",
    "stargazers",
    "statuses",
    "subscribers",
    "subscription",
    "tags",
    "teams",
    "trees",
];

/// Returns a user or an organization.
fn user(state: &State, login: &str) -> Value {
    let url = format!("{}/users/{login}", state.url);
    let mut user = json!({
        "login": login, "id": 1_000_001, "node_id": "O_sim", "gravatar_id": "",
        "avatar_url": format!("{url}/avatar"), "html_url": format!("{}/{login}", state.url),
        "type": "Organization", "site_admin": false,
    });
    for (field, path) in USER_LINKS {
        user[field] = format!("{url}{path}").into();
    }
    user["url"] = url.into();
    user
}

/// Returns a repository in short form.
fn repository(state: &State, full_name: &str) -> Value {
    let (owner, name) = full_name.split_once('/').unwrap_or(("", full_name));
    let url = format!("{}/repos/{full_name}", state.url);
    let mut repository = json!({
        "id": 1_000_002, "node_id": "R_sim", "name": name, "full_name": full_name,
        "private": true, "owner": user(state, owner), "description": null, "fork": false,
        "html_url": format!("{}/{full_name}", state.url),
    });
    for link in REPOSITORY_LINKS {
        repository[format!("{link}_url")] = format!("{url}/{link}").into();
    }
    repository["url"] = url.into();
    repository
}

/// Returns a job.
pub fn job(state: &State, job: &Job) -> Value {
    let url = format!("{}/repos/{}", state.url, job.repository);
    let runner = job.runner.as_ref();
    json!({
        "id": job.id,
        "run_id": job.run_id,
        "run_url": format!("{url}/actions/runs/{}", job.run_id),
        "run_attempt": 1,
        "node_id": "CR_sim",
        "head_sha": COMMIT,
        "head_branch": "main",
        "url": format!("{url}/actions/jobs/{}", job.id),
        "html_url": format!("{}/{}/actions/runs/{}", state.url, job.repository, job.run_id),
        "status": job.status.text(),
        "conclusion": job.conclusion.map(Conclusion::text),
        "created_at": text(job.queued_at),
        // GitHub returns the time of queuing here until the job starts.
        "started_at": text(job.started_at.unwrap_or(job.queued_at)),
        "completed_at": job.completed_at.map(text),
        "name": job.name,
        "steps": [],
        "check_run_url": format!("{url}/check-runs/{}", job.id),
        "labels": job.labels,
        "runner_id": runner.map(|runner| runner.id),
        "runner_name": runner.map(|runner| runner.name.clone()),
        "runner_group_id": runner.map(|runner| runner.group),
        "runner_group_name": runner.map(|runner| group_name(state, runner.group)),
        "workflow_name": "CI",
    })
}

/// Returns the run of a job.
pub(super) fn run(state: &State, job: &Job) -> Value {
    let url = format!("{}/repos/{}", state.url, job.repository);
    let this = format!("{url}/actions/runs/{}", job.run_id);
    let person = json!({ "name": "Octocat", "email": "octocat@example.com" });
    let repository = repository(state, &job.repository);
    let updated = job.completed_at.or(job.started_at).unwrap_or(job.queued_at);
    json!({
        "id": job.run_id, "node_id": "WFR_sim", "name": "CI", "display_title": job.name,
        "head_branch": "main", "head_sha": COMMIT, "path": ".github/workflows/ci.yml",
        "run_number": job.run_id, "run_attempt": 1, "event": "push",
        "status": job.status.text(),
        "conclusion": job.conclusion.map(Conclusion::text),
        "workflow_id": 161_335, "workflow_url": format!("{url}/actions/workflows/161335"),
        "html_url": format!("{}/{}/actions/runs/{}", state.url, job.repository, job.run_id),
        "pull_requests": [], "created_at": text(job.queued_at), "updated_at": text(updated),
        "jobs_url": format!("{this}/jobs"), "logs_url": format!("{this}/logs"),
        "artifacts_url": format!("{this}/artifacts"), "cancel_url": format!("{this}/cancel"),
        "rerun_url": format!("{this}/rerun"), "check_suite_url": format!("{url}/check-suites/1"),
        "url": this,
        "head_commit": {
            "id": COMMIT, "tree_id": COMMIT, "message": "Change something",
            "timestamp": text(job.queued_at), "author": person, "committer": person,
        },
        "repository": repository, "head_repository": repository,
    })
}

/// Returns the body of a `workflow_job` webhook.
pub fn event(state: &State, about: &Job, action: &str) -> Value {
    let mut workflow_job = job(state, about);
    if about.status == Status::Queued {
        workflow_job["conclusion"] = Value::Null;
    }
    let owner = about.repository.split('/').next().unwrap_or_default();
    let mut event = json!({
        "action": action,
        "workflow_job": workflow_job,
        "repository": repository(state, &about.repository),
        "sender": user(state, owner),
    });
    if let Some(app) = &state.settings.app {
        event["installation"] = json!({ "id": app.installation, "node_id": "MDIz_sim" });
    }
    event
}

/// Returns a registered runner.
pub(super) fn runner(state: &State, id: u64, now: Millis) -> Value {
    let Some(runner) = state.runners.get(&id) else { return Value::Null };
    let online = runner.is_online(now, state.settings.offline_after);
    let label = |name: &String| json!({ "id": 0, "name": name, "type": "read-only" });
    json!({
        "id": runner.id,
        "runner_group_id": runner.group,
        "name": runner.name,
        "os": if runner.session.is_some() { "linux" } else { "unknown" },
        "status": if online { "online" } else { "offline" },
        "busy": runner.job.is_some(),
        "labels": runner.labels.iter().map(label).collect::<Vec<_>>(),
        "ephemeral": true,
    })
}

/// Returns a runner group.
pub(super) fn group(state: &State, group: &Group) -> Value {
    json!({
        "id": group.id, "name": group.name, "visibility": "all",
        "default": group.id == crate::state::DEFAULT_GROUP, "inherited": false,
        "allows_public_repositories": false, "restricted_to_workflows": false,
        "selected_workflows": [],
        "runners_url": format!("{}/orgs/octo/actions/runner-groups/{}/runners", state.url, group.id),
    })
}

/// Returns the name of a runner group.
pub(super) fn group_name(state: &State, id: u64) -> String {
    let group = state.groups.iter().find(|group| group.id == id);
    group.map_or_else(|| "Default".to_owned(), |group| group.name.clone())
}

/// Returns a token with its expiry.
pub(super) fn token(token: &str, expires_at: Millis) -> Value {
    json!({ "token": token, "expires_at": text(expires_at) })
}

/// Returns the App.
pub(super) fn app(state: &State, app: &App) -> Value {
    json!({
        "id": app.id, "client_id": app.client_id, "slug": "mayfly", "node_id": "A_sim",
        "owner": user(state, &app.owner), "name": "Mayfly", "description": null,
        "external_url": "https://example.com", "html_url": format!("{}/apps/mayfly", state.url),
        "created_at": text(0), "updated_at": text(0), "permissions": app.permissions,
        "events": ["workflow_job"],
    })
}

/// Returns the App's installation.
pub(super) fn installation(state: &State, app: &App) -> Value {
    let url = &state.url;
    json!({
        "id": app.installation, "account": user(state, &app.owner), "app_id": app.id,
        "app_slug": "mayfly", "target_id": 1_000_001, "target_type": "Organization",
        "access_tokens_url": format!("{url}/app/installations/{}/access_tokens", app.installation),
        "repositories_url": format!("{url}/installation/repositories"),
        "html_url": format!("{url}/organizations/{}/settings/installations", app.owner),
        "repository_selection": "all", "permissions": app.permissions,
        "events": ["workflow_job"], "created_at": text(0), "updated_at": text(0),
        "single_file_name": null, "suspended_at": null, "suspended_by": null,
    })
}

/// Returns a delivery, as listed.
pub(super) fn delivery(delivery: &Delivery, installation: u64) -> Value {
    let success = (200..300).contains(&delivery.status);
    json!({
        "id": delivery.id, "guid": delivery.guid, "delivered_at": text(delivery.delivered_at),
        "redelivery": delivery.redelivery, "duration": 0.1,
        "status": if success { "OK" } else { "failed to connect to host" },
        "status_code": delivery.status, "event": "workflow_job", "action": delivery.action,
        "installation_id": installation, "repository_id": 1_000_002,
    })
}

/// The path prefix of runner archives.
pub const DOWNLOADS: &str = "/_sim/downloads/";

/// Returns the runner releases for download.
pub(super) fn downloads(state: &State) -> Value {
    let name = |kind: &str, version: &str| format!("actions-runner-{kind}-{version}.tar.gz");
    let other = json!({
        "os": "osx", "architecture": "arm64", "filename": name("osx-arm64", "2.335.1"),
        "download_url": format!("https://example.com/{}", name("osx-arm64", "2.335.1")),
    });
    let Some(runner) = &state.settings.runner else { return json!([other]) };
    let name = name("linux-x64", &runner.version);
    json!([other, {
        "os": "linux", "architecture": "x64", "filename": name,
        "download_url": format!("{}{DOWNLOADS}{name}", state.url),
        "temp_download_token": runner.token, "sha256_checksum": runner.sha256,
    }])
}
