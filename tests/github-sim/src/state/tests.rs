//! Property test: jobs and runners stay consistent in any order of events.

use proptest::prelude::*;

use super::State;
use super::jobs::{Conclusion, NewJob, Status};
use super::runners::{NewRunner, Scope};
use super::settings::Settings;
use crate::faults::{Class, Fault, Rule};
use crate::time::SECOND;

#[derive(Debug, Clone)]
enum Step {
    Queue(u8),
    Register(u8),
    Connect(usize),
    Poll(usize),
    Complete(usize),
    Disconnect(usize),
    Remove(usize),
    Cancel(usize),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3u8).prop_map(Step::Queue),
        (0..3u8).prop_map(Step::Register),
        (0..20usize).prop_map(Step::Connect),
        (0..20usize).prop_map(Step::Poll),
        (0..20usize).prop_map(Step::Complete),
        (0..20usize).prop_map(Step::Disconnect),
        (0..20usize).prop_map(Step::Remove),
        (0..20usize).prop_map(Step::Cancel),
        (1..40u64).prop_map(Step::Pass),
    ]
}

/// Returns the labels of a number; smaller numbers have fewer.
fn labels(number: u8) -> Vec<String> {
    ["linux", "x64", "large"].into_iter().take(usize::from(number) + 1).map(str::to_owned).collect()
}

/// A state with its history.
struct World {
    state: State,
    now: u64,
    credentials: Vec<String>,
    jobs: Vec<u64>,
}

impl World {
    fn new() -> Self {
        let faults = vec![
            Rule::share(Class::Mint, Fault::ExpiredJit, 0.1),
            Rule::share(Class::Mint, Fault::RemovedIdle { after: 5 * SECOND }, 0.1),
        ];
        let settings = Settings {
            lost_after: 60 * SECOND,
            offline_after: 30 * SECOND,
            faults,
            ..Settings::default()
        };
        let state = State::new(settings, "http://github.example".to_owned());
        Self { state, now: 1_000_000, credentials: Vec::new(), jobs: Vec::new() }
    }

    fn apply(&mut self, step: &Step) {
        let Self { state, now, credentials, jobs } = self;
        let credential = |index: &usize| credentials.get(*index).cloned().unwrap_or_default();
        // Rejected calls must change nothing; the checks verify it.
        match step {
            Step::Queue(number) => jobs.push(state.queue(
                NewJob {
                    repository: "octo/hello".to_owned(),
                    name: "build".to_owned(),
                    labels: labels(*number),
                    steps: Vec::new(),
                },
                *now,
            )),
            Step::Register(number) => {
                let new = NewRunner {
                    name: format!("r{}", credentials.len()),
                    scope: Scope::Organization("octo".to_owned()),
                    group: 1,
                    labels: labels(*number),
                    work_folder: "_work".to_owned(),
                    scale_set: None,
                };
                let (id, _) = state.register(new, *now).unwrap();
                credentials.push(state.runners[&id].credential.clone());
            }
            Step::Connect(index) => drop(state.connect(&credential(index), *now)),
            Step::Poll(index) => drop(state.record_contact(&credential(index), *now)),
            Step::Disconnect(index) => drop(state.disconnect(&credential(index), *now)),
            Step::Complete(index) => {
                if let Ok(runner) = state.record_contact(&credential(index), *now)
                    && let Some(job) = state.runners[&runner].job
                {
                    state.complete(job, Conclusion::Success, None, *now);
                }
            }
            Step::Remove(index) => {
                let credential = credential(index);
                let mut runners = state.runners.values();
                let idle = runners
                    .find(|runner| runner.credential == credential && runner.job.is_none())
                    .map(|runner| runner.id);
                if let Some(id) = idle {
                    state.remove_runner(id, "deleted", *now);
                }
            }
            Step::Cancel(index) => {
                if let Some(job) = jobs.get(*index) {
                    state.cancel(*job, *now);
                }
            }
            Step::Pass(seconds) => {
                *now += seconds * SECOND;
                state.tick(*now);
            }
        }
    }

    fn check(&self) {
        let state = &self.state;
        for runner in state.runners.values() {
            let Some(job) = runner.job else { continue };
            let job = &state.jobs[&job];
            assert_eq!(job.status, Status::InProgress);
            assert_eq!(job.runner.as_ref().unwrap().id, runner.id);
            assert!(super::jobs::has_all(&runner.labels, &job.labels));
        }
        for job in state.jobs.values() {
            let runner = job.runner.as_ref().and_then(|taken| state.runners.get(&taken.id));
            match job.status {
                Status::Queued => assert!(job.runner.is_none() && job.conclusion.is_none()),
                Status::InProgress => assert_eq!(runner.unwrap().job, Some(job.id)),
                Status::Completed => {
                    assert!(job.conclusion.is_some() && job.completed_at >= Some(job.queued_at));
                    assert!(runner.is_none(), "its registration is removed");
                }
            }
        }
        assert_eq!(state.runners.len() + state.removed_runners.len(), self.credentials.len());
    }
}

proptest! {
    #[test]
    fn each_job_has_one_runner_and_each_runner_one_job(
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
            world.check();
        }
    }
}
