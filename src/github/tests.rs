//! Tests of the client against a scripted server.

use std::time::{Duration, SystemTime};

use secrecy::ExposeSecret;
use serde_json::json as value;

use super::testing::{Reply, Server, empty, json};
use super::*;
use mayfly_config::github::Target;
use mayfly_failure::Failure;
use mayfly_host::web::Proxies;

const JIT: &str = "eyJzZWNyZXQiOiJqaXQifQ==";

fn created() -> Reply {
    json(201, value!({ "runner": { "id": 23, "name": "m-1" }, "encoded_jit_config": JIT }))
}

fn token(text: &str) -> Reply {
    json(201, value!({ "token": text, "expires_at": "2099-01-01T00:00:00Z" }))
}

async fn create(client: &GitHubClient) -> Result<JitRunner, CallError> {
    client.create_jit_runner("m-1", None, &["mayfly".to_owned()], "_work").await
}

/// Returns the error of creating a runner for a repository, given one reply.
async fn create_error(reply: Reply) -> CallError {
    let server = Server::start(vec![reply]).await;
    let error = create(&server.client("octo/hello")).await.expect_err("the call fails");
    assert_eq!(server.seen().await.len(), 1, "a failed call was resent");
    error
}

#[tokio::test]
async fn a_runner_is_created_as_github_documents() {
    let server = Server::start(vec![created()]).await;
    let made = create(&server.client("octo/hello")).await.unwrap();
    assert_eq!((made.runner_id, made.jit_config.expose_secret()), (23, JIT));
    assert!(!format!("{made:?}").contains(JIT));
    let seen = server.seen().await;
    assert_eq!(seen[0].line, "POST /repos/octo/hello/actions/runners/generate-jitconfig");
    assert_eq!(
        seen[0].json(),
        value!({"name": "m-1", "runner_group_id": 1, "labels": ["mayfly"], "work_folder": "_work"})
    );
    for (name, expected) in [
        ("authorization", "Bearer ghp_verysecret"),
        ("accept", "application/vnd.github+json"),
        ("x-github-api-version", "2022-11-28"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen[0].header(name), Some(expected));
    }
    assert!(seen[0].header("user-agent").unwrap().starts_with("mayfly/"));
}

#[tokio::test]
async fn an_organizations_group_is_looked_up_once_across_pages() {
    let page = |groups| json(200, value!({ "total_count": 2, "runner_groups": groups }));
    let link = "<{HERE}/orgs/octo/actions/runner-groups?per_page=100&page=2>; rel=\"next\"";
    let server = Server::start(vec![
        page(value!([{ "id": 4, "name": "Default", "default": true }])).with("link", link),
        page(value!([{ "id": 9, "name": "Builders", "default": false }])),
        created(),
        created(),
    ])
    .await;
    let client = server.client("octo");
    client
        .create_jit_runner("m-1", Some("builders"), &["mayfly".to_owned()], "_work")
        .await
        .unwrap();
    create(&client).await.unwrap();
    let seen = server.seen().await;
    assert_eq!(seen[1].line, "GET /orgs/octo/actions/runner-groups?per_page=100&page=2");
    assert_eq!(seen[2].json()["runner_group_id"], 9);
    assert_eq!(seen[3].json()["runner_group_id"], 4);
}

#[tokio::test]
async fn an_error_says_whether_a_runner_may_exist() {
    let message = |status, text: &str| json(status, value!({ "message": text }));
    let taken = create_error(message(409, "already exists")).await;
    assert!(matches!(taken, CallError::NameTaken { .. }), "{taken}");
    let refused = create_error(message(422, "labels")).await;
    assert!(matches!(refused, CallError::Refused { status: 422, .. }), "{refused}");
    let forbidden = create_error(message(403, "Resource not accessible by integration")).await;
    assert!(matches!(forbidden, CallError::Refused { status: 403, .. }), "{forbidden}");
    assert!(forbidden.hint().unwrap().contains("Administration: write"));
    let missing = create_error(message(404, "Not Found")).await;
    assert!(matches!(missing, CallError::NotFound { .. }), "{missing}");
    let expired = create_error(message(401, "Bad credentials")).await;
    assert!(matches!(expired, CallError::Unauthorized { .. }), "{expired}");
    let full = value!({ "runner": { "id": 1 }, "encoded_jit_config": JIT }).to_string();
    for unclear in [
        empty(500),
        empty(502),
        empty(201),
        Reply::NoResponse,
        Reply::Truncated(201, full),
        json(201, value!({ "encoded_jit_config": JIT })),
    ] {
        let error = create_error(unclear.clone()).await;
        assert!(matches!(error, CallError::Ambiguous { .. }), "{unclear:?}: {error:?}");
        let text = format!("{error:?} {}", mayfly_failure::chain(&error));
        assert!(!text.contains(JIT) && !text.contains("verysecret"), "{text}");
    }
}

#[tokio::test]
async fn a_refused_connection_sends_nothing() {
    let server = Server::start(vec![]).await;
    let client = server.client("octo/hello");
    server.seen().await; // The listener is closed now.
    let error = create(&client).await.expect_err("the connection is refused");
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
}

#[tokio::test]
async fn nothing_is_sent_until_a_rate_limit_ends() {
    let limit = value!({ "message": "You have exceeded a secondary rate limit" });
    for reply in [empty(429), json(403, limit), empty(403).with("retry-after", "77")] {
        let server = Server::start(vec![reply]).await;
        let client = server.client("octo/hello");
        for _ in 0..3 {
            let error = create(&client).await.expect_err("it is limited");
            let CallError::RateLimited { until, .. } = error else { panic!("{error:?}") };
            assert!(until > SystemTime::now() + Duration::from_secs(30));
        }
        assert_eq!(server.seen().await.len(), 1);
    }
}

#[tokio::test]
async fn a_category_limit_does_not_block_other_calls() {
    let reset = SystemTime::now() + Duration::from_secs(300);
    let reset = reset.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs().to_string();
    let limited = empty(403)
        .with("x-ratelimit-limit", "1500")
        .with("x-ratelimit-remaining", "0")
        .with("x-ratelimit-reset", reset)
        .with("x-ratelimit-resource", "actions_runner_registration");
    let server = Server::start(vec![limited, json(200, value!({ "runners": [] }))]).await;
    let client = server.client("octo/hello");
    assert!(matches!(create(&client).await, Err(CallError::RateLimited { .. })));
    assert_eq!(client.runners().await.unwrap(), []);
    assert_eq!(client.rate(), None);
    server.seen().await;
}

#[tokio::test]
async fn an_app_finds_its_installation_and_requests_minimal_permissions() {
    let server =
        Server::start(vec![json(200, value!({ "id": 5 })), token("ghs_one"), created()]).await;
    create(&server.app("octo/hello", None)).await.unwrap();
    let seen = server.seen().await;
    assert_eq!(seen[0].line, "GET /repos/octo/hello/installation");
    assert_eq!(seen[0].header("authorization").unwrap().split('.').count(), 3);
    assert_eq!(seen[1].line, "POST /app/installations/5/access_tokens");
    let permissions = value!({"administration": "write", "actions": "read", "metadata": "read"});
    let expected = value!({ "permissions": permissions, "repositories": ["hello"] });
    assert_eq!(seen[1].json(), expected);
    assert_eq!(seen[2].header("authorization"), Some("Bearer ghs_one"));
}

#[tokio::test]
async fn a_rejected_token_is_renewed_once() {
    let bad = || json(401, value!({ "message": "Bad credentials" }));
    let script = vec![token("ghs_one"), bad(), token("ghs_two"), created()];
    let server = Server::start(script).await;
    create(&server.app("octo/hello", Some(5))).await.unwrap();
    assert_eq!(server.seen().await[3].header("authorization"), Some("Bearer ghs_two"));

    let server = Server::start(vec![token("ghs_one"), bad(), token("ghs_two"), bad()]).await;
    let end = create(&server.app("octo/hello", Some(5))).await;
    assert!(matches!(end, Err(CallError::Unauthorized { .. })));
    server.seen().await;
}

#[tokio::test]
async fn a_token_near_expiry_is_renewed_once_before_use() {
    let soon = SystemTime::now() + Duration::from_secs(60);
    let soon = humantime::format_rfc3339_seconds(soon).to_string();
    let old = json(201, value!({ "token": "ghs_old", "expires_at": soon }));
    let none = || json(200, value!({ "runners": [] }));
    let script = vec![old, none(), token("ghs_new"), none(), none()];
    let server = Server::start(script).await;
    let client = server.app("octo/hello", Some(5));
    client.runners().await.unwrap();
    let (first, second) = tokio::join!(client.runners(), client.runners());
    assert!(first.is_ok() && second.is_ok());
    let seen = server.seen().await;
    assert_eq!(seen[3].header("authorization"), Some("Bearer ghs_new"));
    assert_eq!(seen[4].header("authorization"), Some("Bearer ghs_new"));
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_by_githubs() {
    let theirs = SystemTime::now() + Duration::from_secs(3 * 3600);
    let date = httpdate::fmt_http_date(theirs);
    let refused = json(401, value!({ "message": "'Issued at' claim is too old" }));
    let server =
        Server::start(vec![refused.with("date", date.as_str()), token("ghs"), created()]).await;
    create(&server.app("octo/hello", Some(5))).await.unwrap();
    let seen = server.seen().await;
    let jwt = seen[1].header("authorization").unwrap().split('.').nth(1).unwrap().to_owned();
    let claims = data_encoding::BASE64URL_NOPAD.decode(jwt.as_bytes()).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    let theirs = theirs.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    assert!(claims["iat"].as_u64().unwrap().abs_diff(theirs - 60) < 30);
}

#[tokio::test]
async fn runners_are_found_across_pages_and_by_exact_name() {
    let runner = |id: u64, name: &str| value!({ "id": id, "name": name, "os": "linux", "status": "online", "busy": id == 2, "labels": [{ "name": "mayfly" }] });
    let link = "<{HERE}/orgs/octo/actions/runners?per_page=100&page=2>; rel=\"next\"";
    let page = |runners| json(200, value!({ "total_count": 2, "runners": runners }));
    let server = Server::start(vec![
        page(value!([runner(1, "m-1")])).with("link", link),
        page(value!([runner(2, "m-2")])),
        page(value!([runner(3, "m-10"), runner(1, "m-1")])),
    ])
    .await;
    let client = server.client("octo");
    let all = client.runners().await.unwrap();
    assert_eq!(all.iter().map(|runner| runner.busy).collect::<Vec<_>>(), [false, true]);
    assert_eq!(client.runner_by_name("m-1").await.unwrap().unwrap().id, 1);
    assert!(server.seen().await[2].line.ends_with("?per_page=100&name=m-1"));
}

#[tokio::test]
async fn credentials_are_not_sent_to_another_host() {
    let link = "<https://elsewhere.example/runners>; rel=\"next\"";
    let page = json(200, value!({ "total_count": 200, "runners": [] })).with("link", link);
    let server = Server::start(vec![page]).await;
    assert_eq!(server.client("octo").runners().await.unwrap(), []);
    server.seen().await;
}

#[tokio::test]
async fn deletion_distinguishes_deleted_gone_and_busy() {
    let server = Server::start(vec![empty(204), empty(404), empty(422), empty(500)]).await;
    let client = server.client("octo");
    assert_eq!(client.delete_runner(7).await.unwrap(), DeletionOutcome::Deleted);
    assert_eq!(client.delete_runner(7).await.unwrap(), DeletionOutcome::Gone);
    assert_eq!(client.delete_runner(7).await.unwrap(), DeletionOutcome::Busy);
    assert!(matches!(client.delete_runner(7).await, Err(CallError::Ambiguous { .. })));
    assert_eq!(server.seen().await[0].line, "DELETE /orgs/octo/actions/runners/7");
}

#[tokio::test]
async fn a_poll_lists_queued_jobs_and_uses_conditional_requests() {
    let runs = |ids: &[u64]| {
        let runs: Vec<_> = ids.iter().map(|id| value!({ "id": id })).collect();
        json(200, value!({ "total_count": ids.len(), "workflow_runs": runs }))
    };
    let job = |id: u64, status: &str| value!({ "id": id, "run_id": 1, "run_attempt": 2, "status": status, "labels": ["mayfly"], "name": "build", "runner_name": (status == "in_progress").then_some("m-7") });
    let jobs = json(
        200,
        value!({ "total_count": 4, "jobs": [job(11, "queued"), job(12, "in_progress"), job(13, "waiting"), job(14, "completed")] }),
    );
    let server = Server::start(vec![
        runs(&[1]).with("etag", "\"a\""),
        runs(&[1]).with("etag", "\"b\""),
        jobs.with("etag", "W/\"c\""),
        empty(304),
        empty(304),
        empty(304),
    ])
    .await;
    let client = server.client("octo");
    let repositories = ["octo/hello".parse().unwrap()];
    for round in 0..2 {
        let snapshot = client.waiting_jobs(&repositories).await;
        assert!(snapshot.failures.is_empty(), "{:?}", snapshot.failures);
        assert_eq!(snapshot.calls, 3);
        let [queued] = &snapshot.queued[..] else { panic!("round {round}: {snapshot:?}") };
        assert_eq!((queued.id, queued.attempt, queued.repository.as_str()), (11, 2, "octo/hello"));
        assert_eq!(snapshot.in_progress[0].runner_name.as_deref(), Some("m-7"));
    }
    let seen = server.seen().await;
    assert_eq!(seen[0].line, "GET /repos/octo/hello/actions/runs?status=queued&per_page=100");
    assert_eq!(
        seen[2].line,
        "GET /repos/octo/hello/actions/runs/1/jobs?filter=latest&per_page=100"
    );
    assert_eq!(seen[2].header("if-none-match"), None);
    assert_eq!(seen[5].header("if-none-match"), Some("W/\"c\""));
}

#[tokio::test]
async fn a_failed_page_is_retried() {
    let none = || json(200, value!({ "total_count": 0, "workflow_runs": [] }));
    let server = Server::start(vec![empty(502), none(), none()]).await;
    let snapshot = server.client("octo").waiting_jobs(&["octo/hello".parse().unwrap()]).await;
    assert!(snapshot.failures.is_empty(), "{:?}", snapshot.failures);
    assert_eq!(snapshot.calls, 3);
    server.seen().await;
}

#[tokio::test]
async fn a_failed_repository_does_not_hide_others() {
    let none = || json(200, value!({ "total_count": 0, "workflow_runs": [] }));
    let server = Server::start(vec![empty(404), none(), none()]).await;
    let repositories = ["octo/gone".parse().unwrap(), "octo/hello".parse().unwrap()];
    let snapshot = server.client("octo").waiting_jobs(&repositories).await;
    let [(repository, error)] = &snapshot.failures[..] else { panic!("{snapshot:?}") };
    assert_eq!(repository.to_string(), "octo/gone");
    assert!(error.hint().unwrap().contains("Actions: read"));
    server.seen().await;
}

#[tokio::test]
async fn the_linux_x64_runner_is_selected() {
    let listed = |os: &str, name: &str| value!({ "os": os, "architecture": "x64", "filename": name, "download_url": format!("https://example.com/{name}"), "temp_download_token": "secret" });
    let page = value!([
        listed("win", "actions-runner-win-x64-2.335.1.zip"),
        listed("linux", "actions-runner-linux-x64-2.335.1.tar.gz")
    ]);
    let server = Server::start(vec![json(200, page), json(200, value!([]))]).await;
    let client = server.client("octo/hello");
    let found = client.runner_download().await.unwrap().unwrap();
    assert_eq!(found.version, "2.335.1");
    assert_eq!(found.url, "https://example.com/actions-runner-linux-x64-2.335.1.tar.gz");
    assert_eq!(found.token.as_ref().map(ExposeSecret::expose_secret), Some("secret"));
    assert!(!format!("{found:?}").contains("secret"));
    assert!(client.runner_download().await.unwrap().is_none());
    assert_eq!(server.seen().await[0].line, "GET /repos/octo/hello/actions/runners/downloads");
}

#[tokio::test]
async fn missed_deliveries_are_listed_and_redelivered() {
    let delivery = |id: u64, at: &str, code: u16| value!({ "id": id, "guid": "g-1", "delivered_at": at, "redelivery": false, "event": "workflow_job", "status_code": code });
    let page = json(
        200,
        value!([
            delivery(9, "2026-05-02T00:00:00Z", 502),
            delivery(8, "2026-04-01T00:00:00Z", 200)
        ]),
    );
    let server = Server::start(vec![page, json(202, value!({}))]).await;
    let credentials = Credentials::Token("ghp_x".into());
    let settings =
        GitHubSettings { hook: Some(Hook::Id(3)), ..server.settings("octo", credentials) };
    let client = GitHubClient::new(&settings).unwrap();
    let since = humantime::parse_rfc3339("2026-05-01T00:00:00Z").unwrap();
    let found = client.deliveries(since).await.unwrap();
    assert_eq!(found.iter().map(|one| (one.id, one.arrived())).collect::<Vec<_>>(), [(9, false)]);
    client.redeliver(9).await.unwrap();
    let seen = server.seen().await;
    assert_eq!(seen[0].line, "GET /orgs/octo/hooks/3/deliveries?per_page=100");
    assert_eq!(seen[1].line, "POST /orgs/octo/hooks/3/deliveries/9/attempts");
}

#[tokio::test]
async fn https_goes_through_the_proxy_and_loopback_http_does_not() {
    let proxy = Server::start(vec![empty(407)]).await;
    let proxies = Proxies::new(&proxy.address, "");
    let target: Target = "https://git.example.com/octo".parse().unwrap();
    let credentials = Credentials::Token("ghp_x".into());
    let settings =
        GitHubSettings { proxies: proxies.clone(), ..GitHubSettings::new(target, credentials) };
    let error =
        GitHubClient::new(&settings).unwrap().runners().await.expect_err("the proxy refuses");
    assert!(matches!(error, CallError::NotSent { .. }), "{error:?}");
    assert_eq!(proxy.seen().await[0].line, "CONNECT git.example.com:443");

    let server = Server::start(vec![json(200, value!({ "runners": [] }))]).await;
    let credentials = Credentials::Token("ghp_x".into());
    let settings = GitHubSettings { proxies, ..server.settings("octo", credentials) };
    assert_eq!(GitHubClient::new(&settings).unwrap().runners().await.unwrap(), []);
    server.seen().await;
}

#[tokio::test]
async fn runner_domains_are_parsed_among_other_fields() {
    let names = value!(["github.com", "productionresultssa0.blob.core.windows.net"]);
    let meta = value!({
        "verifiable_password_authentication": false, "hooks": ["192.30.252.0/22"],
        "domains": { "website": ["*.github.com"], "actions_inbound": {
            "full_domains": names, "wildcard_domains": ["*.actions.githubusercontent.com"],
        } },
    });
    let server = Server::start(vec![json(200, meta), json(200, value!({ "hooks": [] }))]).await;
    let credentials = Credentials::Token("ghp_verysecret".into());
    let target = "https://github.com/octo".parse().unwrap();
    let settings = GitHubSettings { target, ..server.settings("octo", credentials) };
    let client = GitHubClient::new(&settings).unwrap();
    let listed = client.runner_domains().await.unwrap().unwrap();
    assert_eq!(listed, ["github.com", "productionresultssa0.blob.core.windows.net"]);
    // A missing or empty list is `None`.
    assert_eq!(client.runner_domains().await.unwrap(), None);
    // A private server has no such list and gets no request.
    assert_eq!(server.client("octo").runner_domains().await.unwrap(), None);
    let seen: Vec<_> = server.seen().await.into_iter().map(|seen| seen.line).collect();
    assert_eq!(seen, ["GET /meta", "GET /meta"]);
}
