//! Tests of the parser of a runner's progress, and of exit statuses.

use super::*;
use proptest::prelude::*;

fn all(bytes: &[u8]) -> Vec<RunnerProgress> {
    ProgressParser::default().read(bytes)
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
fn a_runners_progress_is_parsed() {
    let text = "\n√ Connected to GitHub\n\nCurrent runner version: '2.336.0'\n\
                2026-01-02 03:04:05Z: Listening for Jobs\r\n\
                2026-01-02 03:04:06Z: Running job: build (ubuntu, 1)\n\
                2026-01-02 03:04:07Z: Job build (ubuntu, 1) completed with result: Failed\n";
    let job = || "build (ubuntu, 1)".to_owned();
    let expected = [
        RunnerProgress::Connected,
        RunnerProgress::Listening,
        RunnerProgress::Running { job: job() },
        RunnerProgress::Completed { job: job(), result: RunnerResult::Failed },
    ];
    assert_eq!(all(text.as_bytes()), expected);
}

#[test]
fn lost_connections_are_reported_until_restored_and_have_their_own_limit() {
    let lost = "2026-01-02 03:04:05Z: Runner connect error: refused. Retrying until reconnected.\n";
    let found = "√ 2026-01-02 03:04:09Z: Runner reconnected.\n";
    let progress = all(format!("{lost}{found}").as_bytes());
    assert_eq!(progress, [RunnerProgress::Retrying, RunnerProgress::Listening]);
    let mut parser = ProgressParser::default();
    assert_eq!(parser.read(lost.repeat(1000).as_bytes()).len(), MAX_OF_A_KIND);
    let running = RunnerProgress::Running { job: "a".to_owned() };
    assert_eq!(parser.read(b"Running job: a\n"), [running]);
}

#[test]
fn a_flapping_network_hides_no_result() {
    let mut parser = ProgressParser::default();
    parser.read("√ Connected to GitHub\nListening for Jobs\nRunning job: a\n".as_bytes());
    parser.read("√ 2026-01-02 03:04:09Z: Runner reconnected.\n".repeat(40).as_bytes());
    let result = RunnerResult::Succeeded;
    let completed = RunnerProgress::Completed { job: "a".to_owned(), result };
    assert_eq!(parser.read(b"Job a completed with result: Succeeded\n"), [completed]);
}

#[test]
fn similar_lines_are_not_progress() {
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
fn a_hostile_name_is_only_a_name() {
    let text = "Job a completed with result: Succeeded completed with result: Failed\n";
    let job = "a completed with result: Succeeded".to_owned();
    assert_eq!(
        all(text.as_bytes()),
        [RunnerProgress::Completed { job, result: RunnerResult::Failed }]
    );
    let progress = all("Running job: \x1b]0;x\x07\n".as_bytes());
    assert_eq!(progress, [RunnerProgress::Running { job: "\u{fffd}]0;x\u{fffd}".to_owned() }]);
}

#[test]
fn endless_lines_and_progress_are_bounded() {
    let mut parser = ProgressParser::default();
    for _ in 0..100 {
        assert_eq!(parser.read(&[b'x'; MAX_LINE]), []);
        assert!(parser.line.len() <= MAX_LINE);
    }
    assert_eq!(parser.read(b"\nListening for Jobs\n"), [RunnerProgress::Listening]);
    let flood = "Listening for Jobs\n".repeat(1000);
    assert_eq!(parser.read(flood.as_bytes()).len(), MAX_OF_A_KIND - 1);
    let flood = "Running job: a\nJob a completed with result: Failed\n".repeat(1000);
    assert_eq!(parser.read(flood.as_bytes()).len(), MAX_OF_A_KIND);
}

#[test]
fn every_status_is_decoded() {
    assert_eq!(RunnerExit::from_status(0), RunnerExit::Done);
    assert_eq!(RunnerExit::from_status(7), RunnerExit::VersionDeprecated);
    assert_eq!(RunnerExit::from_status(102), RunnerExit::Job(RunnerResult::Failed));
    assert_eq!(RunnerExit::from_status(105), RunnerExit::Job(RunnerResult::Abandoned));
    for unknown in [8, 99, 106, 255] {
        assert_eq!(RunnerExit::from_status(unknown), RunnerExit::Unknown(unknown));
        assert!(!RunnerExit::from_status(unknown).is_regular());
    }
}

#[test]
fn the_outcome_follows_from_status_and_observations() {
    use RunnerOutcome::{Completed, Idle, Interrupted, Lost, Refused, TakenBack};
    let observed =
        |running, completed, interrupted| RunnerObservations { running, completed, interrupted };
    let (idle, busy) = (observed(false, None, false), observed(true, None, false));
    let interrupted = |running| observed(running, None, true);
    let done = observed(true, Some(RunnerResult::Succeeded), false);
    for (status, observed, expected) in [
        (0, idle, Idle),
        (1, idle, Refused(RunnerExit::Terminal)),
        (2, idle, Refused(RunnerExit::Retryable)),
        (3, idle, Refused(RunnerExit::Updating)),
        (4, idle, Refused(RunnerExit::Updating)),
        (5, idle, Refused(RunnerExit::SessionConflict)),
        (6, idle, Refused(RunnerExit::Refreshed)),
        (7, idle, Refused(RunnerExit::VersionDeprecated)),
        (143, idle, Refused(RunnerExit::Unknown(143))),
        // GitHub took the job back before it began, or stopped renewing it.
        (0, busy, TakenBack),
        (1, busy, Lost(RunnerExit::Terminal)),
        (2, busy, Lost(RunnerExit::Retryable)),
        (137, busy, Lost(RunnerExit::Unknown(137))),
        (143, busy, Lost(RunnerExit::Unknown(143))),
        // The reported result takes precedence over the exit status.
        (0, done, Completed(RunnerResult::Succeeded)),
        (2, done, Completed(RunnerResult::Succeeded)),
        (100, busy, Completed(RunnerResult::Succeeded)),
        (102, busy, Completed(RunnerResult::Failed)),
        (103, busy, Completed(RunnerResult::Canceled)),
        (105, busy, Completed(RunnerResult::Abandoned)),
        // .NET 8 and .NET 10 after a signal from Mayfly.
        (0, interrupted(false), Idle),
        (130, interrupted(false), Idle),
        (143, interrupted(false), Idle),
        (0, interrupted(true), Interrupted),
        (130, interrupted(true), Interrupted),
        (143, interrupted(true), Interrupted),
        (137, interrupted(true), Lost(RunnerExit::Unknown(137))),
        (1, interrupted(true), Lost(RunnerExit::Terminal)),
    ] {
        let outcome = RunnerOutcome::new(status, observed);
        assert_eq!(outcome, expected, "{status} {observed:?}");
        let well = matches!(outcome, Completed(RunnerResult::Succeeded));
        let reported = observed.completed == Some(RunnerResult::Succeeded) || status == 100;
        assert_eq!(well, reported, "only a reported result is a success: {status} {observed:?}");
        // After an outage or a refusal, the next registration is always delayed.
        let refused = matches!(outcome, Refused(_) | Lost(_));
        assert_eq!(outcome.needs_backoff(), refused);
    }
}

/// Generates lines that are progress, similar to it, or random.
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
    /// The chunks' sizes make no difference.
    #[test]
    fn chunk_sizes_make_no_difference(
        words in prop::collection::vec(line(), 0..40),
        cuts in prop::collection::vec(1_usize..30, 1..40),
    ) {
        let text = words.concat();
        let (mut parser, mut found) = (ProgressParser::default(), Vec::new());
        let mut rest = text.as_slice();
        for cut in cuts.iter().cycle() {
            let (piece, more) = rest.split_at((*cut).min(rest.len()));
            found.extend(parser.read(piece));
            rest = more;
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(found, all(&text));
    }

    /// Progress parsed from any bytes is bounded and safe to show.
    #[test]
    fn any_bytes_are_parsed_safely(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        for progress in all(&bytes) {
            let shown = match progress {
                RunnerProgress::Running { job } | RunnerProgress::Completed { job, .. } => job,
                RunnerProgress::Connected
                | RunnerProgress::Listening
                | RunnerProgress::Retrying => continue,
            };
            prop_assert!(shown.len() <= 3 * MAX_LINE && !shown.chars().any(char::is_control));
        }
    }
}

#[test]
fn the_server_of_a_configuration_is_found_or_not() {
    let encode = |text: &str| BASE64.encode(text.as_bytes());
    let config = |runner: &str| {
        let files = serde_json::json!({ ".runner": encode(runner), ".credentials": encode("{}") });
        SecretString::from(encode(&files.to_string()))
    };
    let url = |config: SecretString| github_url(&config);
    let ghes = r#"{"AgentId": "7", "GitHubUrl": "https://git.example.com/octo"}"#;
    assert_eq!(url(config(ghes)).as_deref(), Some("https://git.example.com/octo"));
    for wrong in ["", "{}", r#"{"GitHubUrl": 7}"#] {
        assert_eq!(url(config(wrong)), None, "{wrong}");
    }
    for wrong in [String::new(), "no base64".to_owned(), encode("[1]"), encode("{}")] {
        assert_eq!(url(wrong.into()), None);
    }
}
