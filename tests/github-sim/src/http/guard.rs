//! Checks of every REST call: user agent, API version, token, rate limit, `ETag`.

use data_encoding::HEXLOWER;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Reply, Request, app, rest};
use crate::state::State;
use crate::state::tokens::Purpose;
use crate::time::{Millis, seconds};

/// The supported API versions.
const VERSIONS: [&str; 2] = ["2022-11-28", "2026-03-10"];

/// Handles a REST call.
pub(super) fn rest(state: &mut State, request: &Request, parts: &[&str], now: Millis) -> Reply {
    if request.header("user-agent").is_none() {
        return Reply::error(
            403,
            "Request forbidden by administrative rules. Please make sure \
                                  your request has a User-Agent header",
        );
    }
    if let Some(version) = request.header("x-github-api-version")
        && !VERSIONS.contains(&version)
    {
        return Reply::error(400, &format!("{version} is not a supported version of the API"));
    }
    if parts == ["meta"] {
        return Reply::json(
            200,
            &serde_json::json!({ "verifiable_password_authentication": false }),
        );
    }
    let Some(token) = request.token(&["bearer", "token"]).map(str::to_owned) else {
        return Reply::error(401, "Requires authentication");
    };
    if matches!(parts, ["app", ..] | [.., "installation"]) {
        return match state.check_jwt(&token, now) {
            Ok(()) => app::handle(state, request, parts, now),
            Err(message) => Reply::error(401, message),
        };
    }
    let purpose = state.token(&token, now).map(|token| token.purpose.clone());
    if !matches!(purpose, Some(Purpose::Personal | Purpose::Installation { .. })) {
        return Reply::error(401, "Bad credentials");
    }
    if parts == ["rate_limit"] {
        let rate = rate(state, &token);
        let resources = serde_json::json!({ "core": rate, "search": rate });
        let body = serde_json::json!({ "resources": resources, "rate": rate });
        return limits(state, &token, Reply::json(200, &body));
    }
    if state.spend(&token, now).is_none() {
        return limits(state, &token, Reply::error(403, "API rate limit exceeded"));
    }
    let reply = rest::handle(state, request, parts, &token, now);
    let reply = conditional(request, &token, reply);
    if reply.status == 304 {
        // GitHub does not count 304 responses.
        if let Some(token) = state.tokens.get_mut(&token) {
            token.remaining += 1;
        }
    }
    limits(state, &token, reply)
}

/// Adds an `ETag`, which is per token; returns 304 if the caller already has it.
fn conditional(request: &Request, token: &str, reply: Reply) -> Reply {
    if request.method != "GET" || reply.status != 200 {
        return reply;
    }
    let mut hash = Sha256::new();
    hash.update(token);
    hash.update(&reply.body);
    let tag = format!("W/\"{}\"", HEXLOWER.encode(&hash.finalize()));
    let known = request.header("if-none-match").is_some_and(|tags| tags.contains(&tag));
    if known { Reply::empty(304).with("etag", tag) } else { reply.with("etag", tag) }
}

fn rate(state: &State, token: &str) -> Value {
    let limit = state.settings.rate_limit;
    let (remaining, reset) =
        state.tokens.get(token).map_or((0, 0), |token| (token.remaining, seconds(token.reset_at)));
    serde_json::json!({
        "limit": limit, "remaining": remaining, "used": limit - remaining.min(limit), "reset": reset,
    })
}

fn limits(state: &State, token: &str, reply: Reply) -> Reply {
    let rate = rate(state, token);
    reply
        .with("x-ratelimit-limit", rate["limit"].to_string())
        .with("x-ratelimit-remaining", rate["remaining"].to_string())
        .with("x-ratelimit-used", rate["used"].to_string())
        .with("x-ratelimit-reset", rate["reset"].to_string())
        .with("x-ratelimit-resource", "core")
}
