//! Tests of every exit status, with and without a job, with and without an interrupt.

use std::fmt::Write as _;

use super::*;
use mayfly_reference::assert_generated_parts;
use mayfly_shepherd::event::FailureReport;

const IDLE: RunnerObservations =
    RunnerObservations { running: false, completed: None, interrupted: false };
const BUSY: RunnerObservations = RunnerObservations { running: true, ..IDLE };
const DONE: RunnerObservations =
    RunnerObservations { completed: Some(RunnerResult::Succeeded), ..BUSY };

fn ended(status: u8) -> JobOutcome {
    let status = JobExit::Code(status);
    JobOutcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
}

/// A runner that ended by itself.
fn by_itself(status: u8, observed: RunnerObservations) -> RunnerEndEffects {
    effects_of(&ended(status), observed, Some(""))
}

/// A runner that the daemon interrupted.
fn interrupted(status: u8, observed: RunnerObservations) -> RunnerEndEffects {
    effects_of(&ended(status), RunnerObservations { interrupted: true, ..observed }, None)
}

#[test]
fn only_a_reported_result_removes_the_registration() {
    for status in 0..=255 {
        for observed in [IDLE, BUSY, DONE] {
            let (itself, interrupted) =
                (by_itself(status, observed), interrupted(status, observed));
            // 105 reports that the job was taken back.
            let said = |one: &RunnerEndEffects| {
                matches!(one.job, RunnerJobEnd::Reported(_)) || status == 105
            };
            for one in [&itself, &interrupted] {
                assert!(
                    !one.is_registration_removed || said(one),
                    "{status} {observed:?}: {one:?}"
                );
                let lost =
                    matches!(&one.job, RunnerJobEnd::Lost(why) if !why.starts_with(TAKEN_BACK));
                assert_eq!(one.job == RunnerJobEnd::None, !observed.running && !said(one));
                assert!(!lost || itself.back_off.is_some(), "{status} {observed:?}: {one:?}");
            }
            // The next registration waits, unless the daemon intended the end.
            assert_eq!(interrupted.back_off, None, "{status} {observed:?}");
            if !observed.running {
                assert!(itself.back_off.is_some() || said(&itself), "{status}: {itself:?}");
            }
        }
    }
}

#[test]
fn an_end_that_the_daemon_wanted_delays_no_registration_whatever_its_status() {
    // Its registration was deleted. It may notice that before the interrupt.
    for observed in [IDLE, RunnerObservations { interrupted: true, ..IDLE }] {
        let effects = effects_of(&ended(1), observed, None);
        assert_eq!((effects.job, effects.back_off), (RunnerJobEnd::None, None), "{observed:?}");
    }
    // But not if it ends because its runner failed.
    let why = "retired: its runner got no job in time";
    assert_eq!(effects_of(&ended(1), IDLE, Some(why)).back_off.as_deref(), Some(why));
}

#[test]
fn a_job_that_was_taken_back_is_never_done() {
    let abandoned = RunnerObservations { completed: Some(RunnerResult::Abandoned), ..BUSY };
    for (status, observed) in [(0, BUSY), (0, abandoned), (105, BUSY)] {
        let effects = by_itself(status, observed);
        let RunnerJobEnd::Lost(why) = &effects.job else { panic!("{effects:?}") };
        assert!(why.starts_with(TAKEN_BACK), "{why}");
        assert_eq!(effects.back_off, None);
    }
    assert_eq!(interrupted(0, BUSY).job, RunnerJobEnd::Interrupted);
    assert_eq!(interrupted(143, BUSY).job, RunnerJobEnd::Interrupted);
}

#[test]
fn a_microvm_that_ended_before_its_runner_adds_no_result() {
    let failed = JobOutcome::Failed(FailureReport::default());
    let of = |observed, unexpected| effects_of(&failed, observed, unexpected);
    assert_eq!(of(IDLE, None).back_off, None);
    assert_eq!(of(IDLE, Some("why")).back_off.as_deref(), Some("why"));
    assert!(matches!(of(BUSY, Some("")).job, RunnerJobEnd::Lost(_)));
    assert_eq!(of(BUSY, Some("")).back_off, None);
    assert_eq!(
        of(RunnerObservations { interrupted: true, ..BUSY }, None).job,
        RunnerJobEnd::Interrupted
    );
    let done = of(DONE, Some(""));
    assert_eq!(done.job, RunnerJobEnd::Reported(RunnerResult::Succeeded));
    assert!(!done.is_registration_removed, "it is unknown whether the forge knows");
}

#[test]
fn the_guide_has_the_table() {
    let words = |one: &RunnerEndEffects| {
        let registration =
            if one.is_registration_removed { "GitHub removed it" } else { "deleted" };
        let job = match &one.job {
            RunnerJobEnd::None => "keeps waiting".to_owned(),
            RunnerJobEnd::Reported(_) => "as the runner reported".to_owned(),
            RunnerJobEnd::Interrupted => "canceled".to_owned(),
            RunnerJobEnd::Lost(why) => format!("failed: {why}"),
        };
        let next = if one.back_off.is_some() { "waits, longer each time" } else { "at once" };
        format!("{registration} | {job} | {next}")
    };
    let mut table = String::from(
        "| status | means | heard before | registration | job | next registration |\n\
         |--|--|--|--|--|--|\n",
    );
    let mut row = |status: &str, meaning: &str, observed: &str, one: &RunnerEndEffects| {
        _ = writeln!(table, "| {status} | {meaning} | {observed} | {} |", words(one));
    };
    for status in 0..=7 {
        let (meaning, status) =
            (RunnerExit::from_status(status).to_string(), (status, status.to_string()));
        if status.0 == 0 {
            row(&status.1, &meaning, "how the job went", &by_itself(0, DONE));
        }
        row(&status.1, &meaning, "nothing of a job", &by_itself(status.0, IDLE));
        row(&status.1, &meaning, "\"Running job\"", &by_itself(status.0, BUSY));
    }
    let meaning = "an interrupt by Mayfly";
    row("0, 130, 143", meaning, "how the job went", &interrupted(143, DONE));
    row("0, 130, 143", meaning, "nothing of a job", &interrupted(143, IDLE));
    row("0, 130, 143", meaning, "\"Running job\"", &interrupted(143, BUSY));
    assert_generated_parts("guide/github.md", &[("statuses", table)]);
}
