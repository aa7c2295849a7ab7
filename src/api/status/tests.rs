//! Tests of the pages over TCP, with a fake event loop; and of hostile texts in pages.

use std::net::SocketAddr;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::call;
use crate::types::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// A job without any details.
pub(super) fn some_job() -> JobView {
    overview("").active[0].job.clone()
}

/// An explanation in which every text is `content`.
fn explanation(content: &str, id: JobId, state: JobState) -> Explanation {
    let text = || content.to_owned();
    let blocker = Some(BlockerView { code: text(), message: text(), until: Some(Time(99_000)) });
    Explanation {
        job: JobView {
            id,
            source: JobSource::Github,
            pool: Some(text()),
            state,
            name: text(),
            repository: Some(text()),
            github_id: Some(1),
            url: Some("https://github.com/octo/cat/actions/runs/2/job/1".to_owned()),
            microvm: Some(text()),
            queued: Time(1_000),
            started: Some(Time(2_000)),
            ended: Some(Time(3_000)),
            exit_code: Some(7),
            result: Some(text()),
            cause: Some(text()),
            warning: Some(text()),
        },
        phases: vec![
            PhaseView {
                phase: "queued".into(),
                at: Time(1_000),
                lasted_ms: Some(500),
                detail: None,
            },
            PhaseView { phase: text(), at: Time(1_500), lasted_ms: None, detail: Some(text()) },
        ],
        blocker,
        black_box: Some(text()),
        egress: Some(EgressView {
            allowed: 1,
            refused: 2,
            would_refuse: 3,
            up: 4,
            down: 5,
            omitted: 6,
            unrecorded: 7,
            destinations: vec![DestinationView {
                host: text(),
                port: 443,
                verdict: text(),
                cause: Some(text()),
                connections: 2,
                up: 3,
                down: 4,
            }],
        }),
    }
}

/// An overview in which every text is `content`.
fn overview(content: &str) -> Overview {
    let text = || content.to_owned();
    let blocker = || Some(BlockerView { code: text(), message: text(), until: Some(Time(99_000)) });
    let explanation = |id, state| explanation(content, id, state);
    Overview {
        at: Time(9_000),
        status: DaemonStatus {
            version: text(),
            pid: 1,
            started: Time(0),
            draining: false,
            settings: Some(text()),
            github: Some(text()),
            waiting: 1,
            running: 1,
            microvms: 1,
        },
        readiness: Readiness {
            ready: false,
            checks: vec![ReadinessCheck { name: text(), ok: false, message: text() }],
        },
        budget: BudgetView { cpus_used: 1, cpus: 2, memory_used: 1 << 30, memory: 2 << 30 },
        pools: vec![PoolView {
            name: text(),
            labels: vec![text()],
            image: text(),
            trigger: text(),
            min_idle: 1,
            max: 2,
            booting: 0,
            warm: 0,
            registered: 0,
            busy: 1,
            ending: 0,
            waiting: 1,
            blocker: blocker(),
        }],
        waiting: vec![explanation(3, JobState::Queued)],
        active: vec![explanation(2, JobState::Running)],
        ended: vec![explanation(1, JobState::Finished), explanation(0, JobState::Failed)],
        microvms: vec![MicrovmView {
            id: text(),
            pool: text(),
            stage: text(),
            since: Time(1),
            runner: Some(text()),
            job: None,
        }],
    }
}

/// Renders all pages of an overview.
fn pages(overview: &Overview) -> String {
    let explanations = [&overview.waiting, &overview.active, &overview.ended];
    let jobs =
        explanations.into_iter().flatten().map(|explanation| job::render(explanation, Time(9_000)));
    let error = ApiError::new(ApiErrorKind::Internal, overview.status.version.clone());
    let error = error.hint(overview.status.version.clone());
    jobs.chain([page::render(overview, true), page::error_page(&error)]).collect()
}

/// Returns the page without its text: tags with the names of their attributes, as a browser's
/// tokenizer sees them.
fn skeleton(html: &str) -> Vec<String> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let (mut tag, mut quoted, mut end) = (String::new(), false, rest.len());
        for (at, character) in rest.char_indices() {
            match character {
                '"' => quoted = !quoted,
                '>' if !quoted => {
                    end = at;
                    break;
                }
                _ if quoted => {}
                _ => tag.push(character),
            }
        }
        tags.push(tag);
        rest = &rest[end..];
    }
    tags
}

fn hostile() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("<script>alert(1)</script>".to_owned()),
        Just("\" onload=\"alert(1)".to_owned()),
        Just("'><img src=x onerror=alert(1)>".to_owned()),
        Just("</table></section>".to_owned()),
        Just("&lt;b&gt;&#x3c;".to_owned()),
        Just("]]>--><!--".to_owned()),
        Just("javascript:alert(1)".to_owned()),
        Just("\r\n\r\ndata: {}\n\n".to_owned()),
        Just("\u{202e}\u{0}\u{1b}[2J".to_owned()),
        any::<String>(),
    ];
    prop::collection::vec(piece, 1..5).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the texts are, the page has the same elements with the same attributes.
    #[test]
    fn no_text_becomes_markup(content in hostile()) {
        let plain = pages(&overview("plain"));
        prop_assert_eq!(skeleton(&pages(&overview(&content))), skeleton(&plain));
    }
}

#[test]
fn a_page_is_bounded_whatever_the_texts_are() {
    let page = page::render(&overview(&"<".repeat(1 << 20)), true);
    assert!(page.len() < 256 << 10, "{} bytes", page.len());
}

#[test]
fn nothing_on_a_page_is_inline_or_from_elsewhere() {
    let html = pages(&overview("plain"));
    for (what, tag) in skeleton(&html).iter().map(|tag| (tag.split(' ').next().unwrap(), tag)) {
        assert!(what != "style" && !tag.contains(" style="), "{tag}");
        assert!(!tag.split(' ').any(|word| word.starts_with("on")), "{tag}");
    }
    for address in ["src=\"", "href=\""] {
        for (at, _) in html.match_indices(address) {
            // Except links: the job's page at GitHub.
            let target = &html[at + address.len()..];
            let elsewhere = address == "href=\"" && target.starts_with("https://github.com/");
            assert!(target.starts_with('/') || elsewhere, "{}", &html[at..at + 40]);
        }
    }
    assert_eq!(html.matches("<script").count(), html.matches("<script src=\"/live.js\"").count());
}

/// The server under test.
struct Server {
    address: SocketAddr,
    changes: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Server {
    /// Sends a request and returns the connection.
    async fn send(&self, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Returns the whole response.
    async fn get_with(&self, path: &str, headers: &str) -> String {
        let mut response = String::new();
        self.send(path, headers).await.read_to_string(&mut response).await.unwrap();
        response
    }

    async fn get(&self, path: &str) -> String {
        self.get_with(path, "host: 127.0.0.1\r\n").await
    }

    async fn status(&self, path: &str, headers: &str) -> String {
        self.get_with(path, headers).await.split(' ').nth(1).unwrap().to_owned()
    }
}

/// Reads until `text` has arrived.
async fn until(stream: &mut TcpStream, text: &str) -> String {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&read).contains(text) {
        let length = stream.read(&mut piece).await.unwrap();
        assert!(length > 0, "no {text:?} in {}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..length]);
    }
    String::from_utf8(read).unwrap()
}

/// Runs `client` against a server whose calls `script` handles.
async fn with_server(
    access: Access,
    mut script: impl FnMut(Call),
    client: impl AsyncFnOnce(Server),
) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (calls, mut received) = mpsc::channel(call::CAPACITY);
    let (changes, changed) = watch::channel(0);
    let stop = CancellationToken::new();
    let metrics: Metrics = Arc::new(|| "mayfly_up 1\n".to_owned());
    let pages = Pages::new(calls, changed, Some(metrics), stop.clone());
    let serving = serve(listener, access, pages);
    let respond = async {
        while let Some(call) = received.recv().await {
            script(call);
        }
    };
    let request_all = async {
        client(Server { address, changes, stop: stop.clone() }).await;
        stop.cancel();
    };
    let all = async { tokio::join!(serving, respond, request_all) };
    tokio::time::timeout(TEST_TIMEOUT, all).await.unwrap();
}

/// Responds like a daemon whose jobs all have this name.
fn with_jobs_named(name: &str) -> impl FnMut(Call) + use<> {
    let mut overview = overview(name);
    move |call| match call {
        Call::Overview { responder } => {
            overview.status.pid += 1;
            responder.send(Ok(Box::new(overview.clone()))).unwrap();
        }
        Call::Explain { job: 7, responder } => {
            responder.send(Ok(overview.waiting[0].clone())).unwrap();
        }
        Call::Explain { job, responder } => {
            let error = ApiError::new(ApiErrorKind::NotFound, format!("unknown job {job}"));
            responder.send(Err(error)).unwrap();
        }
        Call::Ready { responder } => responder.send(Ok(overview.readiness.clone())).unwrap(),
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn each_path_has_its_response_and_no_page_may_run_its_content() {
    with_server(Access::Host, with_jobs_named("<hello>"), async |server| {
        for (path, status, expected) in [
            ("/", "200", "&lt;hello&gt;"),
            ("/jobs/7", "200", "&lt;hello&gt;"),
            ("/jobs/8", "404", "unknown job 8"),
            ("/jobs/x", "400", "Cannot parse"),
            ("/style.css", "200", "prefers-color-scheme"),
            ("/live.js", "200", "EventSource"),
            ("/icon.svg", "200", "<svg"),
            ("/metrics", "200", "mayfly_up 1"),
            ("/healthz", "200", "{\"healthy\":true}"),
            ("/readyz", "503", "\"ready\":false"),
            ("/v1/jobs", "404", "no such path"),
        ] {
            let response = server.get(path).await;
            assert_eq!(response.split(' ').nth(1), Some(status), "{path}: {response}");
            assert!(response.contains(expected), "{path}: {response}");
            if status == "200" {
                assert!(
                    response.contains("content-security-policy: default-src 'none'"),
                    "{response}"
                );
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_loop_that_does_not_respond_is_unhealthy_and_a_shutdown_is_reported() {
    let mut pending = Vec::new();
    with_server(
        Access::Host,
        move |call| pending.push(call),
        async |server| {
            let (health, readiness) = tokio::join!(server.get("/healthz"), server.get("/readyz"));
            for response in [health, readiness] {
                assert!(response.starts_with("HTTP/1.1 503"), "{response}");
                assert!(response.contains("did not respond within 2s"), "{response}");
            }
        },
    )
    .await;
    with_server(Access::Host, drop, async |server| {
        let response = server.get("/healthz").await;
        assert!(
            response.starts_with("HTTP/1.1 503") && response.contains("shutting down"),
            "{response}"
        );
        assert!(server.get("/").await.contains("shutting down"));
    })
    .await;
}

#[tokio::test]
async fn a_stream_sends_what_changes_and_ends_with_the_daemon() {
    with_server(Access::Host, with_jobs_named("first"), async |server| {
        let mut stream = server.send("/events", "host: 127.0.0.1\r\n").await;
        let first = until(&mut stream, "\n\n").await;
        for part in ["summary", "waiting", "active", "pools", "microvms", "ended"] {
            assert!(first.contains(&format!("\"{part}\":")), "{part} in {first}");
        }
        // Nothing differs: an empty update comes anyway.
        let heartbeat = until(&mut stream, "\n\n").await;
        assert!(heartbeat.contains("\"parts\":{}"), "{heartbeat}");
        let mut job = server.send("/events?job=7", "host: 127.0.0.1\r\n").await;
        assert!(until(&mut job, "\n\n").await.contains("\"job\":"));
        server.changes.send_modify(|count| *count += 1);
        until(&mut job, "\"parts\":{}").await;
        server.stop.cancel();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        job.read_to_string(&mut rest).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn streams_are_bounded_and_leave_room_for_others() {
    with_server(Access::Host, with_jobs_named("x"), async |server| {
        let mut streams = Vec::new();
        for _ in 0..events::STREAMS {
            let mut stream = server.send("/events", "host: 127.0.0.1\r\n").await;
            until(&mut stream, "\"parts\"").await;
            streams.push(stream);
        }
        let refused = server.get("/events").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert!(refused.contains("too many status pages are open"), "{refused}");
        assert!(server.get("/").await.starts_with("HTTP/1.1 200"));
        // A closed stream makes room.
        drop(streams.pop());
        loop {
            let mut stream = server.send("/events", "host: 127.0.0.1\r\n").await;
            let head = until(&mut stream, "\r\n").await;
            if head.starts_with("HTTP/1.1 200") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn concurrent_requests_share_one_call_to_the_daemon() {
    let (calls, mut received) = mpsc::channel(call::CAPACITY);
    let (changes, changed) = watch::channel(0);
    let pages = Pages::new(calls, changed, None, CancellationToken::new());
    let request_all = async {
        let all = futures_util::future::join_all((0..100).map(|_| pages.overview())).await;
        assert!(all.iter().all(Result::is_ok));
        let first = all[0].as_ref().unwrap().status.pid;
        assert_eq!(pages.overview().await.unwrap().status.pid, first);
        changes.send_modify(|count| *count += 1);
        assert_eq!(pages.overview().await.unwrap().status.pid, first + 1);
        tokio::time::sleep(CACHE_TIME).await;
        assert_eq!(pages.overview().await.unwrap().status.pid, first + 2);
    };
    let mut script = with_jobs_named("x");
    let respond = async {
        while let Some(call) = received.recv().await {
            script(call);
        }
    };
    tokio::select! {
        () = request_all => {}
        () = respond => unreachable!("the channel stays open"),
    }
}

#[tokio::test]
async fn without_a_token_only_this_host_is_served() {
    with_server(Access::Host, with_jobs_named("x"), async |server| {
        for (host, status) in
            [("127.0.0.1", "200"), ("localhost:9180", "200"), ("evil.example", "401")]
        {
            assert_eq!(server.status("/", &format!("host: {host}\r\n")).await, status, "{host}");
        }
    })
    .await;
    with_server(Access::Anyone, with_jobs_named("x"), async |server| {
        assert_eq!(server.status("/", "host: ci.example\r\n").await, "200");
    })
    .await;
}

#[tokio::test]
async fn with_a_token_nothing_is_served_without_it() {
    let access = Access::token("0123456789abcdef".into());
    with_server(access, with_jobs_named("x"), async |server| {
        let host = "host: ci.example\r\n";
        for (path, headers, status) in [
            ("/", "", "401"),
            ("/healthz", "", "401"),
            ("/style.css", "", "401"),
            ("/", "authorization: Bearer wrong\r\n", "401"),
            ("/", "authorization: Bearer 0123456789abcdef\r\n", "200"),
            ("/?token=wrong", "", "401"),
            ("/healthz?token=0123456789abcdef", "", "200"),
            ("/events?token=0123456789abcdef&job=x", "", "400"),
            ("/", "cookie: mayfly_status=0123456789abcdef\r\n", "401"),
        ] {
            let found = server.status(path, &format!("{host}{headers}")).await;
            assert_eq!(found, status, "{path} {headers}");
        }
        // A browser gets a cookie instead, which is not the token.
        let headers = format!("{host}accept: text/html\r\n");
        let response = server.get_with("//jobs/7?token=0123456789abcdef", &headers).await;
        assert!(response.starts_with("HTTP/1.1 303"), "{response}");
        assert!(response.contains("location: /jobs/7\r\n"), "{response}");
        assert!(!response.contains("0123456789abcdef"), "{response}");
        let cookie = response.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
        assert_eq!(server.status("/", &format!("{host}cookie: {cookie}\r\n")).await, "200");
    })
    .await;
}
