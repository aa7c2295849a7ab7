//! The deadlines after which the daemon ends or kills a microVM. Pure.
//!
//! A shepherd enforces the deadlines of its phases. A stopped or hung one can't, so each phase, and
//! the command to end, has a second deadline here. It is slightly later and ends in a kill, which
//! frees the microVM's resources whatever its shepherd does.

use std::time::Duration;

use super::microvm::{Assignment, Microvm};
use crate::decide::Stage;
use crate::time::Millis;
use mayfly_shepherd::record::RecordedDeadlines;

/// How much later than the shepherd's own deadline the daemon acts.
const SLACK: Duration = Duration::from_secs(5);
/// How long a shepherd may take to end on command: its own deadline for that, and the slack.
const ENDING: Duration = Duration::from_secs(10).saturating_add(SLACK);
/// From the end of a job until its microVM is gone: two minutes to copy files out, and [`ENDING`].
const FINISHING: Duration = Duration::from_secs(120).saturating_add(ENDING);
/// From the command to start a job to its start, including copies.
const CLAIMING: Duration = Duration::from_secs(10 * 60).saturating_add(SLACK);
/// How long a runner may take from its registration until it listens.
pub(super) const REGISTERING: Duration = Duration::from_secs(5 * 60);
/// How long a runner may take to end after its job was reported as completed. It tries for 264 s to
/// send a last report that GitHub refuses.
const COMPLETED: Duration = Duration::from_secs(5 * 60);
/// Time between two kills of a microVM that still runs.
const AGAIN: Duration = Duration::from_secs(10);

/// The shepherd's deadlines for the phases of one microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PhaseTimeouts {
    /// From its plan until its guest is ready.
    pub(super) boot: Duration,
    /// While ready without a job.
    pub(super) idle: Duration,
    /// While its job runs.
    pub(super) job: Duration,
    /// From the command to end until a runner has ended.
    pub(super) farewell: Duration,
}

impl From<RecordedDeadlines> for PhaseTimeouts {
    /// A shepherd can change its record, so a deadline counts only up to the longest of the settings.
    fn from(recorded: RecordedDeadlines) -> Self {
        let limited = |ms, most: Duration| Duration::from_millis(ms).min(most);
        Self {
            boot: limited(recorded.boot, LONGEST.boot),
            idle: limited(recorded.idle, LONGEST.idle),
            job: limited(recorded.job, LONGEST.job),
            farewell: limited(recorded.farewell, LONGEST.farewell),
        }
    }
}

impl Default for PhaseTimeouts {
    /// For a microVM whose plan is unknown: longer than any boot takes.
    fn default() -> Self {
        Self {
            boot: Duration::from_secs(10 * 60),
            idle: Duration::from_secs(24 * 3600),
            job: Duration::from_secs(6 * 3600),
            farewell: Duration::from_secs(10 * 60),
        }
    }
}

/// The longest deadlines that the settings of a pool allow. A boot also has its preparation, and
/// more time under emulation.
const LONGEST: PhaseTimeouts = PhaseTimeouts {
    boot: Duration::from_secs(2 * 3600),
    idle: Duration::from_secs(7 * 86_400),
    job: Duration::from_secs(5 * 86_400),
    farewell: Duration::from_secs(10 * 60),
};

/// The action on an overdue microVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OverdueAction {
    /// Command it to end, for this reason.
    End(&'static str),
    /// Command it to end, for this reason, because its runner failed.
    Fail(&'static str),
    /// Kill it, for this reason.
    Kill(&'static str),
}

/// Returns the next action on a microVM, and when it is due.
pub(super) fn next_action(microvm: &Microvm) -> Option<(Millis, OverdueAction)> {
    if let Some(killed) = microvm.killed_at {
        return Some((killed + AGAIN, OverdueAction::Kill("it still ran after a kill")));
    }
    let farewell = match microvm.assignment {
        Assignment::Runner(_) => microvm.timeouts.farewell,
        Assignment::None | Assignment::Local(_) => Duration::ZERO,
    };
    let ending = if farewell.is_zero() { ENDING } else { farewell + FINISHING };
    let ending = microvm
        .end_requested_at
        .map(|at| (at + ending, OverdueAction::Kill("its shepherd did not end on command")));
    let over = microvm
        .ended_at
        .map(|at| (at + FINISHING, OverdueAction::Kill("its shepherd did not end after its job")));
    if ending.is_some() || over.is_some() {
        return [ending, over].into_iter().flatten().min_by_key(|(at, _)| *at);
    }
    let since = microvm.since;
    let own = match microvm.stage {
        Stage::Booting if microvm.id.is_some() => Some((
            since + microvm.timeouts.boot + SLACK,
            OverdueAction::Kill("its shepherd did not enforce the boot deadline"),
        )),
        // Its shepherd ends it itself by then.
        Stage::Warm => Some((
            since + microvm.timeouts.idle + ENDING,
            OverdueAction::Kill("its shepherd did not enforce the idle deadline"),
        )),
        Stage::Registering => Some((
            since + REGISTERING,
            OverdueAction::Fail("the runner did not start to listen in time"),
        )),
        Stage::Assigned => Some((
            since + CLAIMING,
            OverdueAction::Kill("its shepherd did not start the job in time"),
        )),
        Stage::Busy => Some((
            since + microvm.timeouts.job + farewell + FINISHING,
            OverdueAction::Kill("its shepherd did not enforce the job deadline"),
        )),
        _ => None,
    };
    let has_job = matches!(microvm.stage, Stage::Assigned | Stage::Busy);
    let deadline = microvm.job_deadline.filter(|_| has_job);
    let deadline =
        deadline.map(|at| (at, OverdueAction::End("the job did not end before its timeout")));
    let has_runner =
        matches!(microvm.assignment, Assignment::Runner(_)) && microvm.stage != Stage::Ending;
    let completed = microvm.job_completed_at.filter(|_| has_runner).map(|at| {
        (at + COMPLETED, OverdueAction::Fail("its runner did not end after its job completed"))
    });
    [own, deadline, completed].into_iter().flatten().min_by_key(|(at, _)| *at)
}

#[cfg(test)]
mod tests {
    use super::super::microvm::AssignedRunner;
    use super::*;
    use crate::decide::{JobKey, MicrovmKey, PoolId, Resources};
    use mayfly_shepherd::plan::MicrovmId;

    const BEGAN: Millis = Millis(1000);

    fn microvm(stage: Stage, assignment: Assignment) -> Microvm {
        let mut microvm =
            Microvm::new(MicrovmKey(1), PoolId(0), "small", Resources::default(), BEGAN);
        microvm.timeouts.farewell = Duration::from_secs(60);
        microvm.id = MicrovmId::parse("m-0123456789");
        (microvm.stage, microvm.assignment) = (stage, assignment);
        microvm
    }

    fn runner() -> Assignment {
        Assignment::Runner(AssignedRunner {
            name: "r".to_owned(),
            id: None,
            job: None,
            result: None,
        })
    }

    fn seconds(microvm: &Microvm) -> Option<(u64, bool)> {
        next_action(microvm).map(|(at, action)| {
            (at.since(BEGAN).as_secs(), matches!(action, OverdueAction::Kill(_)))
        })
    }

    #[test]
    fn a_stopped_shepherd_is_killed_in_every_phase_with_a_deadline() {
        let local = || Assignment::Local(JobKey(1));
        for (stage, assignment, expected) in [
            (Stage::Booting, Assignment::None, Some((605, true))),
            (Stage::Warm, Assignment::None, Some((24 * 3600 + 15, true))),
            (Stage::Assigned, local(), Some((605, true))),
            (Stage::Registering, runner(), Some((300, false))),
            (Stage::Registered, runner(), None),
            (Stage::Busy, local(), Some((6 * 3600 + 135, true))),
            (Stage::Busy, runner(), Some((6 * 3600 + 195, true))),
            // Its registration is deleted before it gets the command to end.
            (Stage::Ending, runner(), None),
        ] {
            // A runner has its farewell before it is killed.
            let limit = if matches!(assignment, Assignment::Runner(_)) { 195 } else { 15 };
            let mut microvm = microvm(stage, assignment);
            assert_eq!(seconds(&microvm), expected, "{stage:?}");
            microvm.end_requested_at = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((limit, true)), "commanded to end, {stage:?}");
            microvm.ended_at = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((limit.min(135), true)), "ended, {stage:?}");
            microvm.end_requested_at = None;
            assert_eq!(seconds(&microvm), Some((135, true)), "ended by itself, {stage:?}");
            microvm.killed_at = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((10, true)), "killed, {stage:?}");
        }
    }

    #[test]
    fn a_record_extends_no_deadline_beyond_the_settings() {
        let recorded = RecordedDeadlines { boot: 40_000, idle: 9, job: u64::MAX, farewell: 7000 };
        let timeouts = PhaseTimeouts::from(recorded);
        assert_eq!((timeouts.boot.as_secs(), timeouts.idle.as_millis()), (40, 9));
        assert_eq!((timeouts.job, timeouts.farewell.as_secs()), (LONGEST.job, 7));
    }

    #[test]
    fn a_microvm_without_a_shepherd_is_not_killed() {
        let mut planned = microvm(Stage::Booting, Assignment::None);
        planned.id = None;
        assert_eq!(next_action(&planned), None);
    }

    #[test]
    fn a_job_ends_at_its_own_deadline_before_that_of_its_shepherd() {
        let mut microvm = microvm(Stage::Busy, Assignment::Local(JobKey(1)));
        microvm.job_deadline = Some(BEGAN + Duration::from_secs(20));
        assert_eq!(seconds(&microvm), Some((20, false)));
        microvm.stage = Stage::Assigned;
        assert_eq!(seconds(&microvm), Some((20, false)));
    }

    #[test]
    fn a_runner_whose_job_completed_has_a_grace_period() {
        for stage in [Stage::Registering, Stage::Registered, Stage::Busy] {
            let mut microvm = microvm(stage, runner());
            microvm.job_completed_at = Some(BEGAN);
            assert_eq!(seconds(&microvm), Some((300, false)), "{stage:?}");
        }
        let mut local = microvm(Stage::Busy, Assignment::Local(JobKey(1)));
        local.job_completed_at = Some(BEGAN);
        assert_ne!(seconds(&local), Some((300, false)));
    }
}
