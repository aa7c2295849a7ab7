//! Control calls for scripts: `/_sim/…`. Tests in Rust use [`crate::Simulator`] instead.
//!
//! `POST jobs` queues a job, `GET jobs` lists all, `GET jobs/ID/log` returns a log,
//! `POST jobs/ID/cancel` cancels a job; `POST faults` adds rules, `DELETE faults` removes all;
//! `GET summary` returns counts.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Reply, Request};
use crate::faults::Rule;
use crate::state::State;
use crate::state::jobs::{Job, NewJob, Status};
use crate::time::Millis;

/// Handles a call below `_sim`.
pub(super) fn handle(state: &mut State, request: &Request, parts: &[&str], now: Millis) -> Reply {
    match (request.method.as_str(), parts) {
        ("POST", ["jobs"]) => match serde_json::from_slice::<NewJob>(&request.body) {
            Ok(job) => {
                let id = state.queue(job, now);
                Reply::json(201, &json!({ "id": id }))
            }
            Err(error) => Reply::error(422, &error.to_string()),
        },
        ("GET", ["jobs"]) => {
            let jobs: Vec<&Job> = state.jobs.values().collect();
            Reply::json(200, &json!(jobs))
        }
        ("GET", ["jobs", id, "log"]) => {
            let job = id.parse().ok().and_then(|id: u64| state.jobs.get(&id));
            job.map_or_else(Reply::not_found, |job| Reply::text(200, job.log.clone()))
        }
        ("POST", ["jobs", id, "cancel"]) => {
            let found = id.parse().is_ok_and(|id| state.cancel(id, now));
            if found { Reply::empty(202) } else { Reply::not_found() }
        }
        ("POST", ["faults"]) => match serde_json::from_slice::<Vec<Rule>>(&request.body) {
            Ok(rules) => {
                for rule in rules {
                    state.faults.add(rule);
                }
                Reply::empty(204)
            }
            Err(error) => Reply::error(422, &error.to_string()),
        },
        ("DELETE", ["faults"]) => {
            state.faults.clear();
            Reply::empty(204)
        }
        ("GET", ["summary"]) => Reply::json(200, &json!(summary(state))),
        _ => Reply::not_found(),
    }
}

/// A summary of the state, for tests and people.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// Jobs by status or conclusion.
    pub jobs: BTreeMap<&'static str, usize>,
    /// Jobs that were not started exactly once: more than once, or completed without a start.
    pub not_once: Vec<u64>,
    /// The names of the registered runners.
    pub registered: Vec<String>,
    /// Calls, by method and path.
    pub calls: BTreeMap<String, u64>,
    /// Injected faults.
    pub faults: BTreeMap<String, u64>,
}

/// Returns a summary of the state.
pub fn summary(state: &State) -> Summary {
    let mut jobs = BTreeMap::new();
    for job in state.jobs.values() {
        let what = job.conclusion.map_or(job.status.text(), |conclusion| conclusion.text());
        *jobs.entry(what).or_default() += 1;
    }
    let not_once = |job: &&Job| {
        let runs = job.started_runs.len();
        runs > 1 || job.status == Status::Completed && runs == 0 && job.runner.is_some()
    };
    let faults = state.fault_counts.iter().map(|(fault, count)| (format!("{fault:?}"), *count));
    Summary {
        jobs,
        not_once: state.jobs.values().filter(not_once).map(|job| job.id).collect(),
        registered: state.runners.values().map(|runner| runner.name.clone()).collect(),
        calls: state.recorder.calls().clone(),
        faults: faults.collect(),
    }
}
