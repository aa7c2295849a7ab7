//! Calls about workflow runs and their jobs. Each job has its own run.

use serde_json::Value;

use super::rest::paged;
use super::{Reply, Request, bodies};
use crate::state::State;
use crate::state::jobs::Conclusion;
use crate::state::runners::Scope;

/// Handles a call below `actions`.
pub(super) fn handle(state: &State, request: &Request, scope: &Scope, rest: &[&str]) -> Reply {
    let Scope::Repository(repository) = scope else { return Reply::not_found() };
    let here = || state.jobs.values().filter(|job| job.repository.eq_ignore_ascii_case(repository));
    match (request.method.as_str(), rest) {
        ("GET", ["runs"]) => {
            let status = request.parameter("status");
            let matching = here().rev().filter(|job| {
                let conclusion = job.conclusion.map(Conclusion::text);
                status
                    .as_deref()
                    .is_none_or(|status| status == job.status.text() || Some(status) == conclusion)
            });
            let rows: Vec<Value> = matching.map(|job| bodies::run(state, job)).collect();
            paged(state, request, "workflow_runs", &rows)
        }
        ("GET", ["runs", id, "jobs"]) => {
            let matching = here().filter(|job| job.run_id.to_string() == *id);
            let rows: Vec<Value> = matching.map(|job| bodies::job(state, job)).collect();
            if rows.is_empty() { Reply::not_found() } else { paged(state, request, "jobs", &rows) }
        }
        ("GET", ["jobs", id]) => {
            let job = here().find(|job| job.id.to_string() == *id);
            job.map_or_else(Reply::not_found, |job| Reply::json(200, &bodies::job(state, job)))
        }
        _ => Reply::not_found(),
    }
}
