//! When the daemon ends or kills a microVM by itself. Pure.
//!
//! A shepherd keeps the deadlines of its phases. One that is stopped or wedged keeps none, so each
//! phase, and the order to end, has a second deadline here, a little later, which ends in a kill:
//! what a microVM takes of the host is free again, whatever its shepherd does.

use std::time::Duration;

use super::microvm::{Microvm, Work};
use crate::daemon::decide::Stage;
use crate::daemon::millis::Millis;

/// How much longer than the shepherd's own deadline a phase may last.
const SLACK: Duration = Duration::from_secs(5);
/// How long a shepherd may take that was told to end: its own deadline for that, and the slack.
const ENDING: Duration = Duration::from_secs(10).saturating_add(SLACK);
/// From the end of a job until its microVM is gone: two minutes for what is copied out, and as
/// above.
const FINISHING: Duration = Duration::from_secs(120).saturating_add(ENDING);
/// From a job's message to its start, copies included.
const CLAIMING: Duration = Duration::from_secs(10 * 60).saturating_add(SLACK);
/// How long a runner may take from its registration to its listening.
pub(super) const REGISTERING: Duration = Duration::from_secs(5 * 60);
/// How long a runner may take to end after its job was reported as completed. It tries for 264 s to
/// send a last report that GitHub refuses.
const COMPLETED: Duration = Duration::from_secs(5 * 60);
/// Between two kills of one that is still there.
const AGAIN: Duration = Duration::from_secs(10);

/// How long the phases of one microVM may last by its shepherd's deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// From its plan until its guest is ready.
    pub(super) boot: Duration,
    /// Ready without a job.
    pub(super) idle: Duration,
    /// Its job.
    pub(super) job: Duration,
    /// From the order to end until a runner has ended.
    pub(super) farewell: Duration,
}

impl Default for Patience {
    /// For one whose plan is not known: longer than any boot takes.
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(10 * 60),
            idle: Duration::from_secs(24 * 3600),
            job: Duration::from_secs(6 * 3600),
            farewell: Duration::from_secs(10 * 60),
        }
    }
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Tell it to end, for this cause.
    End(&'static str),
    /// The same, where its runner did not do what it is there for.
    Fail(&'static str),
    /// Kill it, for this cause.
    Kill(&'static str),
}

/// What is to be done with a microVM next, and when.
pub(super) fn step(microvm: &Microvm) -> Option<(Millis, Step)> {
    if let Some(killed) = microvm.killed {
        return Some((killed + AGAIN, Step::Kill("it was still there after it was killed")));
    }
    let farewell = match microvm.work {
        Work::Runner(_) => microvm.patience.farewell,
        Work::None | Work::Local(_) => Duration::ZERO,
    };
    let ending = if farewell.is_zero() { ENDING } else { farewell + FINISHING };
    let ending = microvm
        .told_to_end
        .map(|at| (at + ending, Step::Kill("its shepherd did not obey the order to end")));
    let over = microvm
        .over
        .map(|at| (at + FINISHING, Step::Kill("its shepherd did not end after its job")));
    if ending.is_some() || over.is_some() {
        return [ending, over].into_iter().flatten().min_by_key(|(at, _)| *at);
    }
    let since = microvm.since;
    let own = match microvm.stage {
        Stage::Booting if microvm.id.is_some() => Some((
            since + microvm.patience.boot + SLACK,
            Step::Kill("its shepherd did not keep the deadline of the boot"),
        )),
        // Its shepherd ends it by then itself.
        Stage::Warm => Some((
            since + microvm.patience.idle + ENDING,
            Step::Kill("its shepherd did not keep the deadline of a microVM without a job"),
        )),
        Stage::Registering => {
            Some((since + REGISTERING, Step::Fail("the runner did not come up in time")))
        }
        Stage::Assigned => {
            Some((since + CLAIMING, Step::Kill("its shepherd did not start the job in time")))
        }
        Stage::Busy => Some((
            since + microvm.patience.job + farewell + FINISHING,
            Step::Kill("its shepherd did not keep the deadline of the job"),
        )),
        _ => None,
    };
    let has_job = matches!(microvm.stage, Stage::Assigned | Stage::Busy);
    let deadline = microvm.deadline.filter(|_| has_job);
    let deadline = deadline.map(|at| (at, Step::End("the job did not end in time")));
    let has_runner = matches!(microvm.work, Work::Runner(_)) && microvm.stage != Stage::Ending;
    let completed = microvm.completed.filter(|_| has_runner).map(|at| {
        (at + COMPLETED, Step::Fail("its job was reported as completed, and its runner went on"))
    });
    [own, deadline, completed].into_iter().flatten().min_by_key(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::super::microvm::Runner;
    use super::*;
    use crate::daemon::decide::{JobKey, Load, MachineKey, PoolId};
    use crate::shepherd::plan::Id;

    const BEGAN: Millis = Millis(1000);

    fn microvm(stage: Stage, work: Work) -> Microvm {
        let mut microvm = Microvm::new(MachineKey(1), PoolId(0), "small", Load::default(), BEGAN);
        microvm.patience.farewell = Duration::from_secs(60);
        microvm.id = Id::parse("m-0123456789");
        (microvm.stage, microvm.work) = (stage, work);
        microvm
    }

    fn runner() -> Work {
        Work::Runner(Runner { name: "r".to_owned(), id: None, job: None, result: None })
    }

    fn seconds(microvm: &Microvm) -> Option<(u64, bool)> {
        step(microvm).map(|(at, step)| (at.since(BEGAN).as_secs(), matches!(step, Step::Kill(_))))
    }

    #[test]
    fn a_shepherd_that_is_stopped_is_killed_in_every_phase_with_a_deadline() {
        let local = || Work::Local(JobKey(1));
        for (stage, work, expected) in [
            (Stage::Booting, Work::None, Some((605, true))),
            (Stage::Warm, Work::None, Some((24 * 3600 + 15, true))),
            (Stage::Assigned, local(), Some((605, true))),
            (Stage::Registering, runner(), Some((300, false))),
            (Stage::Registered, runner(), None),
            (Stage::Busy, local(), Some((6 * 3600 + 135, true))),
            (Stage::Busy, runner(), Some((6 * 3600 + 195, true))),
            // Its registration goes first, then it is told to end.
            (Stage::Ending, runner(), None),
        ] {
            // A runner has its farewell before it is killed.
            let told = if matches!(work, Work::Runner(_)) { 195 } else { 15 };
            let mut microvm = microvm(stage, work);
            assert_eq!(seconds(&microvm), expected, "{stage:?}");
            microvm.told_to_end = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((told, true)), "told to end, {stage:?}");
            microvm.over = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((told.min(135), true)), "over, {stage:?}");
            microvm.told_to_end = None;
            assert_eq!(seconds(&microvm), Some((135, true)), "over by itself, {stage:?}");
            microvm.killed = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((10, true)), "killed, {stage:?}");
        }
    }

    #[test]
    fn a_microvm_without_a_shepherd_is_not_killed() {
        let mut planned = microvm(Stage::Booting, Work::None);
        planned.id = None;
        assert_eq!(step(&planned), None);
    }

    #[test]
    fn a_job_ends_at_its_own_deadline_before_that_of_its_shepherd() {
        let mut microvm = microvm(Stage::Busy, Work::Local(JobKey(1)));
        microvm.deadline = Some(BEGAN + Duration::from_secs(20));
        assert_eq!(seconds(&microvm), Some((20, false)));
        microvm.stage = Stage::Assigned;
        assert_eq!(seconds(&microvm), Some((20, false)));
    }

    #[test]
    fn a_runner_whose_job_was_reported_as_completed_has_a_time_of_grace() {
        for stage in [Stage::Registering, Stage::Registered, Stage::Busy] {
            let mut microvm = microvm(stage, runner());
            microvm.completed = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((300, false)), "{stage:?}");
        }
        let mut local = microvm(Stage::Busy, Work::Local(JobKey(1)));
        local.completed = Some(BEGAN);
        assert_ne!(seconds(&local), Some((300, false)));
    }
}
