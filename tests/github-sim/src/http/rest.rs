//! Calls about runners: registration, listing, deletion, groups.

use serde_json::{Value, json};

use super::{Reply, Request, bodies, runs};
use crate::state::State;
use crate::state::runners::{NewRunner, Runner, Scope};
use crate::state::tokens::Purpose;
use crate::time::{Millis, SECOND};

/// The maximum number of rows of a page.
const MAX_PAGE_SIZE: u64 = 100;

/// The default number of rows of a page.
const DEFAULT_PAGE_SIZE: u64 = 30;

/// Handles a call with a valid token that has calls left.
pub(super) fn handle(
    state: &mut State,
    request: &Request,
    parts: &[&str],
    token: &str,
    now: Millis,
) -> Reply {
    let (scope, rest) = match parts {
        ["repos", owner, name, rest @ ..] => (Scope::Repository(format!("{owner}/{name}")), rest),
        ["orgs", name, rest @ ..] => (Scope::Organization((*name).to_owned()), rest),
        ["enterprises", name, rest @ ..] => (Scope::Enterprise((*name).to_owned()), rest),
        _ => return Reply::not_found(),
    };
    if let Err(refusal) = permitted(state, &scope, rest, &request.method, token) {
        return refusal;
    }
    match (request.method.as_str(), rest) {
        ("POST", ["actions", "runners", "generate-jitconfig"]) => {
            create_runner(state, request, scope, now)
        }
        ("POST", ["actions", "runners", "registration-token" | "remove-token"]) => {
            let (token, expires_at) = state.issue(Purpose::Registration, 3_600 * SECOND, now);
            Reply::json(201, &bodies::token(&token, expires_at))
        }
        ("GET", ["actions", "runners"]) => list(state, request, &scope, now),
        ("GET", ["actions", "runners", "downloads"]) => Reply::json(200, &bodies::downloads(state)),
        ("GET", ["actions", "runners", id]) => match find(state, &scope, id) {
            Some(id) => Reply::json(200, &bodies::runner(state, id, now)),
            None => Reply::not_found(),
        },
        ("DELETE", ["actions", "runners", id]) => delete(state, &scope, id, now),
        ("GET", ["actions", "runner-groups"]) => {
            let groups: Vec<_> =
                state.groups.iter().map(|group| bodies::group(state, group)).collect();
            paged(state, request, "runner_groups", &groups)
        }
        ("GET", ["actions", "runner-groups", id]) => {
            let group = state.groups.iter().find(|group| group.id.to_string() == *id);
            group.map_or_else(Reply::not_found, |group| {
                Reply::json(200, &bodies::group(state, group))
            })
        }
        (_, ["actions", rest @ ..]) => runs::handle(state, request, &scope, rest),
        _ => Reply::not_found(),
    }
}

/// Checks that a token may make a call. An installation must have the permission, and sees only its
/// owner's resources: GitHub returns 404 for others.
fn permitted(
    state: &State,
    scope: &Scope,
    rest: &[&str],
    method: &str,
    token: &str,
) -> Result<(), Reply> {
    let Some(token) = state.tokens.get(token) else { return Err(Reply::not_found()) };
    if let (Purpose::Installation { repositories, .. }, Some(app)) =
        (&token.purpose, &state.settings.app)
    {
        let (owner, repository) = match scope {
            Scope::Organization(name) => (name.as_str(), None),
            Scope::Repository(name) => {
                name.split_once('/').map_or(("", None), |(owner, name)| (owner, Some(name)))
            }
            // Apps may not call enterprise endpoints.
            Scope::Enterprise(_) => ("", None),
        };
        let selected = repositories.as_ref().zip(repository).is_none_or(|(selected, name)| {
            selected.iter().any(|known| known.eq_ignore_ascii_case(name))
        });
        if !owner.eq_ignore_ascii_case(&app.owner) || !selected {
            return Err(Reply::not_found());
        }
    }
    let access = if method == "GET" { "read" } else { "write" };
    let permission = match (scope, rest) {
        (_, ["actions", "runs" | "jobs", ..]) => "actions",
        (Scope::Repository(_), _) => "administration",
        _ => "organization_self_hosted_runners",
    };
    if token.permits(permission, access) {
        Ok(())
    } else {
        Err(Reply::error(403, "Resource not accessible by integration"))
    }
}

fn create_runner(state: &mut State, request: &Request, scope: Scope, now: Millis) -> Reply {
    let body = request.json();
    let invalid = |what: &str| Reply::error(422, &format!("Invalid request.\n\n{what}"));
    let Some(name) = body["name"].as_str().filter(|name| (1..=64).contains(&name.len())) else {
        return invalid("\"name\" must be a string of 1 to 64 characters.");
    };
    let Some(group) = body["runner_group_id"].as_u64() else {
        return invalid("\"runner_group_id\" wasn't supplied.");
    };
    let labels = body["labels"].as_array().map(|labels| -> Option<Vec<String>> {
        labels.iter().map(|label| label.as_str().map(str::to_owned)).collect()
    });
    let Some(labels) = labels.flatten().filter(|labels| (1..=100).contains(&labels.len())) else {
        return invalid("\"labels\" must be 1 to 100 strings.");
    };
    // Group 2 contains GitHub's own runners at github.com: it exists but can't be changed.
    if group == 2 {
        return Reply::error(403, "Resource not accessible by integration");
    }
    if !state.groups.iter().any(|known| known.id == group) {
        return Reply::not_found();
    }
    let work_folder = body["work_folder"].as_str().unwrap_or("_work").to_owned();
    let new =
        NewRunner { name: name.to_owned(), scope, group, labels, work_folder, scale_set: None };
    match state.register(new, now) {
        Ok((id, config)) => {
            let runner = bodies::runner(state, id, now);
            Reply::json(201, &json!({ "runner": runner, "encoded_jit_config": config }))
        }
        Err(_) => Reply::error(
            409,
            &format!("Already exists - A runner with the name {name} already exists."),
        ),
    }
}

fn list(state: &State, request: &Request, scope: &Scope, now: Millis) -> Reply {
    let name = request.parameter("name");
    let matching = state.runners.values().filter(|runner| {
        is_in(runner, scope) && name.as_ref().is_none_or(|name| runner.name == *name)
    });
    let rows: Vec<Value> = matching.map(|runner| bodies::runner(state, runner.id, now)).collect();
    paged(state, request, "runners", &rows)
}

/// Whether a scope lists a runner: its own runners, and those of its scale sets.
fn is_in(runner: &Runner, scope: &Scope) -> bool {
    runner.scope == *scope || runner.scale_set.is_some()
}

fn find(state: &State, scope: &Scope, id: &str) -> Option<u64> {
    let id = id.parse().ok()?;
    state.runners.get(&id).filter(|runner| is_in(runner, scope)).map(|runner| runner.id)
}

fn delete(state: &mut State, scope: &Scope, id: &str, now: Millis) -> Reply {
    let Some(id) = find(state, scope, id) else { return Reply::not_found() };
    if state.runners.get(&id).is_some_and(|runner| runner.job.is_some()) {
        return Reply::error(
            422,
            "Bad request - Runner is currently running a job and can't be deleted.",
        );
    }
    state.remove_runner(id, "deleted by a call", now);
    Reply::empty(204)
}

/// Returns a page of rows, with `Link` to the next and the last page.
pub(super) fn paged(state: &State, request: &Request, key: &str, rows: &[Value]) -> Reply {
    let size = request.number("per_page").unwrap_or(DEFAULT_PAGE_SIZE).clamp(1, MAX_PAGE_SIZE);
    let page = request.number("page").unwrap_or(1).max(1);
    let total = rows.len();
    let [size_rows, skipped] = [size, size.saturating_mul(page - 1)]
        .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    let shown: Vec<&Value> = rows.iter().skip(skipped).take(size_rows).collect();
    let reply = Reply::json(200, &json!({ "total_count": total, key: shown }));
    let last = total.div_ceil(size_rows).max(1) as u64;
    if page >= last {
        return reply;
    }
    let others =
        request.query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("page="));
    let others: String = others.flat_map(|pair| [pair, "&"]).collect();
    let link = |page: u64, what: &str| {
        format!("<{}{}?{others}page={page}>; rel=\"{what}\"", state.url, request.path)
    };
    reply.with("link", format!("{}, {}", link(page + 1, "next"), link(last, "last")))
}
