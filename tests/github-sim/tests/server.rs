//! Tests of the simulator over the network: App keys, webhooks, connection faults, the contract.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "clippy only sees that this is a test inside test functions, not in what they share"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::time::Duration;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use mayfly_github_sim::contract::{self, Contract};
use mayfly_github_sim::state::State;
use mayfly_github_sim::state::hooks::signature;
use mayfly_github_sim::{
    App, Class, Conclusion, Fault, Hook, Job, NewJob, Rule, RunnerKind, Settings, Simulator,
    app_key, time,
};
use serde_json::{Value, json};

const TIMEOUT: Duration = Duration::from_secs(20);

/// An App's key: the signing key pair, and the App as the simulator has it.
struct Key {
    pair: ring::signature::RsaKeyPair,
    app: App,
}

impl Key {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.pem");
        app_key::generate(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
        let pair =
            ring::signature::RsaKeyPair::from_pkcs8(&BASE64.decode(body.as_bytes()).unwrap());
        let app = App::new("octo", app_key::public_key(&path).unwrap());
        Self { pair: pair.unwrap(), app }
    }

    fn jwt(&self, claims: &Value) -> String {
        let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let signed = format!("{}.{}", part(&json!({ "alg": "RS256", "typ": "JWT" })), part(claims));
        let mut signature = vec![0; self.pair.public().modulus_len()];
        let random = ring::rand::SystemRandom::new();
        let padding = &ring::signature::RSA_PKCS1_SHA256;
        self.pair.sign(padding, &random, signed.as_bytes(), &mut signature).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature))
    }

    fn good_jwt(&self) -> String {
        let now = time::seconds(time::now());
        let claims = json!({ "iss": self.app.client_id, "iat": now - 60, "exp": now + 480 });
        self.jwt(&claims)
    }
}

/// Sends a request and returns the response; the status is 0 if it is incomplete.
fn call(github: &Simulator, method: &str, path: &str, token: &str, body: &Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = TcpStream::connect(github.address()).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: github.example\r\nuser-agent: test\r\nconnection: close\r\n\
         authorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut response = String::new();
    // A truncated response may end with an error; the bytes before it count.
    let _ = stream.read_to_string(&mut response);
    let Some((head, body)) = response.split_once("\r\n\r\n") else { return (0, Value::Null) };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    if length.is_some_and(|length| length.parse::<usize>().unwrap() != body.len()) {
        return (0, Value::Null);
    }
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn job() -> NewJob {
    NewJob {
        repository: "octo/hello".to_owned(),
        name: "build".to_owned(),
        labels: vec!["linux".to_owned()],
        steps: vec!["true".to_owned()],
    }
}

fn create_runner(github: &Simulator, token: &str, name: &str) -> (u16, Value) {
    let body = json!({ "name": name, "runner_group_id": 1, "labels": ["linux"] });
    call(github, "POST", "/orgs/octo/actions/runners/generate-jitconfig", token, &body)
}

#[test]
fn an_app_gets_a_token_for_its_permissions_and_loses_it() {
    let key = Key::new();
    let settings = Settings { app: Some(key.app.clone()), ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    let jwt = key.good_jwt();
    let (status, found) = call(&github, "GET", "/orgs/octo/installation", &jwt, &Value::Null);
    assert_eq!(status, 200);
    let path = format!("/app/installations/{}/access_tokens", found["id"]);
    let only_actions = json!({ "permissions": { "actions": "read" } });
    let (status, token) = call(&github, "POST", &path, &jwt, &only_actions);
    assert_eq!(status, 201);
    let token = token["token"].as_str().unwrap();
    assert_eq!(create_runner(&github, token, "r1").0, 403, "it may read actions only");
    let (_, token) = call(&github, "POST", &path, &jwt, &Value::Null);
    let token = token["token"].as_str().unwrap();
    assert_eq!(create_runner(&github, token, "r1").0, 201);
    github.with(|state, _| state.revoke_installation_tokens());
    assert_eq!(create_runner(&github, token, "r2").0, 401);
    let elsewhere = json!({ "repositories": ["other"] });
    let (_, token) = call(&github, "POST", &path, &jwt, &elsewhere);
    let token = token["token"].as_str().unwrap();
    let runs = "/repos/octo/hello/actions/runs";
    assert_eq!(call(&github, "GET", runs, token, &Value::Null).0, 404, "not its repository");
    let too_much = json!({ "permissions": { "contents": "write" } });
    assert_eq!(call(&github, "POST", &path, &jwt, &too_much).0, 422);
}

#[test]
fn an_invalid_jwt_is_rejected() {
    let (key, other) = (Key::new(), Key::new());
    let settings = Settings { app: Some(key.app.clone()), ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    let now = time::seconds(time::now());
    let claims = |issuer: &str, issued: u64, expires: u64| json!({ "iss": issuer, "iat": issued, "exp": expires });
    let id = &key.app.client_id;
    for (jwt, why) in [
        (other.good_jwt(), "another key"),
        (key.jwt(&claims("unknown", now - 60, now + 60)), "another issuer"),
        (key.jwt(&claims(id, now + 300, now + 500)), "issued in the future"),
        (key.jwt(&claims(id, now - 600, now - 1)), "expired"),
        (key.jwt(&claims(id, now, now + 700)), "too long"),
    ] {
        assert_eq!(call(&github, "GET", "/app", &jwt, &Value::Null).0, 401, "{why}");
    }
    let numbered = key.jwt(&claims(&key.app.id.to_string(), now - 60, now + 60));
    assert_eq!(call(&github, "GET", "/app", &numbered, &Value::Null).0, 200);
}

#[test]
fn webhooks_are_signed_and_can_be_redelivered() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let hook = Hook { url, secret: "s3cret".to_owned() };
    let github = Simulator::start(Settings { hook: Some(hook), ..Settings::default() }).unwrap();
    github.queue(job());
    let receive = || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let count = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&request).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let header = |name: &str| {
                let mut values = head.lines().filter_map(|line| line.split_once(": "));
                values.find(|(have, _)| *have == name).map(|(_, value)| value.to_owned())
            };
            if body.len().to_string() == header("content-length").unwrap() {
                stream.write_all(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n").unwrap();
                let guid = header("x-github-delivery").unwrap();
                return (guid, header("x-hub-signature-256").unwrap(), body.to_owned());
            }
        }
    };
    let (guid, signed, body) = receive();
    assert_eq!(signed, signature("s3cret", body.as_bytes()));
    let event: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&event["action"], &event["workflow_job"]["status"]),
        (&json!("queued"), &json!("queued"))
    );
    let first = github.with(|state, _| state.deliveries[0].id);
    assert!(github.wait(TIMEOUT, |state| state.deliveries[0].status == 202));
    assert!(github.with(|state, now| state.redeliver(first, now)));
    let (again, _, same) = receive();
    assert_eq!((again, same), (guid, body));
}

#[test]
fn a_response_is_truncated_or_lost_after_its_effect() {
    let faults =
        vec![Rule::once(Class::Mint, Fault::CutBody), Rule::once(Class::Mint, Fault::LostAnswer)];
    let tokens = vec!["pat".to_owned()];
    let settings = Settings { tokens, faults, lost_answer_hold: 50, ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    assert_eq!(create_runner(&github, "pat", "cut").0, 0);
    assert_eq!(create_runner(&github, "pat", "lost").0, 0);
    assert_eq!(create_runner(&github, "pat", "cut").0, 409);
    assert_eq!(create_runner(&github, "pat", "lost").0, 409);
    assert_eq!(github.summary().registered, ["cut", "lost"]);
}

/// Installs the stand-in runner in a directory, as in the guest.
fn install_runner(directory: &std::path::Path) {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("runner");
    std::fs::create_dir_all(directory.join("bin")).unwrap();
    for file in ["run.sh", "bin/Runner.Listener", "bin/Runner.Worker"] {
        std::fs::copy(from.join(file), directory.join(file)).unwrap();
    }
}

fn run_runner(github: &Simulator, name: &str, config: Option<&str>) -> (Option<i32>, String) {
    let directory = tempfile::tempdir().unwrap();
    install_runner(directory.path());
    let created = create_runner(github, "pat", name).1;
    let config = config.or(created["encoded_jit_config"].as_str()).unwrap();
    let output = Command::new(directory.path().join("bin/Runner.Listener"))
        .arg("run")
        .env("ACTIONS_RUNNER_INPUT_JITCONFIG", config)
        // Tests may run as root; the runner in a guest never does.
        .env("RUNNER_ALLOW_RUNASROOT", "1")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn the_stand_in_runner_runs_one_job_and_reports() {
    let settings =
        Settings { tokens: vec!["pat".to_owned()], poll_hold: 1_000, ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    let steps =
        ["echo hello; echo ${ACTIONS_RUNNER_INPUT_JITCONFIG:-unset}", "exit 3", "echo never"];
    let id = github.queue(NewJob { steps: steps.map(str::to_owned).into(), ..job() });
    let (code, console) = run_runner(&github, "r1", None);
    assert_eq!(code, Some(0), "{console}");
    for line in [
        "Connected to GitHub",
        "Listening for Jobs",
        "Running job: build",
        "Job build completed with result: Failed",
    ] {
        assert!(console.contains(line), "{line}: {console}");
    }
    let job = github.job(id).unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Failure));
    assert!(job.log.contains("hello\nunset\n") && job.log.contains("exit code 3"), "{}", job.log);
    assert!(!job.log.contains("never"), "{}", job.log);
    assert_eq!(job.started_runs.len(), 1);
    assert!(github.summary().registered.is_empty());
}

#[test]
fn the_stand_in_runners_exit_code_reports_the_failure() {
    let settings =
        Settings { tokens: vec!["pat".to_owned()], poll_hold: 1_000, ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    assert_eq!(run_runner(&github, "r1", Some("no base64!")).0, Some(1));
    github.add_fault(Rule::once(Class::Mint, Fault::ExpiredJit));
    assert_eq!(run_runner(&github, "r2", None).0, Some(1));
    github.add_fault(Rule::once(Class::Mint, Fault::RemovedIdle { after: 0 }));
    assert_eq!(run_runner(&github, "r3", None).0, Some(0));
}

/// The target of a signal.
#[derive(Clone, Copy)]
enum SignalTarget {
    Listener,
    Group,
}

/// Runs a job with these steps, sends a signal once the job has printed `started`, and waits for the
/// end. Returns the status (negative for a signal), the console, and the job as GitHub has it.
fn interrupt(
    kind: RunnerKind,
    signal: &str,
    target: SignalTarget,
    steps: &[&str],
) -> (i32, String, Job) {
    let tokens = vec!["pat".to_owned()];
    let settings = Settings { tokens, runner_kind: kind, ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    let directory = tempfile::tempdir().unwrap();
    install_runner(directory.path());
    let steps = steps.iter().map(|step| (*step).to_owned()).collect();
    let id = github.queue(NewJob { steps, ..job() });
    let created = create_runner(&github, "pat", "r1").1;
    let mut command = Command::new(directory.path().join("bin/Runner.Listener"));
    command.args(["run", "--jitconfig", created["encoded_jit_config"].as_str().unwrap()]);
    command.env("RUNNER_ALLOW_RUNASROOT", "1").process_group(0).stdout(Stdio::piped());
    let runner = command.spawn().unwrap();
    assert!(github.wait(TIMEOUT, |state: &State| state.jobs[&id].log.contains("started\n")));
    let number = match target {
        SignalTarget::Listener => runner.id().to_string(),
        SignalTarget::Group => format!("-{}", runner.id()),
    };
    let sent = Command::new("kill").args([signal, "--", &number]).status().unwrap();
    assert!(sent.success());
    let group = format!("-{}", runner.id());
    let end = || Command::new("kill").args(["-KILL", "--", &group]).output().unwrap();
    if kind == RunnerKind::Deaf {
        // It does not end by itself, so kill it.
        std::thread::sleep(Duration::from_secs(2));
        assert!(github.job(id).unwrap().conclusion.is_none());
        end();
    }
    let status = {
        let mut runner = runner;
        // Don't wait for processes that hold the console, such as a hung job.
        let status = runner.wait().unwrap();
        let ended = status.code().or(status.signal().map(|signal| -signal)).unwrap();
        end();
        let mut console = String::new();
        runner.stdout.take().unwrap().read_to_string(&mut console).unwrap();
        (ended, console)
    };
    (status.0, status.1, github.job(id).unwrap())
}

const CANCELED: &str = "Job build completed with result: Canceled";

#[test]
fn an_interrupted_stand_in_runner_reports_it_to_github() {
    let steps = ["echo started; sleep 60", "# if: always()\necho after"];
    for (kind, signal, target, code, after) in [
        (RunnerKind::Dotnet8, "-INT", SignalTarget::Group, 0, true),
        (RunnerKind::Dotnet10, "-INT", SignalTarget::Group, 0, true),
        (RunnerKind::Dotnet10, "-INT", SignalTarget::Listener, 0, false),
        (RunnerKind::Dotnet8, "-TERM", SignalTarget::Listener, 143, false),
    ] {
        let (status, console, job) = interrupt(kind, signal, target, &steps);
        assert_eq!(status, code, "{console}");
        assert!(console.contains("Exiting...\n") && console.contains(CANCELED), "{console}");
        assert!(!console.contains("Removed"), "{console}");
        assert_eq!(job.conclusion, Some(Conclusion::Failure));
        assert!(job.annotation.unwrap().contains("shutdown signal"));
        assert_eq!(job.log.contains("after\n"), after, "{}", job.log);
        assert!(job.log.contains("The operation was canceled."), "{}", job.log);
    }
}

#[test]
fn a_step_that_ignores_signals_is_killed() {
    let steps = ["trap '' INT TERM; echo started; sleep 60 & wait; sleep 60"];
    let (status, console, job) =
        interrupt(RunnerKind::Dotnet8, "-INT", SignalTarget::Group, &steps);
    assert_eq!(status, 0);
    assert!(console.contains(CANCELED), "{console}");
    assert_eq!(job.conclusion, Some(Conclusion::Failure));
}

#[test]
fn a_dead_or_deaf_stand_in_runner_reports_nothing() {
    let steps = ["echo started; sleep 60"];
    for (kind, signal, code) in [
        (RunnerKind::Dotnet10, "-TERM", -15),
        (RunnerKind::Deaf, "-INT", -9),
        (RunnerKind::Deaf, "-TERM", -9),
    ] {
        let (status, console, job) = interrupt(kind, signal, SignalTarget::Listener, &steps);
        assert_eq!(status, code, "{console}");
        assert!(!console.contains("completed with result"), "{console}");
        assert_eq!(job.conclusion, None);
    }
}

#[test]
fn the_stand_in_runner_writes_the_real_ones_files_and_lines() {
    let tokens = vec!["pat".to_owned()];
    let github = Simulator::start(Settings { tokens, ..Settings::default() }).unwrap();
    let directory = tempfile::tempdir().unwrap();
    install_runner(directory.path());
    // Its job sees the key, which all users can read, and its own lines with timestamps.
    let script = "echo first; cd ../_diag; until grep -sq 'Z first' pages/*_1_1.log; do sleep 0.1; done; \
                cmp pages/*_1_1.log blocks/*_1.1; stat -c %a ../.credentials_rsaparams";
    let id = github.queue(NewJob { steps: vec![script.to_owned()], ..job() });
    let created = create_runner(&github, "pat", "r1").1;
    let config = created["encoded_jit_config"].as_str().unwrap();
    let output = Command::new(directory.path().join("bin/Runner.Listener"))
        .args(["run", "--jitconfig", config])
        .env("RUNNER_ALLOW_RUNASROOT", "1")
        .output()
        .unwrap();
    let console = String::from_utf8(output.stdout).unwrap();
    let job = github.job(id).unwrap();
    assert_eq!(job.conclusion, Some(Conclusion::Success), "{}", job.log);
    assert!(job.log.ends_with("first\n644\n"), "{}", job.log);
    assert!(console.starts_with("\n√ Connected to GitHub\n\nCurrent runner version:"), "{console}");
    assert!(
        console.ends_with("Succeeded\n√ Removed .credentials\n√ Removed .runner\n"),
        "{console}"
    );
    for left in ["pages", "blocks"] {
        let left = std::fs::read_dir(directory.path().join("_diag").join(left)).unwrap();
        assert_eq!(left.count(), 0, "sent lines are removed");
    }
}

#[test]
fn faults_of_runner_calls_leave_a_job_run_once() {
    let settings =
        Settings { tokens: vec!["pat".to_owned()], lost_answer_hold: 50, ..Settings::default() };
    let github = Simulator::start(settings).unwrap();
    github.add_fault(Rule {
        times: Some(2),
        ..Rule::share(Class::Job, Fault::ServerErrorAfterEffect, 0.5)
    });
    github.add_fault(Rule { times: Some(1), ..Rule::share(Class::Job, Fault::LostAnswer, 0.5) });
    let id = github.queue(job());
    let (code, console) = run_runner(&github, "r1", None);
    assert_eq!(code, Some(0), "{console}");
    let job = github.job(id).unwrap();
    assert_eq!((job.conclusion, job.started_runs.len()), (Some(Conclusion::Success), 1));
}

/// Validates each of GitHub's calls that the simulator supports against GitHub's description.
#[test]
fn responses_match_githubs_description() {
    let Some(contract) = Contract::from_environment().unwrap() else {
        eprintln!("skipped: {} is not set to GitHub's API description", contract::VARIABLE);
        return;
    };
    let key = Key::new();
    let hook = Hook { url: "http://127.0.0.1:1/".to_owned(), secret: "s".to_owned() };
    let settings = Settings {
        app: Some(key.app.clone()),
        tokens: vec!["pat".to_owned()],
        hook: Some(hook),
        ..Settings::default()
    };
    let github = Simulator::start(settings).unwrap();
    let id = github.queue(job());
    let run = github.job(id).unwrap().run_id;
    assert!(github.wait(TIMEOUT, |state| state.deliveries[0].due.is_none()));
    let jwt = key.good_jwt();
    let token = format!("/app/installations/{}/access_tokens", key.app.installation);
    for (method, path, body, status) in [
        ("GET", "/app", Value::Null, 200),
        ("GET", "/orgs/octo/installation", Value::Null, 200),
        ("GET", "/repos/octo/hello/installation", Value::Null, 200),
        ("POST", token.as_str(), json!({ "permissions": { "actions": "read" } }), 201),
        ("POST", token.as_str(), json!({ "permissions": { "contents": "write" } }), 422),
        ("GET", "/app/hook/deliveries?per_page=5", Value::Null, 200),
    ] {
        assert_eq!(call(&github, method, path, &jwt, &body).0, status, "{method} {path}");
    }
    let created = create_runner(&github, "pat", "r1").1["runner"]["id"].to_string();
    assert_eq!(create_runner(&github, "pat", "r1").0, 409);
    let jobs = format!("/repos/octo/hello/actions/runs/{run}/jobs");
    let (one_job, runner) = (
        format!("/repos/octo/hello/actions/jobs/{id}"),
        format!("/orgs/octo/actions/runners/{created}"),
    );
    for (method, path, status) in [
        ("GET", "/orgs/octo/actions/runners?per_page=100", 200),
        ("GET", runner.as_str(), 200),
        ("DELETE", runner.as_str(), 204),
        ("DELETE", runner.as_str(), 404),
        ("GET", "/repos/octo/hello/actions/runners", 200),
        ("GET", "/orgs/octo/actions/runners/downloads", 200),
        ("GET", "/orgs/octo/actions/runner-groups", 200),
        ("GET", "/orgs/octo/actions/runner-groups/1", 200),
        ("POST", "/orgs/octo/actions/runners/registration-token", 201),
        ("POST", "/repos/octo/hello/actions/runners/remove-token", 201),
        ("GET", "/repos/octo/hello/actions/runs?status=queued", 200),
        ("GET", jobs.as_str(), 200),
        ("GET", one_job.as_str(), 200),
        ("GET", "/rate_limit", 200),
    ] {
        assert_eq!(call(&github, method, path, "pat", &Value::Null).0, status, "{method} {path}");
    }
    if let Err(violations) = github.validate(&contract) {
        panic!("{violations:#?}");
    }
    // The contract must also detect errors.
    let mut exchanges = github.exchanges();
    let created = exchanges.iter_mut().find(|exchange| exchange.status == 201).unwrap();
    created.response = "{}".to_owned();
    assert!(contract.validate(&exchanges).is_err());
}
