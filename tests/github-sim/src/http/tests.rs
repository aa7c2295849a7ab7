//! Tests of the handlers, without a network.

use serde_json::{Value, json};

use super::{Attempt, Reply, ReplyOrWait, Request, handle};
use crate::faults::{Class, Fault, Rule};
use crate::state::State;
use crate::state::jobs::{Conclusion, NewJob, Status};
use crate::state::settings::Settings;
use crate::time::SECOND;

const NOW: u64 = 1_795_222_800_000;

fn state(settings: Settings) -> State {
    let settings = Settings { tokens: vec!["pat".to_owned()], ..settings };
    State::new(settings, "http://github.example".to_owned())
}

fn request(method: &str, path: &str, token: &str, body: &Value) -> Request {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers: vec![
            ("authorization".to_owned(), format!("Bearer {token}")),
            ("user-agent".to_owned(), "test".to_owned()),
        ],
        body,
    }
}

fn send(state: &mut State, request: &Request, now: u64) -> Reply {
    match handle(state, request, Attempt::ONCE, now).reply {
        ReplyOrWait::Reply(reply) => reply,
        ReplyOrWait::Wait => panic!("a final attempt gets a reply"),
    }
}

fn call(state: &mut State, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let reply = send(state, &request(method, path, "pat", body), NOW);
    (reply.status, serde_json::from_str(&reply.body).unwrap_or(Value::Null))
}

fn create_runner(state: &mut State, name: &str) -> (u16, Value) {
    let body = json!({ "name": name, "runner_group_id": 1, "labels": ["Linux", "mayfly"] });
    call(state, "POST", "/orgs/octo/actions/runners/generate-jitconfig", &body)
}

/// Returns the credential of a JIT configuration, as the stand-in runner reads it.
fn credential(config: &Value) -> String {
    let decoded = |text: &Value| -> Value {
        let bytes = data_encoding::BASE64.decode(text.as_str().unwrap().as_bytes()).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    };
    decoded(&decoded(config)[".credentials_rsaparams"])["d"].as_str().unwrap().to_owned()
}

fn job(labels: &[&str]) -> NewJob {
    NewJob {
        repository: "octo/hello".to_owned(),
        name: "build".to_owned(),
        labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        steps: vec!["true".to_owned()],
    }
}

fn runner(state: &mut State, method: &str, path: &str, token: &str, now: u64) -> Reply {
    let path = format!("/_sim/runner/{path}");
    send(state, &request(method, &path, token, &Value::Null), now)
}

#[test]
fn a_job_runs_on_a_matching_runner_and_ends_its_registration() {
    let mut state = state(Settings::default());
    let (status, created) = create_runner(&mut state, "r1");
    assert_eq!(status, 201);
    let token = credential(&created["encoded_jit_config"]);
    assert_eq!(runner(&mut state, "POST", "session", &token, NOW).status, 200);
    let other = state.queue(job(&["windows", "mayfly"]), NOW);
    let id = state.queue(job(&["linux", "MAYFLY"]), NOW);
    assert_eq!(state.jobs[&other].status, Status::Queued);
    assert_eq!(state.jobs[&id].status, Status::InProgress);
    let message = runner(&mut state, "GET", "message", &token, NOW);
    assert_eq!(message.body, format!("job {id}\nname build\nstep dHJ1ZQ==\n"));
    assert_eq!(runner(&mut state, "POST", "started?run=a", &token, NOW).status, 200);
    assert_eq!(runner(&mut state, "POST", "started?run=a", &token, NOW).status, 200, "again");
    assert_eq!(runner(&mut state, "POST", "started?run=b", &token, NOW).status, 409, "another");
    let path = format!("/orgs/octo/actions/runners/{}", created["runner"]["id"]);
    assert_eq!(call(&mut state, "DELETE", &path, &Value::Null).0, 422, "it is busy");
    runner(&mut state, "POST", "completed?result=success", &token, NOW + SECOND);
    assert_eq!(state.jobs[&id].conclusion, Some(Conclusion::Success));
    assert!(state.runners.is_empty());
    assert_eq!(runner(&mut state, "GET", "message", &token, NOW).status, 404);
}

#[test]
fn invalid_registrations_are_refused_like_github() {
    let mut state = state(Settings::default());
    assert_eq!(create_runner(&mut state, "r1").0, 201);
    assert_eq!(create_runner(&mut state, "R1").0, 409);
    let path = "/orgs/octo/actions/runners/generate-jitconfig";
    for (body, status) in [
        (json!({ "name": "a", "labels": ["x"] }), 422),
        (json!({ "name": "a", "runner_group_id": 1, "labels": [] }), 422),
        (json!({ "name": "a", "runner_group_id": 2, "labels": ["x"] }), 403),
        (json!({ "name": "a", "runner_group_id": 9, "labels": ["x"] }), 404),
    ] {
        assert_eq!(call(&mut state, "POST", path, &body).0, status, "{body}");
    }
    let reply = send(&mut state, &request("POST", path, "unknown", &Value::Null), NOW);
    assert_eq!(reply.status, 401);
}

#[test]
fn a_silent_runner_loses_its_job_and_its_registration() {
    let mut state = state(Settings { lost_after: 60 * SECOND, ..Settings::default() });
    let token = credential(&create_runner(&mut state, "r1").1["encoded_jit_config"]);
    runner(&mut state, "POST", "session", &token, NOW);
    let id = state.queue(job(&["linux"]), NOW);
    state.tick(NOW + 59 * SECOND);
    assert_eq!(state.jobs[&id].status, Status::InProgress);
    state.tick(NOW + 60 * SECOND);
    assert_eq!(state.jobs[&id].conclusion, Some(Conclusion::Failure));
    assert!(state.jobs[&id].annotation.as_deref().unwrap().contains("lost communication"));
    assert!(state.runners.is_empty());
}

#[test]
fn an_expired_configuration_cannot_connect() {
    let faults = vec![Rule::once(Class::Mint, Fault::ExpiredJit)];
    let mut state = state(Settings { faults, ..Settings::default() });
    let token = credential(&create_runner(&mut state, "r1").1["encoded_jit_config"]);
    assert_eq!(runner(&mut state, "POST", "session", &token, NOW).status, 401);
    let token = credential(&create_runner(&mut state, "r2").1["encoded_jit_config"]);
    assert_eq!(runner(&mut state, "POST", "session", &token, NOW).status, 200);
    assert_eq!(runner(&mut state, "POST", "session", &token, NOW).status, 409);
}

#[test]
fn a_fault_after_the_effect_keeps_the_effect() {
    let faults = vec![
        Rule::once(Class::Mint, Fault::ServerErrorAfterEffect),
        Rule::once(Class::Runners, Fault::TooManyRequests { retry_after: 3 }),
    ];
    let mut state = state(Settings { faults, ..Settings::default() });
    assert_eq!(create_runner(&mut state, "r1").0, 502);
    assert_eq!(create_runner(&mut state, "r1").0, 409);
    let path = "/orgs/octo/actions/runners?name=r1";
    let refused = send(&mut state, &request("GET", path, "pat", &Value::Null), NOW);
    assert_eq!(refused.status, 429);
    assert!(refused.headers.contains(&("retry-after", "3".to_owned())));
    assert_eq!(call(&mut state, "GET", path, &Value::Null).1["total_count"], 1);
}

#[test]
fn an_unchanged_response_is_304_and_does_not_count() {
    let mut state = state(Settings { rate_limit: 2, ..Settings::default() });
    let mut repeated = request("GET", "/orgs/octo/actions/runners", "pat", &Value::Null);
    let first = send(&mut state, &repeated, NOW);
    let tag = first.headers.iter().find(|(name, _)| *name == "etag").unwrap().1.clone();
    repeated.headers.push(("if-none-match".to_owned(), tag));
    for _ in 0..5 {
        assert_eq!(send(&mut state, &repeated, NOW).status, 304);
    }
    assert_eq!(create_runner(&mut state, "r1").0, 201);
    let (status, body) = create_runner(&mut state, "r2");
    assert_eq!((status, &body["message"]), (403, &json!("API rate limit exceeded")));
}

#[test]
fn pages_are_linked() {
    let mut state = state(Settings::default());
    for number in 0..5 {
        create_runner(&mut state, &format!("r{number}"));
    }
    let path = "/orgs/octo/actions/runners?per_page=2&page=2";
    let reply = send(&mut state, &request("GET", path, "pat", &Value::Null), NOW);
    let body: Value = serde_json::from_str(&reply.body).unwrap();
    assert_eq!(
        (body["total_count"].as_u64(), body["runners"].as_array().unwrap().len()),
        (Some(5), 2)
    );
    let link = &reply.headers.iter().find(|(name, _)| *name == "link").unwrap().1;
    assert!(link.contains("per_page=2&page=3>; rel=\"next\""), "{link}");
}

#[test]
fn queued_jobs_are_found_by_polling() {
    let mut state = state(Settings::default());
    let id = state.queue(job(&["linux"]), NOW);
    let run = state.jobs[&id].run_id;
    let path = "/repos/octo/hello/actions/runs?status=queued";
    let (_, runs) = call(&mut state, "GET", path, &Value::Null);
    assert_eq!(runs["workflow_runs"][0]["id"], run);
    let path = format!("/repos/octo/hello/actions/runs/{run}/jobs?filter=latest");
    let (_, jobs) = call(&mut state, "GET", &path, &Value::Null);
    assert_eq!(
        (&jobs["jobs"][0]["id"], &jobs["jobs"][0]["labels"]),
        (&json!(id), &json!(["linux"]))
    );
}

#[test]
fn a_scale_set_receives_its_jobs_as_messages() {
    let mut state = state(Settings::default());
    let path = "/orgs/octo/actions/runners/registration-token";
    let (_, registration) = call(&mut state, "POST", path, &Value::Null);
    let mut repeated = request("POST", "/actions/runner-registration", "", &Value::Null);
    let token = registration["token"].as_str().unwrap();
    repeated.headers[0].1 = format!("RemoteAuth {token}");
    let body: Value = serde_json::from_str(&send(&mut state, &repeated, NOW).body).unwrap();
    let admin = body["token"].as_str().unwrap().to_owned();
    let sets = "/_apis/runtime/runnerscalesets";
    let tenant = |state: &mut State, path: &str, token: &str, body: Value| -> (u16, Value) {
        let path = format!("{path}?api-version=6.0-preview");
        let reply = send(state, &request("POST", &path, token, &body), NOW);
        (reply.status, serde_json::from_str(&reply.body).unwrap_or(Value::Null))
    };
    let (_, set) = tenant(&mut state, sets, &admin, json!({ "name": "pool" }));
    let one = format!("{sets}/{}", set["id"]);
    let sessions = format!("{one}/sessions");
    let (_, session) = tenant(&mut state, &sessions, &admin, json!({ "ownerName": "me" }));
    assert_eq!(tenant(&mut state, &sessions, &admin, json!({ "ownerName": "you" })).0, 409);
    let id = state.queue(job(&["pool"]), NOW);
    let queue = session["messageQueueUrl"].as_str().unwrap();
    let queue = queue.strip_prefix("http://github.example").unwrap().to_owned();
    let token = session["messageQueueAccessToken"].as_str().unwrap().to_owned();
    let poll = request("GET", &queue, &token, &Value::Null);
    let message: Value = serde_json::from_str(&send(&mut state, &poll, NOW).body).unwrap();
    let items: Value = serde_json::from_str(message["body"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&items[0]["messageType"], &items[0]["runnerRequestId"]),
        (&json!("JobAvailable"), &json!(id))
    );
    let (_, acquired) = tenant(&mut state, &format!("{one}/acquirejobs"), &token, json!([id]));
    assert_eq!(acquired["value"], json!([id]));
    assert_eq!(state.statistics(set["id"].as_u64().unwrap())["totalAssignedJobs"], 1);
    let body = json!({ "name": "s1", "workFolder": "_work" });
    let (_, created) = tenant(&mut state, &format!("{one}/generatejitconfig"), &admin, body);
    let token = credential(&created["encodedJITConfig"]);
    runner(&mut state, "POST", "session", &token, NOW);
    assert_eq!(state.jobs[&id].status, Status::InProgress);
}
