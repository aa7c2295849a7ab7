//! The scale set service: registration, scale sets, sessions, the message queue.
//!
//! Not in GitHub's `OpenAPI` description; modeled on what its public clients send and expect.

use serde_json::{Value, json};

use super::{Attempt, Reply, ReplyOrWait, Request, bodies};
use crate::state::runners::{NewRunner, Scope};
use crate::state::scale_sets::SessionError;
use crate::state::tokens::Purpose;
use crate::state::{DEFAULT_GROUP, State};
use crate::time::{Millis, SECOND, text};

/// The lifetime of the service's admin token.
const ADMIN_TOKEN_LIFETIME: Millis = 20 * 60 * SECOND;

/// Returns an error in the service's format.
fn failure(status: u16, kind: &str, message: &str) -> Reply {
    let type_name = format!("GitHub.Actions.Runtime.WebApi.{kind}, GitHub.Actions.Runtime.WebApi");
    Reply::json(status, &json!({ "typeName": type_name, "typeKey": kind, "message": message }))
        .with("activityid", "00000000-0000-0000-0000-000000000000")
}

/// Returns the error of an injected conflict.
pub(super) fn conflict(path: &str) -> Reply {
    if path.ends_with("/generatejitconfig") {
        return failure(409, "AgentExistsException", "An agent of this name already exists.");
    }
    session_error(SessionError::Conflict)
}

fn set_not_found() -> Reply {
    failure(404, "RunnerScaleSetNotFoundException", "No runner scale set found.")
}

/// Handles `POST /actions/runner-registration`: exchanges a registration token for the service's
/// URL and admin token.
pub(super) fn register(state: &mut State, request: &Request, now: Millis) -> Reply {
    let purpose = request.token(&["remoteauth"]).and_then(|text| state.token(text, now));
    if purpose.is_none_or(|token| token.purpose != Purpose::Registration) {
        return Reply::error(401, "Bad credentials");
    }
    let (token, _) = state.issue(Purpose::Admin, ADMIN_TOKEN_LIFETIME, now);
    let url = format!("{}/", state.url);
    Reply::json(200, &json!({ "url": url, "token": token, "token_schema": "OAuthAccessToken" }))
}

/// Handles a call below `_apis`.
pub(super) fn handle(state: &mut State, request: &Request, parts: &[&str], now: Millis) -> Reply {
    let token = request.token(&["bearer"]).and_then(|text| state.token(text, now));
    let purpose = token.map(|token| token.purpose.clone());
    let method = request.method.as_str();
    if let ["runtime", "runnerscalesets", set, "acquirejobs"] = parts {
        return match purpose {
            Some(Purpose::Queue { .. }) => acquire(state, request, set, now),
            _ => failure(401, "UnauthorizedException", "The token has expired."),
        };
    }
    if purpose != Some(Purpose::Admin) {
        return failure(401, "UnauthorizedException", "The token is not valid.");
    }
    if request.parameter("api-version").is_none() {
        return failure(400, "VssVersionNotSpecifiedException", "No api-version was supplied.");
    }
    match (method, parts) {
        ("GET", ["runtime", "runnergroups"]) => groups(state, request),
        (_, ["runtime", "runnerscalesets", rest @ ..]) => sets(state, request, rest, now),
        ("GET", ["distributedtask", "pools", _, "agents"]) => {
            let name = request.parameter("agentName");
            let found = state.runners.values().filter(|runner| Some(&runner.name) == name.as_ref());
            let value: Vec<Value> = found.map(agent).collect();
            Reply::json(200, &json!({ "count": value.len(), "value": value }))
        }
        ("GET", ["distributedtask", "pools", _, "agents", id]) => {
            let runner = id.parse().ok().and_then(|id: u64| state.runners.get(&id));
            let missing = || failure(404, "AgentNotFoundException", "The agent was not found.");
            runner.map_or_else(missing, |runner| Reply::json(200, &agent(runner)))
        }
        ("DELETE", ["distributedtask", "pools", _, "agents", id]) => {
            let runner = id.parse().ok().and_then(|id: u64| state.runners.get(&id));
            match runner.map(|runner| (runner.id, runner.job)) {
                Some((_, Some(_))) => {
                    failure(400, "JobStillRunningException", "The job is still running.")
                }
                Some((id, None)) => {
                    state.remove_runner(id, "deleted by the scale set", now);
                    Reply::empty(204)
                }
                None => Reply::empty(204),
            }
        }
        _ => failure(404, "NotFoundException", "There is no such resource."),
    }
}

fn agent(runner: &crate::state::runners::Runner) -> Value {
    json!({ "id": runner.id, "name": runner.name, "runnerScaleSetId": runner.scale_set })
}

fn groups(state: &State, request: &Request) -> Reply {
    let name = request.parameter("groupName");
    let matching =
        state.groups.iter().filter(|group| name.as_ref().is_none_or(|name| group.name == *name));
    let value: Vec<Value> = matching
        .map(|group| {
            let default = group.id == DEFAULT_GROUP;
            json!({ "id": group.id, "name": group.name, "size": 0, "isDefaultGroup": default })
        })
        .collect();
    Reply::json(200, &json!({ "count": value.len(), "value": value }))
}

/// Handles a call below `runnerscalesets`.
fn sets(state: &mut State, request: &Request, rest: &[&str], now: Millis) -> Reply {
    let method = request.method.as_str();
    match (method, rest) {
        ("GET", []) => {
            let (group, name) = (request.number("runnerGroupId"), request.parameter("name"));
            let matching = state.scale_sets.values().filter(|set| {
                group.is_none_or(|group| set.group == group)
                    && name.as_ref().is_none_or(|name| set.name == *name)
            });
            let value: Vec<Value> = matching.map(|set| scale_set(state, set.id)).collect();
            return Reply::json(200, &json!({ "count": value.len(), "value": value }));
        }
        ("POST", []) => return create(state, request, now),
        _ => {}
    }
    let id = rest.first().and_then(|id| id.parse().ok());
    let Some(id) = id.filter(|id| state.scale_sets.contains_key(id)) else {
        return set_not_found();
    };
    match (method, &rest[1..]) {
        ("GET" | "PATCH", []) => Reply::json(200, &scale_set(state, id)),
        ("DELETE", []) => {
            state.delete_scale_set(id);
            Reply::empty(204)
        }
        ("POST", ["sessions"]) => {
            let owner = request.json()["ownerName"].as_str().unwrap_or_default().to_owned();
            let opened = state.open_session(id, &owner, now);
            opened.map_or_else(session_error, |(session, token)| {
                Reply::json(200, &session_body(state, id, &session, &token))
            })
        }
        ("PATCH", ["sessions", session]) => {
            let refreshed = state.refresh_session(id, session, now);
            refreshed.map_or_else(session_error, |token| {
                Reply::json(200, &session_body(state, id, session, &token))
            })
        }
        ("DELETE", ["sessions", session]) => {
            let closed = state.close_session(id, session);
            if closed { Reply::empty(204) } else { session_error(SessionError::NotFound) }
        }
        ("POST", ["generatejitconfig"]) => create_runner(state, request, id, now),
        _ => failure(404, "NotFoundException", "There is no such resource."),
    }
}

fn session_error(why: SessionError) -> Reply {
    match why {
        SessionError::NotFound => {
            failure(404, "RunnerScaleSetSessionNotFoundException", "No session.")
        }
        SessionError::Conflict => failure(
            409,
            "RunnerScaleSetSessionConflictException",
            "The runner scale set already has an active session.",
        ),
    }
}

fn create(state: &mut State, request: &Request, now: Millis) -> Reply {
    if !state.settings.scale_sets {
        return failure(403, "AccessDeniedException", "Scale sets are not for this owner.");
    }
    let body = request.json();
    let Some(name) = body["name"].as_str() else {
        return failure(400, "ArgumentException", "The name is missing.");
    };
    let named = |label: &Value| label["name"].as_str().map(str::to_owned);
    let mut labels: Vec<String> =
        body["labels"].as_array().into_iter().flatten().filter_map(named).collect();
    if labels.is_empty() {
        labels.push(name.to_owned());
    }
    let group = body["runnerGroupId"].as_u64().unwrap_or(DEFAULT_GROUP);
    match state.create_scale_set(name, group, labels, now) {
        Some(id) => Reply::json(200, &scale_set(state, id)),
        None => failure(409, "RunnerScaleSetExistsException", "The name is taken in this group."),
    }
}

fn scale_set(state: &State, id: u64) -> Value {
    let Some(set) = state.scale_sets.get(&id) else { return Value::Null };
    let label = |name: &String| json!({ "type": "System", "name": name });
    json!({
        "id": id, "name": set.name, "runnerGroupId": set.group,
        "runnerGroupName": bodies::group_name(state, set.group),
        "labels": set.labels.iter().map(label).collect::<Vec<_>>(),
        "RunnerSetting": { "disableUpdate": true }, "createdOn": text(set.created_at),
        "runnerJitConfigUrl": format!("{}/_apis/runtime/runnerscalesets/{id}/generatejitconfig", state.url),
        "statistics": state.statistics(id),
    })
}

fn session_body(state: &State, id: u64, session: &str, token: &str) -> Value {
    let owner = state.scale_sets.get(&id).and_then(|set| set.session.as_ref());
    json!({
        "sessionId": session,
        "ownerName": owner.map(|listener| listener.owner.clone()),
        "runnerScaleSet": scale_set(state, id),
        "messageQueueUrl": format!("{}/_sim/queue/{id}?sessionId={session}", state.url),
        "messageQueueAccessToken": token,
        "statistics": state.statistics(id),
    })
}

fn create_runner(state: &mut State, request: &Request, set: u64, now: Millis) -> Reply {
    let body = request.json();
    let Some(name) = body["name"].as_str() else {
        return failure(400, "ArgumentException", "The name is missing.");
    };
    let work_folder = body["workFolder"].as_str().unwrap_or("_work").to_owned();
    let (group, labels) =
        state.scale_sets.get(&set).map(|set| (set.group, set.labels.clone())).unwrap_or_default();
    let new = NewRunner {
        name: name.to_owned(),
        // Any scope works: the set's jobs are already matched to it.
        scope: Scope::Enterprise("scale-set".to_owned()),
        group,
        labels,
        work_folder,
        scale_set: Some(set),
    };
    match state.register(new, now) {
        Ok((id, config)) => {
            let runner = json!({ "id": id, "name": name, "runnerScaleSetId": set });
            Reply::json(200, &json!({ "runner": runner, "encodedJITConfig": config }))
        }
        Err(_) => failure(409, "AgentExistsException", "An agent of this name already exists."),
    }
}

fn acquire(state: &mut State, request: &Request, set: &str, now: Millis) -> Reply {
    let Ok(set) = set.parse() else { return set_not_found() };
    let ids: Vec<u64> = serde_json::from_slice(&request.body).unwrap_or_default();
    let value = state.acquire(set, &ids, now);
    Reply::json(200, &json!({ "count": value.len(), "value": value }))
}

/// Handles a call of a session's message queue: the next message, or an acknowledgement.
pub(super) fn queue(
    state: &mut State,
    request: &Request,
    set: &str,
    message: Option<&str>,
    attempt: Attempt,
    now: Millis,
) -> ReplyOrWait {
    let session = request.parameter("sessionId").unwrap_or_default();
    let token = request.token(&["bearer"]).and_then(|text| state.token(text, now));
    let expected = Purpose::Queue { session: session.clone() };
    if token.is_none_or(|token| token.purpose != expected) {
        return failure(401, "UnauthorizedException", "The queue token has expired.").into();
    }
    let Ok(set) = set.parse() else { return set_not_found().into() };
    if request.method == "DELETE" {
        let id = message.and_then(|id| id.parse().ok()).unwrap_or_default();
        state.acknowledge(set, id);
        return Reply::empty(204).into();
    }
    let last = request.number("lastMessageId").unwrap_or(0);
    let capacity = request.header("x-scalesetmaxcapacity").and_then(|value| value.parse().ok());
    match state.next_message(set, &session, last, capacity, now) {
        Err(why) => session_error(why).into(),
        Ok(Some((id, items))) => Reply::json(
            200,
            &json!({
                "messageId": id, "messageType": "RunnerScaleSetJobMessages",
                "body": Value::Array(items).to_string(), "statistics": state.statistics(set),
            }),
        )
        .into(),
        Ok(None) if attempt.is_final => Reply::empty(202).into(),
        Ok(None) => ReplyOrWait::Wait,
    }
}
