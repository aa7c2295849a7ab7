//! Docker in the image `runner`, as the job's user: containers, builds, services, networks, and
//! what they can reach. A script tests all of it in one boot.
//!
//! No registry is reachable here, so the container image is built from the guest's own files, and
//! its server is a program that the job has just compiled.

use std::fs;

use crate::egress::servers::WebServer;
use crate::support::{CommandOutput, Host, TIMEOUT};

/// Prints a line for each check: its name, a tab, and its output.
const SCRIPT: &str = include_str!("docker.sh");

/// Returns the guest's egress policy.
fn policy(web: &WebServer) -> String {
    format!(
        "[egress.policy.ci]\nmode = \"enforce\"\nallow = [{{ host = \"web.test\" }}]\n\
        [egress.policy.ci.resolve]\n\"web.test\" = \"{}\"\n",
        web.address
    )
}

fn run(host: &Host, web: &WebServer) -> CommandOutput {
    let settings = host.state().join("mayfly.toml");
    fs::write(&settings, policy(web)).unwrap();
    let record = host.state().join("record");
    let command = host.start([
        "--image=runner",
        "--memory=2G",
        "--egress=ci",
        &format!("--config={}", settings.display()),
        &format!("--egress-record={}", record.display()),
        "--json",
        "--",
        "bash",
        "-c",
        SCRIPT,
    ]);
    command.finish(6 * TIMEOUT)
}

/// Returns the output of one check.
#[track_caller]
fn output<'t>(text: &'t str, name: &str) -> &'t str {
    let mut lines = text.lines().filter_map(|line| line.split_once('\t'));
    let (_, result) = lines.find(|(found, _)| *found == name).unwrap_or_else(|| {
        panic!("the script printed nothing for {name}: {text}");
    });
    result
}

#[test]
fn a_job_uses_containers_as_on_any_runner() {
    let host = Host::with_image("runner");
    let web = WebServer::new("from outside\n");
    let ending = run(&host, &web);
    let text = ending.assert_code(0).text();
    eprintln!("first response to `docker version` after {} ms", output(&text, "first-answer"));
    for (name, expected) in [
        ("user", "runner"),
        // The socket exists, but the engine does not run yet.
        ("before", "waits"),
        ("after", "runs"),
        // Jobs without containers.
        ("c", "hello from C"),
        ("python", "0.1.2.3.4"),
        ("git", "first"),
        // `docker run`, with limits, on the default network.
        ("default-network", "1500"),
        ("limit", "67108864"),
        // The output of a `docker build` step.
        ("built", "built in a container"),
        // The published port on loopback, and the name on the workflow's network.
        ("service-by-port", "hello from C"),
        ("service-by-name", "hello from C"),
        // A workflow's network: the engine's configuration, and its effect.
        ("network-option", "1500"),
        ("network", "1500"),
        // The policy applies in containers, too.
        ("allowed", "from outside"),
        ("refused", "refused"),
    ] {
        assert_eq!(output(&text, name), expected, "{name}: {ending:?}");
    }
    let record = fs::read_to_string(host.state().join("record/egress.jsonl")).unwrap();
    let refusal = record.lines().find(|line| line.contains("denied.test"));
    assert!(refusal.is_some_and(|line| line.contains("refuse")), "{record}");
    host.assert_clean();
}

/// Makes an image of one program and runs it, as a job with `container:` does first.
const CONTAINER: &str = "\
    set -e; mkdir root; echo 'int puts(const char*); int main() { puts(\"in a container\"); }' >m.c; \
    gcc -static -w -o root/main m.c; tar -C root -c . | docker import - own >/dev/null; \
    docker run --rm own /main";

/// The engine starts with its first client, right after the microVM is ready. Runs a hundred microVMs,
/// two at a time.
#[test]
#[ignore = "takes minutes"]
fn a_container_runs_in_a_microvm_that_was_just_booted() {
    let work = || {
        let host = Host::with_image("runner");
        for round in 0..50 {
            let arguments = ["--image=runner", "--memory=1G", "--", "bash", "-c", CONTAINER];
            let ending = host.start(arguments).finish(6 * TIMEOUT);
            assert_eq!(ending.code(), 0, "round {round}: {ending:?}");
            assert_eq!(ending.text(), "in a container\n", "round {round}: {ending:?}");
        }
        host.assert_clean();
    };
    let other = std::thread::spawn(work);
    work();
    other.join().unwrap();
}
