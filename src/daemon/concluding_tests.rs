//! The table of statuses: each with a job and without, as it came and after an interrupt.

use std::fmt::Write as _;

use super::*;
use crate::reference::assert_made_in_parts;
use crate::shepherd::event::FailureReport;

const IDLE: Heard = Heard { running: false, completed: None, interrupted: false };
const BUSY: Heard = Heard { running: true, ..IDLE };
const DONE: Heard = Heard { completed: Some(JobResult::Succeeded), ..BUSY };

fn ended(status: u8) -> Outcome {
    let status = JobStatus::Code(status);
    Outcome::Job { status, not_copied: Vec::new(), oom_kills: 0 }
}

/// One that ended by itself.
fn by_itself(status: u8, heard: Heard) -> Consequence {
    of(&ended(status), heard, Some(""))
}

/// One that the daemon ended, after an interrupt.
fn told(status: u8, heard: Heard) -> Consequence {
    of(&ended(status), Heard { interrupted: true, ..heard }, None)
}

#[test]
fn only_a_runner_that_said_how_its_job_went_has_spent_its_registration() {
    for status in 0..=255 {
        for heard in [IDLE, BUSY, DONE] {
            let (itself, told) = (by_itself(status, heard), told(status, heard));
            // 105: by a word that counts, that the job was taken back.
            let said = |one: &Consequence| matches!(one.job, JobEnd::Said(_)) || status == 105;
            for one in [&itself, &told] {
                assert!(!one.is_spent || said(one), "{status} {heard:?}: {one:?}");
                let lost = matches!(&one.job, JobEnd::Lost(why) if !why.starts_with(TAKEN_BACK));
                assert_eq!(one.job == JobEnd::None, !heard.running && !said(one));
                assert!(!lost || one.back_off.is_some(), "{status} {heard:?}: {one:?}");
            }
            // Without a job nothing is made again at once, unless that was wanted.
            let wanted = [0, 130, 143].contains(&status);
            let back_off = told.back_off.is_some();
            assert_eq!(back_off, !wanted && !said(&told), "{status} {heard:?}: {told:?}");
            if !heard.running {
                assert!(itself.back_off.is_some() || said(&itself), "{status}: {itself:?}");
            }
        }
    }
}

#[test]
fn a_job_that_was_taken_back_is_never_done() {
    let abandoned = Heard { completed: Some(JobResult::Abandoned), ..BUSY };
    for (status, heard) in [(0, BUSY), (0, abandoned), (105, BUSY)] {
        let consequence = by_itself(status, heard);
        let JobEnd::Lost(why) = &consequence.job else { panic!("{consequence:?}") };
        assert!(why.starts_with(TAKEN_BACK), "{why}");
        assert_eq!(consequence.back_off, None);
    }
    assert_eq!(told(0, BUSY).job, JobEnd::Interrupted);
    assert_eq!(told(143, BUSY).job, JobEnd::Interrupted);
}

#[test]
fn a_microvm_that_ended_before_its_runner_says_no_more_than_was_heard() {
    let failed = Outcome::Failed(FailureReport::default());
    let of = |heard, unexpected| of(&failed, heard, unexpected);
    assert_eq!(of(IDLE, None).back_off, None);
    assert_eq!(of(IDLE, Some("why")).back_off.as_deref(), Some("why"));
    assert!(matches!(of(BUSY, Some("")).job, JobEnd::Lost(_)));
    assert_eq!(of(BUSY, Some("")).back_off, None);
    assert_eq!(of(Heard { interrupted: true, ..BUSY }, None).job, JobEnd::Interrupted);
    let done = of(DONE, Some(""));
    assert_eq!(done.job, JobEnd::Said(JobResult::Succeeded));
    assert!(!done.is_spent, "whether it told the forge is not known");
}

#[test]
fn the_guide_has_the_table() {
    let words = |one: &Consequence| {
        let registration = if one.is_spent { "GitHub removed it" } else { "deleted" };
        let job = match &one.job {
            JobEnd::None => "waits on".to_owned(),
            JobEnd::Said(_) => "as the runner said".to_owned(),
            JobEnd::Interrupted => "cancelled".to_owned(),
            JobEnd::Lost(why) => format!("failed: {why}"),
        };
        let next = if one.back_off.is_some() { "waits, longer each time" } else { "at once" };
        format!("{registration} | {job} | {next}")
    };
    let mut table = String::from(
        "| status | means | heard before | registration | job | next registration |\n\
         |--|--|--|--|--|--|\n",
    );
    let mut row = |status: &str, meaning: &str, heard: &str, one: &Consequence| {
        _ = writeln!(table, "| {status} | {meaning} | {heard} | {} |", words(one));
    };
    for status in 0..=7 {
        let (meaning, status) = (Meaning::of(status).to_string(), (status, status.to_string()));
        if status.0 == 0 {
            row(&status.1, &meaning, "how the job went", &by_itself(0, DONE));
        }
        row(&status.1, &meaning, "nothing of a job", &by_itself(status.0, IDLE));
        row(&status.1, &meaning, "\"Running job\"", &by_itself(status.0, BUSY));
    }
    let interrupted = "an interrupt of ours";
    row("0, 130, 143", interrupted, "how the job went", &told(143, DONE));
    row("0, 130, 143", interrupted, "nothing of a job", &told(143, IDLE));
    row("0, 130, 143", interrupted, "\"Running job\"", &told(143, BUSY));
    assert_made_in_parts("guide/github.md", &[("statuses", table)]);
}
