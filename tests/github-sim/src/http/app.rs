//! Calls of the App itself: its installation, its tokens, its webhook's deliveries.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Reply, Request, bodies};
use crate::state::State;
use crate::state::hooks::Delivery;
use crate::state::tokens::Purpose;
use crate::time::Millis;

/// Handles a call with a valid JWT.
pub(super) fn handle(state: &mut State, request: &Request, parts: &[&str], now: Millis) -> Reply {
    let Some(app) = state.settings.app.clone() else { return Reply::not_found() };
    match (request.method.as_str(), parts) {
        ("GET", ["app"]) => Reply::json(200, &bodies::app(state, &app)),
        ("GET", ["orgs", owner, "installation"] | ["repos", owner, _, "installation"]) => {
            if owner.eq_ignore_ascii_case(&app.owner) {
                Reply::json(200, &bodies::installation(state, &app))
            } else {
                Reply::not_found()
            }
        }
        ("POST", ["app", "installations", id, "access_tokens"]) => {
            if *id == app.installation.to_string() {
                token(state, request, &app.permissions, now)
            } else {
                Reply::not_found()
            }
        }
        ("GET", ["app", "hook", "deliveries"]) => deliveries(state, request, app.installation),
        ("POST", ["app", "hook", "deliveries", id, "attempts"]) => {
            let known = id.parse().is_ok_and(|id| state.redeliver(id, now));
            if known { Reply::json(202, &json!({})) } else { Reply::not_found() }
        }
        _ => Reply::not_found(),
    }
}

/// Issues a token with all permissions of the App, or the requested subset.
fn token(
    state: &mut State,
    request: &Request,
    granted: &BTreeMap<String, String>,
    now: Millis,
) -> Reply {
    let body = request.json();
    let not_granted = "The permissions requested are not granted to this installation.";
    let permissions = match &body["permissions"] {
        Value::Object(requested) => {
            let mut permissions = BTreeMap::new();
            for (name, access) in requested {
                let access = access.as_str().unwrap_or_default();
                let allowed = granted.get(name).is_some_and(|granted| {
                    granted == access || (granted == "write" && access == "read")
                });
                if !allowed {
                    return Reply::error(422, not_granted);
                }
                permissions.insert(name.clone(), access.to_owned());
            }
            permissions
        }
        _ => granted.clone(),
    };
    let named = |name: &Value| name.as_str().map(str::to_owned);
    let repositories: Option<Vec<String>> =
        body["repositories"].as_array().map(|names| names.iter().filter_map(named).collect());
    let selection = if repositories.is_some() { "selected" } else { "all" };
    let life = state.settings.token_life;
    let (text, expires_at) = state.issue(
        Purpose::Installation { permissions: permissions.clone(), repositories },
        life,
        now,
    );
    let mut body = bodies::token(&text, expires_at);
    body["permissions"] = json!(permissions);
    body["repository_selection"] = selection.into();
    Reply::json(201, &body)
}

/// Lists deliveries, newest first. `cursor` is the ID of the previous page's last one.
fn deliveries(state: &State, request: &Request, installation: u64) -> Reply {
    let size = request.number("per_page").unwrap_or(30).clamp(1, 100);
    let cursor = request.number("cursor").unwrap_or(u64::MAX);
    let wanted_status = request.parameter("status");
    let is_wanted = |delivery: &&Delivery| {
        let success = (200..300).contains(&delivery.status);
        // Deliveries that are not sent yet are not listed.
        delivery.due.is_none()
            && delivery.id < cursor
            && wanted_status.as_deref().is_none_or(|status| (status == "success") == success)
    };
    let mut page: Vec<&Delivery> = state.deliveries.iter().filter(is_wanted).collect();
    page.sort_by_key(|delivery| std::cmp::Reverse(delivery.id));
    let more = page.len() as u64 > size;
    page.truncate(usize::try_from(size).unwrap_or(usize::MAX));
    let rows: Vec<Value> =
        page.iter().map(|delivery| bodies::delivery(delivery, installation)).collect();
    let reply = Reply::json(200, &Value::Array(rows));
    match page.last() {
        Some(last) if more => {
            let (url, path) = (&state.url, &request.path);
            let next = format!("<{url}{path}?per_page={size}&cursor={}>; rel=\"next\"", last.id);
            reply.with("link", next)
        }
        _ => reply,
    }
}
