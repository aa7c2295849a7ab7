//! The pages over a connection of their own, with a scripted loop behind them; and what becomes of
//! hostile texts.

use std::net::SocketAddr;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::api::call;
use crate::api::types::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// A job of which nothing is known.
pub(super) fn some_job() -> JobView {
    overview("").active[0].job.clone()
}

/// A job, and all that is told of it, in which every text is `said`.
fn story(said: &str, id: JobId, state: JobState) -> Explanation {
    let text = || said.to_owned();
    let blocker = Some(Blocker { code: text(), message: text(), until: Some(Time(99_000)) });
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

/// An overview in which every text is `said`.
fn overview(said: &str) -> Overview {
    let text = || said.to_owned();
    let blocker = || Some(Blocker { code: text(), message: text(), until: Some(Time(99_000)) });
    let story = |id, state| story(said, id, state);
    Overview {
        at: Time(9_000),
        status: Status {
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
            checks: vec![Check { name: text(), ok: false, message: text() }],
        },
        budget: Budget { cpus_used: 1, cpus: 2, memory_used: 1 << 30, memory: 2 << 30 },
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
        waiting: vec![story(3, JobState::Queued)],
        active: vec![story(2, JobState::Running)],
        ended: vec![story(1, JobState::Finished), story(0, JobState::Failed)],
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

/// All that can be seen of an overview, on all pages.
fn pages(overview: &Overview) -> String {
    let stories = [&overview.waiting, &overview.active, &overview.ended];
    let jobs = stories.into_iter().flatten().map(|story| job::whole(story, Time(9_000)));
    let problem = Problem::new(ProblemKind::Internal, overview.status.version.clone());
    let problem = problem.hint(overview.status.version.clone());
    jobs.chain([page::whole(overview, true), page::problem(&problem)]).collect()
}

/// The page without its text: tags with the names of their attributes, as a browser's tokenizer
/// would see them.
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

    /// Whatever anybody says, the page has the same elements with the same attributes.
    #[test]
    fn no_text_becomes_markup(said in hostile()) {
        let plain = pages(&overview("plain"));
        prop_assert_eq!(skeleton(&pages(&overview(&said))), skeleton(&plain));
    }
}

#[test]
fn a_page_is_bounded_whatever_is_said() {
    let page = page::whole(&overview(&"<".repeat(1 << 20)), true);
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
            // But for where a click leads to: the job's page at GitHub.
            let target = &html[at + address.len()..];
            let elsewhere = address == "href=\"" && target.starts_with("https://github.com/");
            assert!(target.starts_with('/') || elsewhere, "{}", &html[at..at + 40]);
        }
    }
    assert_eq!(html.matches("<script").count(), html.matches("<script src=\"/live.js\"").count());
}

/// What a test has of a server.
struct Server {
    address: SocketAddr,
    changes: watch::Sender<u64>,
    stop: CancellationToken,
}

impl Server {
    /// Sends a request; the connection is what is left to be read.
    async fn send(&self, path: &str, headers: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// A whole answer.
    async fn get_with(&self, path: &str, headers: &str) -> String {
        let mut answer = String::new();
        self.send(path, headers).await.read_to_string(&mut answer).await.unwrap();
        answer
    }

    async fn get(&self, path: &str) -> String {
        self.get_with(path, "host: 127.0.0.1\r\n").await
    }

    async fn status(&self, path: &str, headers: &str) -> String {
        self.get_with(path, headers).await.split(' ').nth(1).unwrap().to_owned()
    }
}

/// Reads until a text has come.
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

/// Runs a client against a server whose calls `script` answers.
async fn with_server(
    access: Access,
    mut script: impl FnMut(Call),
    client: impl AsyncFnOnce(Server),
) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (calls, mut asked) = mpsc::channel(call::CAPACITY);
    let (changes, changed) = watch::channel(0);
    let stop = CancellationToken::new();
    let metrics: Metrics = Arc::new(|| "mayfly_up 1\n".to_owned());
    let pages = Pages::new(calls, changed, Some(metrics), stop.clone());
    let serving = serve(listener, access, pages);
    let answering = async {
        while let Some(call) = asked.recv().await {
            script(call);
        }
    };
    let asking = async {
        client(Server { address, changes, stop: stop.clone() }).await;
        stop.cancel();
    };
    let all = async { tokio::join!(serving, answering, asking) };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

/// Answers as a daemon would that has jobs of that name.
fn named(name: &str) -> impl FnMut(Call) + use<> {
    let mut overview = overview(name);
    move |call| match call {
        Call::Overview { answer } => {
            overview.status.pid += 1;
            answer.send(Ok(Box::new(overview.clone()))).unwrap();
        }
        Call::Explain { job: 7, answer } => {
            answer.send(Ok(overview.waiting[0].clone())).unwrap();
        }
        Call::Explain { job, answer } => {
            let problem = Problem::new(ProblemKind::NotFound, format!("there is no job {job}"));
            answer.send(Err(problem)).unwrap();
        }
        Call::Ready { answer } => answer.send(Ok(overview.readiness.clone())).unwrap(),
        other => panic!("unexpected {other:?}"),
    }
}

#[tokio::test]
async fn each_path_has_its_answer_and_no_page_may_run_what_is_in_it() {
    with_server(Access::Host, named("<hello>"), async |server| {
        for (path, status, expected) in [
            ("/", "200", "&lt;hello&gt;"),
            ("/jobs/7", "200", "&lt;hello&gt;"),
            ("/jobs/8", "404", "there is no job 8"),
            ("/jobs/x", "400", "Cannot parse"),
            ("/style.css", "200", "prefers-color-scheme"),
            ("/live.js", "200", "EventSource"),
            ("/icon.svg", "200", "<svg"),
            ("/metrics", "200", "mayfly_up 1"),
            ("/healthz", "200", "{\"healthy\":true}"),
            ("/readyz", "503", "\"ready\":false"),
            ("/v1/jobs", "404", "no such path"),
        ] {
            let answer = server.get(path).await;
            assert_eq!(answer.split(' ').nth(1), Some(status), "{path}: {answer}");
            assert!(answer.contains(expected), "{path}: {answer}");
            if status == "200" {
                assert!(answer.contains("content-security-policy: default-src 'none'"), "{answer}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_loop_that_does_not_answer_is_unhealthy_and_one_that_ends_says_so() {
    let mut kept = Vec::new();
    with_server(
        Access::Host,
        move |call| kept.push(call),
        async |server| {
            let (health, readiness) = tokio::join!(server.get("/healthz"), server.get("/readyz"));
            for answer in [health, readiness] {
                assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
                assert!(answer.contains("has not answered within 2s"), "{answer}");
            }
        },
    )
    .await;
    with_server(Access::Host, drop, async |server| {
        let answer = server.get("/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("about to end"), "{answer}");
        assert!(server.get("/").await.contains("about to end"));
    })
    .await;
}

#[tokio::test]
async fn a_stream_sends_what_changes_and_ends_with_the_daemon() {
    with_server(Access::Host, named("first"), async |server| {
        let mut stream = server.send("/events", "host: 127.0.0.1\r\n").await;
        let first = until(&mut stream, "\n\n").await;
        for part in ["summary", "waiting", "active", "pools", "microvms", "ended"] {
            assert!(first.contains(&format!("\"{part}\":")), "{part} in {first}");
        }
        // Nothing differs: a beat comes all the same.
        let beat = until(&mut stream, "\n\n").await;
        assert!(beat.contains("\"parts\":{}"), "{beat}");
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
    with_server(Access::Host, named("x"), async |server| {
        let mut streams = Vec::new();
        for _ in 0..events::STREAMS {
            let mut stream = server.send("/events", "host: 127.0.0.1\r\n").await;
            until(&mut stream, "\"parts\"").await;
            streams.push(stream);
        }
        let refused = server.get("/events").await;
        assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
        assert!(refused.contains("too many pages are open"), "{refused}");
        assert!(server.get("/").await.starts_with("HTTP/1.1 200"));
        // Who leaves makes room.
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
async fn many_who_look_at_once_ask_the_daemon_once() {
    let (calls, mut asked) = mpsc::channel(call::CAPACITY);
    let (changes, changed) = watch::channel(0);
    let pages = Pages::new(calls, changed, None, CancellationToken::new());
    let looking = async {
        let all = futures_util::future::join_all((0..100).map(|_| pages.overview())).await;
        assert!(all.iter().all(Result::is_ok));
        let first = all[0].as_ref().unwrap().status.pid;
        assert_eq!(pages.overview().await.unwrap().status.pid, first);
        changes.send_modify(|count| *count += 1);
        assert_eq!(pages.overview().await.unwrap().status.pid, first + 1);
        tokio::time::sleep(FRESH).await;
        assert_eq!(pages.overview().await.unwrap().status.pid, first + 2);
    };
    let mut script = named("x");
    let answering = async {
        while let Some(call) = asked.recv().await {
            script(call);
        }
    };
    tokio::select! {
        () = looking => {}
        () = answering => unreachable!("the pages can always ask"),
    }
}

#[tokio::test]
async fn without_a_token_only_this_host_is_served() {
    with_server(Access::Host, named("x"), async |server| {
        for (host, status) in
            [("127.0.0.1", "200"), ("localhost:9180", "200"), ("evil.example", "401")]
        {
            assert_eq!(server.status("/", &format!("host: {host}\r\n")).await, status, "{host}");
        }
    })
    .await;
    with_server(Access::Anyone, named("x"), async |server| {
        assert_eq!(server.status("/", "host: ci.example\r\n").await, "200");
    })
    .await;
}

#[tokio::test]
async fn with_a_token_nothing_is_served_without_it() {
    let access = Access::token("0123456789abcdef".into());
    with_server(access, named("x"), async |server| {
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
        let answer = server.get_with("//jobs/7?token=0123456789abcdef", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
        assert!(answer.contains("location: /jobs/7\r\n"), "{answer}");
        assert!(!answer.contains("0123456789abcdef"), "{answer}");
        let cookie = answer.split("set-cookie: ").nth(1).unwrap().split(';').next().unwrap();
        assert_eq!(server.status("/", &format!("{host}cookie: {cookie}\r\n")).await, "200");
    })
    .await;
}
