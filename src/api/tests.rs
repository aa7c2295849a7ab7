//! Tests of server and client, with a fake event loop behind the server.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::client::{ApiClient, ClientError};
use super::types::*;
use super::webhook::{self, WebhookDelivery};
use super::{Call, JobLog, call, server};
use mayfly_failure::{Code, Failure};

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn job(id: JobId, state: JobState) -> JobView {
    JobView {
        id,
        source: JobSource::Local,
        pool: Some("ci".into()),
        state,
        name: "true".into(),
        repository: None,
        github_id: None,
        url: None,
        microvm: None,
        queued: Time(1_000),
        started: None,
        ended: None,
        exit_code: None,
        result: None,
        cause: None,
        warning: None,
    }
}

fn submission() -> Submission {
    Submission {
        pool: "ci".into(),
        command: vec!["make".into(), "test".into()],
        environment: [("A".to_owned(), "b".to_owned())].into(),
        timeout_ms: Some(5_000),
        working_directory: None,
        user: None,
    }
}

fn unexpected(call: &Call) -> ! {
    panic!("unexpected {call:?}")
}

/// Runs `client` against a server whose calls `script` handles.
fn with_server<F: Future>(script: impl Fn(Call), client: impl FnOnce(ApiClient, PathBuf) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    // Longer than `sun_path`.
    let long = directory.path().join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let socket = long.join("api.sock");
    let work = async {
        let (calls, mut received) = mpsc::channel(call::CAPACITY);
        let stop = CancellationToken::new();
        let (listener, _file) = server::bind(&socket, 0o600).unwrap();
        let (_, changes) = tokio::sync::watch::channel(0);
        let pages = super::status::Pages::new(calls.clone(), changes, None, stop.clone());
        let serving = server::serve(listener, calls, pages, stop.clone());
        let respond = async {
            while let Some(call) = received.recv().await {
                script(call);
            }
        };
        let request = async {
            client(ApiClient::new(&socket), long.clone()).await;
            stop.cancel();
        };
        tokio::join!(serving, respond, request);
    };
    runtime.block_on(async { tokio::time::timeout(TEST_TIMEOUT, work).await.unwrap() });
}

#[test]
fn a_submission_arrives_as_it_was_sent_and_its_job_comes_back() {
    let script = |call| match call {
        Call::Submit { submission: sent, responder } => {
            assert_eq!(sent, submission());
            responder.send(Ok(job(7, JobState::Queued))).unwrap();
        }
        other => unexpected(&other),
    };
    with_server(script, async |client, _| {
        assert_eq!(client.submit(&submission()).await.unwrap(), job(7, JobState::Queued));
    });
}

#[test]
fn a_filter_arrives_and_a_list_comes_back() {
    let script = |call| match call {
        Call::Jobs { filter, responder } => {
            assert_eq!(filter.state, Some(JobState::Running));
            assert_eq!((filter.pool.as_deref(), filter.limit()), (Some("ci"), 3));
            responder.send(Ok(vec![job(2, JobState::Running)])).unwrap();
        }
        other => unexpected(&other),
    };
    with_server(script, async |client, _| {
        let filter =
            JobFilter { state: Some(JobState::Running), pool: Some("ci".into()), limit: Some(3) };
        assert_eq!(client.jobs(&filter).await.unwrap().len(), 1);
    });
}

#[test]
fn a_refusal_comes_back_with_its_hint_and_code() {
    let script = |call| match call {
        Call::Cancel { job: 3, user, responder } => {
            assert_eq!(user, Some(nix::unistd::getuid().as_raw()));
            let error = ApiError::new(ApiErrorKind::Conflict, "job 3 is over").hint("too late");
            responder.send(Err(error)).unwrap();
        }
        Call::Explain { responder, .. } => {
            responder.send(Err(ApiError::new(ApiErrorKind::NotFound, "no job 4"))).unwrap();
        }
        other => unexpected(&other),
    };
    with_server(script, async |client, _| {
        let error = client.cancel(3).await.unwrap_err();
        assert_eq!(error.to_string(), "job 3 is over");
        assert_eq!(error.hint().as_deref(), Some("too late"));
        assert_eq!(client.explain(4).await.unwrap_err().code(), Code::NotFound);
    });
}

#[test]
fn a_loop_that_drops_a_call_is_reported_as_shutting_down() {
    with_server(drop, async |client, _| {
        let error = client.status().await.unwrap_err();
        assert_eq!(error.code(), Code::Unavailable);
        assert!(error.to_string().contains("shutting down"), "{error}");
    });
}

#[test]
fn a_job_without_a_command_never_reaches_the_loop() {
    with_server(
        |call| unexpected(&call),
        async |client, _| {
            for command in [vec![], vec![String::new()], vec!["a\0b".into()]] {
                let submission = Submission { command, ..submission() };
                let error = client.submit(&submission).await.unwrap_err();
                assert_eq!(error.code(), Code::Usage, "{error}");
            }
            let command = vec!["x".repeat(2 << 20)];
            let error = client.submit(&Submission { command, ..submission() }).await.unwrap_err();
            // The server may hang up while the client still sends.
            assert!(
                matches!(error, ClientError::Refused { .. } | ClientError::Connection(_)),
                "{error}"
            );
        },
    );
}

#[test]
fn a_log_is_followed_from_before_its_file_exists_to_its_end() {
    let calls = std::cell::Cell::new(0);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output.log");
    let script = |call| match call {
        Call::Log { job: 1, responder } => {
            let round = calls.replace(calls.get() + 1);
            match round {
                0 => {}
                1 => std::fs::write(&path, "one ").unwrap(),
                2 => std::fs::write(&path, "one two ").unwrap(),
                _ => std::fs::write(&path, "one two three").unwrap(),
            }
            let known = (round > 0).then(|| path.clone());
            responder.send(Ok(JobLog { path: known, growing: round < 3 })).unwrap();
        }
        other => unexpected(&other),
    };
    with_server(script, async |client, _| {
        let mut text = Vec::new();
        let sink = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        client.log(1, true, sink).await.unwrap();
        assert_eq!(text, b"one two three");
    });
}

#[test]
fn a_log_that_is_not_followed_ends_where_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("output.log");
    let content = vec![b'x'; 300 << 10];
    std::fs::write(&path, &content).unwrap();
    let script = |call| match call {
        Call::Log { responder, .. } => {
            responder.send(Ok(JobLog { path: Some(path.clone()), growing: true })).unwrap();
        }
        other => unexpected(&other),
    };
    with_server(script, async |client, _| {
        let mut text = Vec::new();
        let sink = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        client.log(1, false, sink).await.unwrap();
        assert!(text == content);
    });
}

#[test]
fn the_socket_has_its_mode_and_nothing_else_is_left_beside_it() {
    with_server(drop, async |_, directory| {
        use std::os::unix::fs::PermissionsExt;
        let entries: Vec<_> = std::fs::read_dir(directory).unwrap().map(Result::unwrap).collect();
        // The socket and its lock.
        assert_eq!(entries.len(), 2);
        for entry in entries {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    });
}

#[tokio::test]
async fn a_socket_belongs_to_one_daemon_and_only_its_owner_removes_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("api.sock");
    let (first, file) = server::bind(&path, 0o600).unwrap();
    let second = server::bind(&path, 0o600).unwrap_err();
    assert_eq!(second.kind(), std::io::ErrorKind::AddrInUse, "{second}");
    assert!(second.to_string().contains("host.socket"), "{second}");
    // A dead daemon leaves its socket, not its lock.
    drop(first);
    drop(file);
    assert!(!path.exists());
    let (_third, file) = server::bind(&path, 0o600).unwrap();
    // Another process's socket at the same path stays.
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    drop(file);
    assert!(path.exists());
    // A socket in use without a lock is left alone, and so is a file.
    assert!(server::bind(&path, 0o600).is_err());
    drop(other);
    let (_fourth, file) = server::bind(&path, 0o600).unwrap();
    drop(file);
    // An error other than "connection refused" does not make a socket unused.
    let other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    assert!(server::bind(&path, 0o600).is_err());
    drop(other);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    assert!(server::bind(&path, 0o600).is_err());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "a file");
}

#[test]
fn without_a_daemon_the_hint_is_to_start_one() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    for socket in [directory.path().join("api.sock"), "/nowhere/api.sock".into()] {
        let error = runtime.block_on(ApiClient::new(&socket).pools()).unwrap_err();
        assert!(error.to_string().contains("api.sock"), "{error}");
        assert!(error.hint().unwrap().contains("mayfly serve"));
    }
}

/// Sends a request to a server on TCP and returns the first line of the response.
async fn first_line(listener: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(listener).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut response = Vec::new();
    let mut piece = [0; 1024];
    while !response.contains(&b'\n') {
        let length = stream.read(&mut piece).await.unwrap();
        assert!(length > 0, "no response");
        response.extend_from_slice(&piece[..length]);
    }
    String::from_utf8_lossy(&response).lines().next().unwrap().to_owned()
}

async fn tcp() -> (TcpListener, std::net::SocketAddr) {
    let listener = server::bind_tcp("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn over_tcp_the_token_is_required_and_nothing_can_be_changed() {
    let (listener, address) = tcp().await;
    let (calls, mut received) = mpsc::channel(call::CAPACITY);
    let stop = CancellationToken::new();
    let serving = server::serve_tcp(listener, "right".into(), calls, stop.clone());
    let respond = async {
        while let Some(call) = received.recv().await {
            match call {
                Call::Pools { responder } => responder.send(Ok(vec![])).unwrap(),
                other => unexpected(&other),
            }
        }
    };
    let request = async {
        for (method, path, token, status) in [
            ("GET", "/v1/pools", "Bearer right", "200"),
            ("GET", "/v1/pools", "Bearer wrong", "401"),
            ("GET", "/v1/pools", "right", "401"),
            ("GET", "/nothing", "Bearer wrong", "401"),
            ("GET", "/nothing", "Bearer right", "404"),
            ("POST", "/v1/jobs", "Bearer right", "405"),
            ("POST", "/v1/drain", "Bearer right", "404"),
            ("POST", "/v1/jobs/1/cancel", "Bearer right", "404"),
        ] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: {token}\r\n\
                 content-length: 0\r\n\r\n"
            );
            let line = first_line(address, request.as_bytes()).await;
            assert!(line.contains(status), "{method} {path} {token}: {line}");
        }
        stop.cancel();
    };
    let all = async { tokio::join!(serving, respond, request) };
    tokio::time::timeout(TEST_TIMEOUT, all).await.unwrap();
}

fn delivery(kind: &str, signature: &str, length: usize, body: &str) -> Vec<u8> {
    format!(
        "POST /webhook HTTP/1.1\r\nhost: x\r\nx-github-delivery: d-1\r\n\
         x-github-event: workflow_job\r\n{kind}{signature}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Returns the status of a webhook request for which the daemon reports `outcome`, and the body
/// that the daemon received.
async fn webhook(
    request: &[u8],
    outcome: Option<webhook::DeliveryOutcome>,
) -> (String, Option<Vec<u8>>) {
    let (listener, address) = tcp().await;
    let (deliveries, mut taken) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let verify: webhook::Verify =
        Arc::new(|body, signature| signature == format!("sha256={}", body.len()));
    let serving = webhook::serve(listener, verify, deliveries, stop.clone());
    let daemon = async {
        let delivery: Option<WebhookDelivery> = taken.recv().await;
        delivery.map(|delivery| {
            if let Some(outcome) = outcome {
                delivery.responder.send(outcome).unwrap();
            }
            assert_eq!((&*delivery.id, &*delivery.event), ("d-1", "workflow_job"));
            delivery.body.to_vec()
        })
    };
    let request = async {
        let line = first_line(address, request).await;
        stop.cancel();
        line
    };
    let all = async { tokio::join!(serving, daemon, request) };
    let ((), seen, line) = tokio::time::timeout(TEST_TIMEOUT, all).await.unwrap();
    (line.split(' ').nth(1).unwrap().to_owned(), seen)
}

#[tokio::test]
async fn deliveries_are_taken_checked_and_bounded() {
    let good = "x-hub-signature-256: sha256=2\r\n";
    let wrong = "x-hub-signature-256: sha256=3\r\n";
    for (request, status) in [
        (delivery("", wrong, 2, "{}"), "401"),
        (delivery("", "", 2, "{}"), "401"),
        (delivery("", good, 26 << 20, ""), "413"),
        (b"POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n".to_vec(), "400"),
        (b"GET /webhook HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "405"),
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "404"),
    ] {
        let (found, seen) = webhook(&request, None).await;
        assert_eq!(found, status, "{}", String::from_utf8_lossy(&request));
        assert_eq!(seen, None);
    }
}

#[tokio::test]
async fn the_response_reports_the_outcome_of_a_delivery() {
    let request = delivery("", "x-hub-signature-256: sha256=2\r\n", 2, "{}");
    for (outcome, status) in [
        (Some(webhook::DeliveryOutcome::Accepted), "202"),
        (Some(webhook::DeliveryOutcome::Malformed("not JSON".to_owned())), "400"),
        // The daemon ended before the effect was recorded.
        (None, "503"),
    ] {
        let (found, seen) = webhook(&request, outcome).await;
        assert_eq!((&*found, seen.as_deref()), (status, Some(&b"{}"[..])));
    }
}

#[tokio::test]
async fn what_was_not_recorded_is_not_acknowledged() {
    let (listener, address) = tcp().await;
    let (deliveries, taken) = mpsc::channel(1);
    let stop = CancellationToken::new();
    let verify: webhook::Verify = Arc::new(|_, _| true);
    let serving = webhook::serve(listener, verify, deliveries, stop.clone());
    let request = async {
        let request = delivery("", "x-hub-signature-256: x\r\n", 2, "{}");
        let mut first = TcpStream::connect(address).await.unwrap();
        first.write_all(&request).await.unwrap();
        // The first one is not recorded yet.
        let mut piece = [0; 16];
        let early = tokio::time::timeout(Duration::from_millis(300), first.read(&mut piece)).await;
        assert!(early.is_err(), "answered before it was recorded");
        let line = first_line(address, &request).await;
        assert!(line.contains("429"), "{line}");
        drop(taken);
        first.read_exact(&mut piece).await.unwrap();
        assert!(piece.starts_with(b"HTTP/1.1 503"), "{piece:?}");
        stop.cancel();
    };
    let all = async { tokio::join!(serving, request) };
    tokio::time::timeout(TEST_TIMEOUT, all).await.unwrap();
}

#[tokio::test]
async fn a_delivery_is_accepted_in_either_encoding_and_rejected_in_any_other() {
    const JSON: &str = r#"{"a":"1 +&=%\u00e4"}"#;
    let form: String =
        form_urlencoded::Serializer::new(String::new()).append_pair("payload", JSON).finish();
    let more = format!("x=y&{form}&z");
    let twice = format!("{form}&{form}");
    let form_kind = "application/x-www-form-urlencoded";
    for (kind, body, status) in [
        (None, JSON, "202"),
        (Some("application/json"), JSON, "202"),
        (Some("Application/JSON; charset=utf-8"), JSON, "202"),
        (Some("application/vnd.github+json"), JSON, "202"),
        (Some(form_kind), form.as_str(), "202"),
        (Some("Application/X-WWW-Form-UrlEncoded ;charset=UTF-8"), form.as_str(), "202"),
        (Some(form_kind), more.as_str(), "202"),
        (Some(form_kind), twice.as_str(), "400"),
        (Some(form_kind), JSON, "400"),
        (Some(form_kind), "", "400"),
        (Some("text/plain"), JSON, "415"),
        (Some("multipart/form-data; boundary=x"), JSON, "415"),
        (Some(""), JSON, "415"),
    ] {
        let kind_line = kind.map(|kind| format!("content-type: {kind}\r\n")).unwrap_or_default();
        let signature = format!("x-hub-signature-256: sha256={}\r\n", body.len());
        let request = delivery(&kind_line, &signature, body.len(), body);
        let (found, seen) = webhook(&request, Some(webhook::DeliveryOutcome::Accepted)).await;
        assert_eq!(found, status, "{kind:?} {body}");
        let expected = (status == "202").then(|| JSON.as_bytes().to_vec());
        assert_eq!(seen, expected, "{kind:?} {body}");
    }
}

#[test]
fn times_are_rfc_3339_and_survive_a_round_trip() {
    let time = Time(1_700_000_000_123);
    let text = serde_json::to_string(&time).unwrap();
    assert_eq!(text, "\"2023-11-14T22:13:20.123Z\"");
    assert_eq!(serde_json::from_str::<Time>(&text).unwrap(), time);
    assert_eq!(Time(u64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
    assert_eq!(Time(5).since(Time(9)), Duration::ZERO);
}
