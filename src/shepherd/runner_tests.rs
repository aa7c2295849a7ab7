//! What is a mark, what is none, and what can never happen.

use super::*;
use proptest::prelude::*;

fn all(bytes: &[u8]) -> Vec<RunnerMark> {
    Marks::default().read(bytes)
}

#[test]
fn the_configuration_is_in_the_environment_only_and_last() {
    let secret = SecretString::from("c2VjcmV0");
    let other = (Bytes::from(JIT_CONFIG.as_bytes().to_vec()), Bytes::from(b"other".to_vec()));
    let job = job(&secret, [other], DIRECTORY);
    assert_eq!(job.environment.last().unwrap().1.as_slice(), b"c2VjcmV0");
    assert!(job.arguments.iter().all(|argument| !argument.ends_with(b"c2VjcmV0")));
    assert!(is_runner(&job));
    assert!(!format!("{job:?}").contains("c2VjcmV0"));
}

#[test]
fn the_words_of_a_runner_are_marks() {
    let text = "\n√ Connected to GitHub\n\nCurrent runner version: '2.336.0'\n\
                2026-01-02 03:04:05Z: Listening for Jobs\r\n\
                2026-01-02 03:04:06Z: Running job: build (ubuntu, 1)\n\
                2026-01-02 03:04:07Z: Job build (ubuntu, 1) completed with result: Failed\n";
    let job = || "build (ubuntu, 1)".to_owned();
    let expected = [
        RunnerMark::Connected,
        RunnerMark::Listening,
        RunnerMark::Running { job: job() },
        RunnerMark::Completed { job: job(), result: JobResult::Failed },
    ];
    assert_eq!(all(text.as_bytes()), expected);
}

#[test]
fn a_lost_connection_is_a_mark_until_there_is_one_again_and_takes_no_other_marks_place() {
    let lost = "2026-01-02 03:04:05Z: Runner connect error: refused. Retrying until reconnected.\n";
    let found = "√ 2026-01-02 03:04:09Z: Runner reconnected.\n";
    let marks = all(format!("{lost}{found}").as_bytes());
    assert_eq!(marks, [RunnerMark::Retrying, RunnerMark::Listening]);
    let mut marks = Marks::default();
    assert_eq!(marks.read(lost.repeat(1000).as_bytes()).len(), RETRIES);
    let running = RunnerMark::Running { job: "a".to_owned() };
    assert_eq!(marks.read(b"Running job: a\n"), [running]);
}

#[test]
fn what_only_looks_like_a_mark_is_none() {
    for text in [
        "x Listening for Jobs\n",
        "Listening for Jobs",
        "Job a completed with result: Splendid\n",
        "Job a completed with result: Failed or so\n",
        "Running job:\n",
        "2026-01-02 03:04:05: Listening for Jobs\n",
    ] {
        assert_eq!(all(text.as_bytes()), [], "{text}");
    }
    assert_eq!(all(b"Running job: \xff\n"), []);
}

#[test]
fn a_hostile_name_is_a_name() {
    let text = "Job a completed with result: Succeeded completed with result: Failed\n";
    let job = "a completed with result: Succeeded".to_owned();
    assert_eq!(all(text.as_bytes()), [RunnerMark::Completed { job, result: JobResult::Failed }]);
    let marks = all("Running job: \x1b]0;x\x07\n".as_bytes());
    assert_eq!(marks, [RunnerMark::Running { job: "\u{fffd}]0;x\u{fffd}".to_owned() }]);
}

#[test]
fn lines_and_marks_without_end_are_bounded() {
    let mut marks = Marks::default();
    for _ in 0..100 {
        assert_eq!(marks.read(&[b'x'; LINE]), []);
        assert!(marks.line.len() <= LINE);
    }
    assert_eq!(marks.read(b"\nListening for Jobs\n"), [RunnerMark::Listening]);
    let flood = "Listening for Jobs\n".repeat(1000);
    assert_eq!(marks.read(flood.as_bytes()).len(), MARKS - 1);
}

#[test]
fn every_status_has_its_meaning() {
    assert_eq!(Meaning::of(0), Meaning::Done);
    assert_eq!(Meaning::of(7), Meaning::VersionDeprecated);
    assert_eq!(Meaning::of(102), Meaning::Job(JobResult::Failed));
    assert_eq!(Meaning::of(105), Meaning::Job(JobResult::Abandoned));
    for unknown in [8, 99, 106, 255] {
        assert_eq!(Meaning::of(unknown), Meaning::Unknown(unknown));
        assert!(!Meaning::of(unknown).is_regular());
    }
}

#[test]
fn every_status_is_concluded_by_what_was_heard() {
    use Conclusion::{Completed, Idle, Interrupted, Lost, Refused, TakenBack};
    let heard = |running, completed, interrupted| Heard { running, completed, interrupted };
    let (idle, busy) = (heard(false, None, false), heard(true, None, false));
    let told = |running| heard(running, None, true);
    let done = heard(true, Some(JobResult::Succeeded), false);
    for (status, heard, expected) in [
        (0, idle, Idle),
        (1, idle, Refused(Meaning::Terminal)),
        (2, idle, Refused(Meaning::Retryable)),
        (3, idle, Refused(Meaning::Updating)),
        (4, idle, Refused(Meaning::Updating)),
        (5, idle, Refused(Meaning::SessionConflict)),
        (6, idle, Refused(Meaning::Refreshed)),
        (7, idle, Refused(Meaning::VersionDeprecated)),
        (143, idle, Refused(Meaning::Unknown(143))),
        // GitHub took the job away before it began, or stopped renewing it.
        (0, busy, TakenBack),
        (1, busy, Lost(Meaning::Terminal)),
        (2, busy, Lost(Meaning::Retryable)),
        (137, busy, Lost(Meaning::Unknown(137))),
        (143, busy, Lost(Meaning::Unknown(143))),
        // What it said wins over how it ended.
        (0, done, Completed(JobResult::Succeeded)),
        (2, done, Completed(JobResult::Succeeded)),
        (100, busy, Completed(JobResult::Succeeded)),
        (102, busy, Completed(JobResult::Failed)),
        (103, busy, Completed(JobResult::Canceled)),
        (105, busy, Completed(JobResult::Abandoned)),
        // .NET 8 and .NET 10 after a signal of ours.
        (0, told(false), Idle),
        (130, told(false), Idle),
        (143, told(false), Idle),
        (0, told(true), Interrupted),
        (130, told(true), Interrupted),
        (143, told(true), Interrupted),
        (137, told(true), Lost(Meaning::Unknown(137))),
        (1, told(true), Lost(Meaning::Terminal)),
    ] {
        let conclusion = Conclusion::of(status, heard);
        assert_eq!(conclusion, expected, "{status} {heard:?}");
        let well = matches!(conclusion, Completed(JobResult::Succeeded));
        let said = heard.completed == Some(JobResult::Succeeded) || status == 100;
        assert_eq!(well, said, "only a runner's word is a success: {status} {heard:?}");
        // An outage or a refusal never lets the next registration follow at once.
        let refused = matches!(conclusion, Refused(_) | Lost(_));
        assert_eq!(conclusion.backs_off(), refused);
    }
}

/// Lines that are marks, nearly so, or nothing at all.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "Listening for Jobs",
        "Running job: ",
        "Job ",
        " completed with result: ",
        "Failed",
        "2026-01-02 03:04:05Z: ",
        "√ Connected to GitHub",
        "Runner connect error: refused",
        "\r",
        "\n",
        "\n",
        "name",
    ]);
    let words = words.prop_map(|word| word.as_bytes().to_vec());
    prop_oneof![4 => words, 1 => prop::collection::vec(any::<u8>(), 0..20)]
}

proptest! {
    /// The marks are those of the text, however it comes in pieces.
    #[test]
    fn pieces_make_no_difference(
        words in prop::collection::vec(line(), 0..40),
        cuts in prop::collection::vec(1_usize..30, 1..40),
    ) {
        let text = words.concat();
        let (mut marks, mut found, mut rest) = (Marks::default(), Vec::new(), text.as_slice());
        for cut in cuts.iter().cycle() {
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            found.extend(marks.read(piece));
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, all(&text));
    }

    /// Whatever comes, what is made of it can be shown and is bounded.
    #[test]
    fn any_bytes_are_marks_or_none(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for mark in all(&bytes) {
            let shown = match mark {
                RunnerMark::Running { job } | RunnerMark::Completed { job, .. } => job,
                RunnerMark::Connected | RunnerMark::Listening | RunnerMark::Retrying => continue,
            };
            prop_assert!(shown.len() <= 3 * LINE && !shown.chars().any(char::is_control));
        }
    }
}
