//! A few jobs to look at: queues them, tells each change, and sums up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::server::Simulator;
use crate::state::State;
use crate::state::jobs::{Conclusion, Job, NewJob, Status};
use crate::time::Millis;

/// How often it is looked whether anything has changed.
const LOOK: Duration = Duration::from_millis(200);

/// What is shown of a job while it goes on.
type Shown = (String, String);

/// Queues so many jobs for runners with these labels and tells `say` of each change until all have
/// ended, `patience` at most. Whether each succeeded, was started once, and had a system of its own.
pub fn run(
    simulator: &Simulator,
    count: usize,
    labels: &[String],
    patience: Duration,
    mut say: impl FnMut(&str),
) -> bool {
    for number in 1..=count {
        simulator.queue(NewJob {
            repository: "octo/hello".to_owned(),
            name: format!("job {number}"),
            labels: labels.to_vec(),
            steps: ["uname -r", "echo boot $(cat /proc/sys/kernel/random/boot_id)", "sleep 1"]
                .map(str::to_owned)
                .into(),
        });
    }
    let begun = Instant::now();
    let mut seen: BTreeMap<u64, Shown> = BTreeMap::new();
    loop {
        for (id, now) in simulator.with(|state, _| shown(state)) {
            if seen.get(&id) != Some(&now) {
                let (name, text) = &now;
                say(&format!("{:7.1} s  {name:8} {text}", begun.elapsed().as_secs_f64()));
                seen.insert(id, now);
            }
        }
        let done = simulator.with(|state, _| state.jobs.values().all(ended));
        if done || begun.elapsed() > patience {
            break;
        }
        std::thread::sleep(LOOK);
    }
    let jobs: Vec<Job> = simulator.with(|state, _| state.jobs.values().cloned().collect());
    for line in table(&jobs) {
        say(&line);
    }
    let good = jobs.iter().filter(|job| went_well(job)).count();
    let boots = jobs.iter().flat_map(boots).collect::<BTreeSet<_>>().len();
    say(&format!("{good} of {count} jobs succeeded, each started once, in {boots} microVMs"));
    good == count && boots == count
}

/// How long each job waited and ran, and where.
fn table(jobs: &[Job]) -> Vec<String> {
    let head = format!("{:8} {:>10} {:>10}  runner", "job", "waited", "ran");
    let between = |from: Option<Millis>, to: Option<Millis>| match from.zip(to) {
        Some((from, to)) => {
            format!("{:.1} s", Duration::from_millis(to.saturating_sub(from)).as_secs_f64())
        }
        None => "-".to_owned(),
    };
    let lines = jobs.iter().map(|job| {
        let waited = between(Some(job.queued_at), job.started_at);
        let ran = between(job.started_at, job.completed_at);
        let runner = job.runner.as_ref().map_or("-", |runner| runner.name.as_str());
        format!("{:8} {waited:>10} {ran:>10}  {runner}", job.name)
    });
    std::iter::once(head).chain(lines).collect()
}

/// What the systems that a job ran in called themselves.
fn boots(job: &Job) -> impl Iterator<Item = &str> {
    job.log.lines().filter_map(|line| line.strip_prefix("boot "))
}

fn ended(job: &Job) -> bool {
    job.status == Status::Completed
}

fn went_well(job: &Job) -> bool {
    job.conclusion == Some(Conclusion::Success) && job.started_runs.len() == 1
}

fn shown(state: &State) -> Vec<(u64, Shown)> {
    let text = |job: &Job| match job.conclusion {
        Some(conclusion) => conclusion.text(),
        None => job.status.text(),
    };
    state.jobs.iter().map(|(id, job)| (*id, (job.name.clone(), text(job).to_owned()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn jobs_that_nobody_takes_are_told_and_fail_the_demo() {
        let simulator = Simulator::start(Settings::default()).unwrap();
        let mut lines = Vec::new();
        let labels = ["self-hosted".to_owned()];
        let good = run(&simulator, 2, &labels, Duration::ZERO, |line| lines.push(line.to_owned()));
        assert!(!good);
        assert!(lines[0].contains("job 1") && lines[0].contains("queued"), "{lines:?}");
        assert!(lines[3].starts_with("job 1") && lines[3].ends_with("-  -"), "{lines:?}");
        assert_eq!(lines[5], "0 of 2 jobs succeeded, each started once, in 0 microVMs");
    }
}
