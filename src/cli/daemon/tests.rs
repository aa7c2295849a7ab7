//! The commands against a server with scripted responses.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{DaemonCommand, run};
use mayfly_api::status::Pages;
use mayfly_api::types::{ApiError, ApiErrorKind, DrainRequest, JobState, JobView, Submission};
use mayfly_api::{Call, JobLog, call, server};
use mayfly_config::ApiConfig;

#[derive(Debug, Parser)]
struct Line {
    #[command(subcommand)]
    command: DaemonCommand,
}

fn job(state: JobState, exit_code: Option<u8>) -> JobView {
    serde_json::from_value(json!({
        "id": 7, "source": "local", "pool": "ci", "state": state, "name": "make",
        "queued": "2026-01-01T00:00:00Z", "exit_code": exit_code,
    }))
    .unwrap()
}

/// Runs a command line against a new server.
fn with_daemon(line: &[&str], script: impl Fn(Call) + Send) -> Result<ExitCode, String> {
    let directory = tempfile::tempdir().unwrap();
    let state: &Path = directory.path();
    let command = Line::try_parse_from([&["mayfly"], line].concat()).unwrap().command;
    let (ready, is_ready) = std::sync::mpsc::channel();
    let stop = CancellationToken::new();
    std::thread::scope(|scope| {
        let ending = stop.clone();
        let daemon = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let (listener, _file) =
                    server::bind(&state.join(ApiConfig::DEFAULT_SOCKET), 0o600).unwrap();
                ready.send(()).unwrap();
                let (calls, mut requests) = mpsc::channel(call::CAPACITY);
                let responses = async {
                    while let Some(call) = requests.recv().await {
                        script(call);
                    }
                };
                let (_, changes) = tokio::sync::watch::channel(0);
                let pages = Pages::new(calls.clone(), changes, None, ending.clone());
                tokio::join!(server::serve(listener, calls, pages, ending), responses);
            });
        });
        is_ready.recv().unwrap();
        let result = run(&command, Some(state)).map_err(|error| format!("{error:?}"));
        stop.cancel();
        daemon.join().unwrap();
        result
    })
}

fn unexpected(call: &Call) -> ! {
    panic!("unexpected {call:?}")
}

#[test]
fn waiting_for_a_submitted_job_ends_with_its_exit_code() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let line = ["submit", "--pool", "ci", "-e", "A=b", "--timeout", "2s", "--wait", "--", "make"];
    let code = with_daemon(&line, |call| match call {
        Call::Submit { submission, responder } => {
            let expected = Submission {
                pool: "ci".into(),
                command: vec!["make".into()],
                environment: [("A".to_owned(), "b".to_owned())].into(),
                timeout_ms: Some(2_000),
                working_directory: None,
                user: None,
            };
            assert_eq!(submission, expected);
            responder.send(Ok(job(JobState::Queued, None))).unwrap();
        }
        Call::Log { job: 7, responder } => {
            let log = JobLog { path: Some(log.path().to_owned()), growing: false };
            responder.send(Ok(log)).unwrap();
        }
        Call::Job { job: 7, responder } => {
            responder.send(Ok(job(JobState::Finished, Some(42)))).unwrap();
        }
        other => unexpected(&other),
    });
    assert_eq!(code, Ok(ExitCode::from(42)));
}

#[test]
fn each_command_makes_its_call() {
    let time = "2026-01-01T00:00:00Z";
    let script = |call| match call {
        Call::Jobs { filter, responder } => {
            assert_eq!((filter.state, filter.limit()), (Some(JobState::Running), 50));
            responder.send(Ok(vec![job(JobState::Running, None)])).unwrap();
        }
        Call::Explain { job: 7, responder } => {
            let story = json!({ "job": job(JobState::Queued, None), "phases": [
                { "phase": "queued", "at": time, "lasted_ms": 3 },
            ]});
            responder.send(Ok(serde_json::from_value(story).unwrap())).unwrap();
        }
        Call::Cancel { job: 7, responder, .. } => {
            responder.send(Ok(job(JobState::Cancelled, None))).unwrap();
        }
        Call::Pools { responder } => {
            let pools = json!([{
                "name": "ci", "labels": ["x"], "image": "base", "trigger": "none", "min_idle": 1,
                "max": 2, "booting": 0, "warm": 1, "registered": 0, "busy": 0, "ending": 0,
                "waiting": 1, "blocker": { "code": "max", "message": "the pool is at its max" },
            }]);
            responder.send(Ok(serde_json::from_value(pools).unwrap())).unwrap();
        }
        Call::Status { responder } => {
            let status = json!({
                "version": "1", "pid": 1, "started": time, "draining": false, "waiting": 0,
                "running": 0, "microvms": 0,
            });
            responder.send(Ok(serde_json::from_value(status).unwrap())).unwrap();
        }
        Call::Drain { request, responder, .. } => {
            let ending = DrainRequest { end_jobs: true, within_ms: Some(20_000) };
            assert!([DrainRequest::default(), ending].contains(&request), "{request:?}");
            let report = json!({ "running": 1, "queued": 0, "until": time });
            responder.send(Ok(serde_json::from_value(report).unwrap())).unwrap();
        }
        Call::Reload { responder } => {
            let report = json!({ "applied": ["a"], "needs_restart": ["b"], "warnings": ["c"] });
            responder.send(Ok(serde_json::from_value(report).unwrap())).unwrap();
        }
        other => unexpected(&other),
    };
    for line in [
        &["jobs", "--state", "running"][..],
        &["explain", "7"],
        &["cancel", "7"],
        &["pools"],
        &["status"],
        &["drain"],
        &["drain", "--end-jobs", "--within", "20s"],
        &["reload"],
    ] {
        assert_eq!(with_daemon(line, script), Ok(ExitCode::SUCCESS), "{line:?}");
        let json = [line, &["--json"]].concat();
        assert_eq!(with_daemon(&json, script), Ok(ExitCode::SUCCESS), "{json:?}");
    }
}

#[test]
fn errors_of_the_daemon_reach_the_user() {
    let error = with_daemon(&["logs", "9", "-f"], |call| match call {
        Call::Log { responder, .. } => {
            responder
                .send(Err(ApiError::new(ApiErrorKind::NotFound, "job 9 does not exist")))
                .unwrap();
        }
        other => unexpected(&other),
    });
    let error = error.unwrap_err();
    assert!(error.contains("job 9 does not exist") && error.contains("NotFound"), "{error}");
}

#[test]
fn an_unknown_state_is_rejected() {
    assert!(Line::try_parse_from(["mayfly", "jobs", "--state", "gone"]).is_err());
    assert!(Line::try_parse_from(["mayfly", "cancel", "x"]).is_err());
}
