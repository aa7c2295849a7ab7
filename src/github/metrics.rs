//! Metrics of GitHub calls. Label values come from small fixed sets.

use std::time::SystemTime;

use hyper::HeaderMap;

use super::budget::RateLimit;
use super::error::CallError;
use super::transport::Response;
use mayfly_telemetry::metrics::{OTHER, RATE_LIMIT, RATE_REMAINING, RATE_RESET};

/// Returns the purpose of a call, given its name in errors (`GET /orgs/octo/actions/runners`).
pub(super) fn purpose(call: &str) -> &'static str {
    let has = |part: &str| call.contains(part);
    let ends = |end: &[&str]| end.iter().any(|end| call.ends_with(end));
    let is_runner = has("/actions/runners") || has("_apis/distributedtask/");
    match call.split(' ').next() {
        _ if ends(&["/generate-jitconfig", "/generatejitconfig"]) => "mint",
        _ if ends(&["/access_tokens", "/installation", "/registration-token"])
            || ends(&["/actions/runner-registration"]) =>
        {
            "authenticate"
        }
        _ if has("/actions/runner-groups") || has("_apis/runtime/runnergroups") => "runner_groups",
        Some("DELETE") if is_runner => "delete_runner",
        _ if is_runner => "list_runners",
        _ if has("/actions/runs") || has("/actions/jobs") => "list_jobs",
        _ if has("/deliveries") => "redeliver",
        _ if ends(&[" scale set message"]) || has("/sessions") => "scale_set_session",
        _ if has("_apis/runtime/runnerscalesets") => "scale_set",
        _ => OTHER,
    }
}

/// Returns the outcome label of a call.
pub(super) fn outcome(result: &Result<Response, CallError>) -> &'static str {
    match result {
        Ok(response) if response.status == 304 => "not_modified",
        Ok(_) => "ok",
        Err(CallError::NotSent { .. }) => "not_sent",
        Err(CallError::Ambiguous { .. }) => "no_answer",
        Err(CallError::Unauthorized { .. }) => "unauthorized",
        Err(CallError::RateLimited { .. }) => "rate_limited",
        Err(CallError::NotFound { .. }) => "not_found",
        Err(CallError::Refused { .. } | CallError::NameTaken { .. }) => "refused",
    }
}

/// Records the rate limit that a response reports.
pub(super) fn record_rate(headers: &HeaderMap, rate: RateLimit) {
    const KNOWN: [&str; 5] =
        ["core", "actions_runner_registration", "graphql", "search", "integration_manifest"];
    let resource = headers.get("x-ratelimit-resource").map_or("core", |resource| {
        let known = KNOWN.into_iter().find(|known| resource == known);
        known.unwrap_or(OTHER)
    });
    // Call counts are far below the integers that an f64 represents exactly.
    #[allow(clippy::cast_precision_loss, reason = "call counts fit in an f64")]
    let number = |number: u64| number as f64;
    let reset = rate.reset.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    RATE_LIMIT.set([resource], number(rate.limit));
    RATE_REMAINING.set([resource], number(rate.remaining));
    RATE_RESET.set([resource], reset.as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_counted_by_its_purpose() {
        for (call, expected) in [
            ("POST /orgs/octo/actions/runners/generate-jitconfig", "mint"),
            ("POST _apis/runtime/runnerscalesets/7/generatejitconfig", "mint"),
            ("POST /app/installations/4/access_tokens", "authenticate"),
            ("GET /orgs/octo/installation", "authenticate"),
            ("POST /orgs/octo/actions/runners/registration-token", "authenticate"),
            ("POST /actions/runner-registration", "authenticate"),
            ("DELETE /repos/octo/hello/actions/runners/23", "delete_runner"),
            ("GET /repos/octo/hello/actions/runners", "list_runners"),
            ("DELETE _apis/distributedtask/pools/0/agents/4", "delete_runner"),
            ("GET /orgs/octo/actions/runner-groups", "runner_groups"),
            ("GET /repos/octo/hello/actions/runs", "list_jobs"),
            ("GET /repos/octo/hello/actions/runs/1/attempts/2/jobs", "list_jobs"),
            ("POST /app/hook/deliveries/3/attempts", "redeliver"),
            ("DELETE scale set message", "scale_set_session"),
            ("POST _apis/runtime/runnerscalesets/7/sessions", "scale_set_session"),
            ("PATCH _apis/runtime/runnerscalesets/7", "scale_set"),
            ("GET /repos/octo/registration-token/actions/runs", "list_jobs"),
            ("GET /zen", OTHER),
        ] {
            assert_eq!(purpose(call), expected, "{call}");
        }
    }
}
