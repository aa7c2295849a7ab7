//! Tests of the scale set client against a scripted server.

use data_encoding::BASE64URL_NOPAD;
use secrecy::ExposeSecret;
use serde_json::json as value;

use super::*;
use crate::testing::{Reply, Server, empty, json};
use crate::{CallError, DeletionOutcome};

fn admin(expires: u64) -> String {
    format!("e30.{}.x", BASE64URL_NOPAD.encode(format!("{{\"exp\":{expires}}}").as_bytes()))
}

/// The two responses that every connection to the service starts with.
fn bootstrap(admin: &str) -> [Reply; 2] {
    [
        json(201, value!({ "token": "REG", "expires_at": "2099-01-01T00:00:00Z" })),
        json(200, value!({ "url": "{HERE}/tenant/", "token": admin, "token_schema": "x" })),
    ]
}

fn session(token: &str) -> Reply {
    json(
        200,
        value!({
            "sessionId": "s-1", "ownerName": "host", "runnerScaleSet": {},
            "messageQueueUrl": "{HERE}/queue?k=v", "messageQueueAccessToken": token,
            "statistics": { "totalAssignedJobs": 1 },
        }),
    )
}

fn message(id: u64) -> Reply {
    let items = r#"[{"messageType":"JobAvailable","runnerRequestId":7}]"#;
    json(
        200,
        value!({
            "messageId": id, "messageType": "RunnerScaleSetJobMessages", "body": items,
            "statistics": { "totalAssignedJobs": 4 },
        }),
    )
}

fn error(status: u16, kind: &str) -> Reply {
    json(status, value!({ "typeName": kind, "message": "no" }))
}

/// Starts a server with the bootstrap responses, followed by `script`.
async fn connected(script: Vec<Reply>) -> (Server, ScaleSetClient) {
    let replies = bootstrap(&admin(4_000_000_000)).into_iter().chain(script).collect();
    let server = Server::start(replies).await;
    let client = ScaleSetClient::new(&server.client("octo"));
    (server, client)
}

#[tokio::test]
async fn the_service_is_located_with_a_registration_token() {
    let lagging = error(403, "");
    let [token, registration] = bootstrap(&admin(4_000_000_000));
    let none = json(200, value!({ "count": 0, "value": [] }));
    let made = json(
        200,
        value!({
            "id": 3, "name": "pool", "runnerGroupId": 1, "labels": [{ "type": "System", "name": "pool" }],
        }),
    );
    let server = Server::start(vec![token, lagging, registration, none, made]).await;
    let client = ScaleSetClient::new(&server.client("octo"));
    let set = client.ensure("pool", None, &["x64".to_owned(), "POOL".to_owned()]).await.unwrap();
    assert_eq!((set.id, set.labels), (3, vec!["pool".to_owned()]));
    let target = format!("{}/octo", server.address);
    let seen = server.seen().await;
    assert_eq!(seen[0].line, "POST /orgs/octo/actions/runners/registration-token");
    assert_eq!(seen[2].line, "POST /actions/runner-registration");
    assert_eq!(seen[2].header("authorization"), Some("RemoteAuth REG"));
    assert_eq!(seen[2].json(), value!({ "url": target, "runner_event": "register" }));
    assert_eq!(
        seen[3].line,
        "GET /tenant/_apis/runtime/runnerscalesets?runnerGroupId=1&name=pool&api-version=6.0-preview"
    );
    assert_eq!(seen[4].line, "POST /tenant/_apis/runtime/runnerscalesets?api-version=6.0-preview");
    let label = |name: &str| value!({ "type": "System", "name": name });
    assert_eq!(seen[4].json()["labels"], value!([label("pool"), label("x64")]));
    let agent: serde_json::Value =
        serde_json::from_str(seen[4].header("user-agent").unwrap()).unwrap();
    assert_eq!(agent["kind"], "scaleset");
}

#[tokio::test]
async fn a_message_is_repeated_until_it_is_acknowledged() {
    let script = vec![
        session("Q1"),
        message(5),
        empty(204),
        json(200, value!({ "count": 1, "value": [7] })),
        empty(202),
        empty(204),
    ];
    let (server, client) = connected(script).await;
    let mut session = client.open(3, "host").await.unwrap();
    assert_eq!(session.statistics().assigned_jobs, 1);
    let PollResult::Message(message) = session.poll(6).await.unwrap() else {
        panic!("not a message")
    };
    assert_eq!(message.items[0].kind, JobMessageKind::Available);
    assert_eq!(session.statistics().assigned_jobs, 4);
    session.acknowledge(message.id).await.unwrap();
    assert_eq!(session.acquire(&[7]).await.unwrap(), [7]);
    assert!(matches!(session.poll(6).await.unwrap(), PollResult::Nothing));
    session.close().await.unwrap();
    let seen = server.seen().await;
    assert_eq!(seen[3].line, "GET /queue?k=v");
    assert_eq!(seen[3].header("x-scalesetmaxcapacity"), Some("6"));
    assert_eq!(seen[3].header("authorization"), Some("Bearer Q1"));
    assert_eq!(seen[4].line, "DELETE /queue/5?k=v");
    assert!(seen[5].line.starts_with("POST /tenant/_apis/runtime/runnerscalesets/3/acquirejobs?"));
    assert_eq!(seen[5].header("authorization"), Some("Bearer Q1"));
    assert_eq!(seen[5].json(), value!([7]));
    assert_eq!(seen[6].line, "GET /queue?k=v&lastMessageId=5");
    assert!(
        seen[7].line.starts_with("DELETE /tenant/_apis/runtime/runnerscalesets/3/sessions/s-1?")
    );
}

#[tokio::test]
async fn an_expired_queue_token_is_refreshed_once() {
    let script = vec![session("Q1"), empty(401), session("Q2"), message(5)];
    let (server, client) = connected(script).await;
    let mut session = client.open(3, "host").await.unwrap();
    assert!(matches!(session.poll(6).await.unwrap(), PollResult::Message(_)));
    let seen = server.seen().await;
    assert!(
        seen[4].line.starts_with("PATCH /tenant/_apis/runtime/runnerscalesets/3/sessions/s-1?")
    );
    assert_eq!(seen[5].header("authorization"), Some("Bearer Q2"));
}

#[tokio::test]
async fn a_lost_session_and_a_lost_set_are_reported() {
    let not_found = || error(404, "RunnerScaleSetNotFoundException");
    let script = vec![session("Q1"), empty(401), empty(404), empty(401), not_found()];
    let (server, client) = connected(script).await;
    let mut session = client.open(3, "host").await.unwrap();
    assert!(matches!(session.poll(6).await.unwrap(), PollResult::SessionLost(_)));
    assert!(matches!(session.poll(6).await.unwrap(), PollResult::ScaleSetLost));
    server.seen().await;
}

#[tokio::test]
async fn another_open_session_is_a_conflict() {
    let kind = "GitHub.Actions.Runtime.WebApi.RunnerScaleSetSessionConflictException, x";
    let (server, client) = connected(vec![error(409, kind)]).await;
    let Err(error) = client.open(3, "host").await else { panic!("no conflict") };
    assert!(is_session_conflict(&error), "{error}");
    server.seen().await;
}

#[tokio::test]
async fn an_empty_response_is_no_message_and_a_truncated_one_is_an_error() {
    let cut = r#"{"messageId": 5, "messageType": "RunnerScaleSetJobMessages"}"#.to_owned();
    let (server, client) =
        connected(vec![session("Q1"), empty(200), Reply::Truncated(200, cut)]).await;
    let mut session = client.open(3, "host").await.unwrap();
    assert!(matches!(session.poll(6).await.unwrap(), PollResult::Nothing));
    assert!(matches!(session.poll(6).await, Err(CallError::Ambiguous { .. })));
    server.seen().await;
}

#[tokio::test]
async fn a_taken_name_is_reported_and_runners_are_deleted() {
    let made = value!({ "runner": { "id": 9, "name": "m", "runnerScaleSetId": 3 }, "encodedJITConfig": "JIT" });
    let script = vec![
        json(200, made),
        error(409, "AgentExistsException"),
        json(
            200,
            value!({ "count": 1, "value": [{ "id": 9, "name": "m", "runnerScaleSetId": 3 }] }),
        ),
        error(400, "JobStillRunningException"),
        error(404, "AgentNotFoundException"),
        empty(204),
    ];
    let (server, client) = connected(script).await;
    let created = client.create_jit_runner(3, "m", "_work").await.unwrap();
    assert_eq!((created.runner_id, created.jit_config.expose_secret()), (9, "JIT"));
    assert!(matches!(
        client.create_jit_runner(3, "m", "_work").await,
        Err(CallError::NameTaken { .. })
    ));
    assert_eq!(client.runner_by_name("m").await.unwrap().unwrap().set, Some(3));
    for expected in [DeletionOutcome::Busy, DeletionOutcome::Gone, DeletionOutcome::Deleted] {
        assert_eq!(client.delete_runner(9).await.unwrap(), expected);
    }
    let seen = server.seen().await;
    assert_eq!(seen[2].json(), value!({ "name": "m", "workFolder": "_work" }));
    assert!(seen[4].line.contains("/_apis/distributedtask/pools/0/agents?agentName=m&"));
}

#[tokio::test]
async fn an_admin_token_is_renewed_before_expiry_and_on_rejection() {
    let found = || json(200, value!({ "count": 0, "value": [] }));
    let second = admin(4_000_000_000);
    let third = admin(4_000_000_001);
    let script = [
        bootstrap(&admin(1_000)).to_vec(),
        vec![found()],
        bootstrap(&second).to_vec(),
        vec![empty(401)],
        bootstrap(&third).to_vec(),
        vec![found()],
    ];
    let server = Server::start(script.concat()).await;
    let client = ScaleSetClient::new(&server.client("octo"));
    for _ in 0..2 {
        assert_eq!(client.runner_by_name("m").await.unwrap(), None);
    }
    let seen = server.seen().await;
    assert_eq!(seen[8].header("authorization"), Some(&*format!("Bearer {third}")));
}
