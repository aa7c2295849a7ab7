//! The demo: queues a few jobs, prints each change, and summarizes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::server::Simulator;
use crate::state::State;
use crate::state::jobs::{Conclusion, Job, NewJob, Status};
use crate::time::Millis;

/// The interval of checks for changes.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// A job's name and status, as printed.
type JobLine = (String, String);

/// Queues `count` jobs for runners with these labels and passes each change to `print` until all
/// have ended or `timeout` expires. Returns whether each succeeded, was started once, and ran in
/// its own microVM.
pub fn run(
    simulator: &Simulator,
    count: usize,
    labels: &[String],
    timeout: Duration,
    mut print: impl FnMut(&str),
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
    let started = Instant::now();
    let mut seen: BTreeMap<u64, JobLine> = BTreeMap::new();
    loop {
        for (id, now) in simulator.with(|state, _| job_lines(state)) {
            if seen.get(&id) != Some(&now) {
                let (name, text) = &now;
                print(&format!("{:7.1} s  {name:8} {text}", started.elapsed().as_secs_f64()));
                seen.insert(id, now);
            }
        }
        let done = simulator.with(|state, _| state.jobs.values().all(ended));
        if done || started.elapsed() > timeout {
            break;
        }
        std::thread::sleep(CHECK_INTERVAL);
    }
    let jobs: Vec<Job> = simulator.with(|state, _| state.jobs.values().cloned().collect());
    for line in table(&jobs) {
        print(&line);
    }
    let good = jobs.iter().filter(|job| is_good(job)).count();
    let boots = jobs.iter().flat_map(boots).collect::<BTreeSet<_>>().len();
    print(&format!("{good} of {count} jobs succeeded, each started once, in {boots} microVMs"));
    good == count && boots == count
}

/// Returns a table of how long each job waited and ran, and on which runner.
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

/// Returns the boot IDs that a job printed.
fn boots(job: &Job) -> impl Iterator<Item = &str> {
    job.log.lines().filter_map(|line| line.strip_prefix("boot "))
}

fn ended(job: &Job) -> bool {
    job.status == Status::Completed
}

fn is_good(job: &Job) -> bool {
    job.conclusion == Some(Conclusion::Success) && job.started_runs.len() == 1
}

fn job_lines(state: &State) -> Vec<(u64, JobLine)> {
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
    fn jobs_without_a_runner_are_printed_and_fail_the_demo() {
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
