//! How scripts steer the simulator and look at it: `/_sim/…`. Tests in Rust use
//! [`crate::Simulator`] instead.
//!
//! `POST jobs` queues, `GET jobs` lists, `GET jobs/ID/log` is a log, `POST jobs/ID/cancel` stops one;
//! `POST faults` adds rules, `DELETE faults` removes all; `GET summary` counts.

use std::collections::BTreeMap;

use serde_json::json;

use super::{Reply, Request};
use crate::faults::Rule;
use crate::state::State;
use crate::state::jobs::{Job, NewJob, Status};
use crate::time::Millis;

/// A call below `_sim`.
pub(super) fn answer(state: &mut State, request: &Request, parts: &[&str], now: Millis) -> Reply {
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

/// What a test or a person wants to know at the end.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// Jobs by status or conclusion.
    pub jobs: BTreeMap<&'static str, usize>,
    /// Jobs that were started other than once, of those that have succeeded.
    pub not_once: Vec<u64>,
    /// Runners that are still registered, by name.
    pub registered: Vec<String>,
    /// Calls, by method and path.
    pub calls: BTreeMap<String, u64>,
    /// Faults that happened.
    pub faults: BTreeMap<String, u64>,
}

/// Counts everything.
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
    let faults = state.suffered.iter().map(|(fault, count)| (format!("{fault:?}"), *count));
    Summary {
        jobs,
        not_once: state.jobs.values().filter(not_once).map(|job| job.id).collect(),
        registered: state.runners.values().map(|runner| runner.name.clone()).collect(),
        calls: state.recorder.calls().clone(),
        faults: faults.collect(),
    }
}
