//! Builds an image with a runner from the GitHub simulator, pinned downloads and hooks.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

use mayfly_github_sim::contract::Contract;
use mayfly_github_sim::{RunnerArchive, Settings, Simulator};

use super::{Fixture, RECIPE, built, inside, text};

const RUNNER: &str = r##"
[runner]
version = "latest"
[[files]]
path = "/etc/mayfly/job-started.d/10-note"
mode = "0755"
content = "#!/bin/sh\n"
[[hooks]]
content = """
#!/bin/sh
set -eu
# Root of the new system, with no network but its own loopback device.
[ "$(id -u)" = 0 ]
[ "$(grep -c : /proc/net/dev)" = 1 ]
echo root >/etc/hooked
"""
[[hooks]]
user = "runner"
content = """
#!/bin/sh
id -un >hooked
"""
"##;

/// Returns the fake runner's archive and its digest.
fn archive(directory: &Path) -> (Vec<u8>, String) {
    let pack = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/github-sim/pack-runner");
    let path = directory.join("runner.tar.gz");
    assert!(Command::new(pack).arg(&path).status().unwrap().success());
    let digest = digest_of(&path);
    (std::fs::read(&path).unwrap(), digest)
}

fn digest_of(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    text(&output.stdout)[..64].to_owned()
}

fn simulator(bytes: Vec<u8>, sha256: &str) -> Simulator {
    Simulator::start(Settings {
        tokens: vec!["ghp_simulated".to_owned()],
        runner: Some(RunnerArchive {
            version: "2.999.0".to_owned(),
            bytes,
            sha256: sha256.to_owned(),
            token: "for-the-download".to_owned(),
        }),
        ..Settings::default()
    })
    .unwrap()
}

/// Serves one file, once.
fn serve(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}/tool", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(bytes).unwrap();
    });
    address
}

/// Builds with the runner from the simulator.
fn build(fixture: &Fixture, github: &Simulator) -> Output {
    let settings = format!(
        "[github]\nurl = \"{0}/octo\"\napi = \"{0}\"\ntoken_file = \"{1}\"\n[host]\nallow_emulation = \
         true\n[[pool]]\nname = \"small\"\nlabels = [\"mayfly\"]\nimage = \"tiny\"\nmax = 1\n",
        github.url(),
        fixture.path("token").display()
    );
    super::fs::write(fixture.path("mayfly.toml"), settings).unwrap();
    super::fs::write(fixture.path("token"), "ghp_simulated\n").unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    super::fs::set_permissions(fixture.path("token"), permissions).unwrap();
    fixture.build().arg("--config").arg(fixture.path("mayfly.toml")).output().unwrap()
}

#[test]
fn the_newest_runner_is_downloaded_tried_and_described() {
    let fixture = Fixture::new();
    let (bytes, sha256) = archive(fixture.directory.path());
    let github = simulator(bytes, &sha256);
    let tool = fixture.path("tool");
    super::fs::write(&tool, "#!/bin/sh\n").unwrap();
    let download = format!(
        "[[downloads]]\nname = 'tool'\nversion = '1.2'\nurl = '{}'\nsha256 = '{}'\npath = \
         '/usr/local/bin/tool'\n",
        serve(b"#!/bin/sh\n"),
        digest_of(&tool)
    );
    super::fs::write(fixture.path("tiny.toml"), format!("{RECIPE}{RUNNER}{download}")).unwrap();
    let output = build(&fixture, &github);
    built(&output);
    assert!(text(&output.stderr).contains("fetching the runner 2.999.0"));
    if let Some(contract) = Contract::from_environment().unwrap()
        && let Err(violations) = github.validate(&contract)
    {
        panic!("{violations:?}");
    }

    let shown = fixture.run(["inspect", "tiny", "--json"]);
    // The fake runner has a fixed date, so eventually a warning about its age is printed.
    let manifest: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let runner = &manifest["runner"];
    assert_eq!(runner["version"], "2.999.0");
    assert_eq!(runner["sha256"], sha256);
    assert_eq!(runner["released"], 1_793_491_200);
    assert_eq!(manifest["downloads"][0]["name"], "tool");

    let directory = fixture.path("store").join("tiny/latest");
    let rootfs = directory.join("rootfs.img");
    for path in ["", "/bin", "/bin/Runner.Listener", "/run.sh"] {
        let owner = inside(&rootfs, &format!("stat /home/runner/actions-runner{path}"));
        assert!(owner.contains("User:  1001   Group:  1001"), "{path}: {owner}");
    }
    // The files that the runner wrote during its test are gone, and so are the hooks.
    let listed = inside(&rootfs, "ls /home/runner/actions-runner");
    assert!(listed.contains("run.sh") && !listed.contains("_diag"), "{listed}");
    assert!(!inside(&rootfs, "ls /run").contains("hook"));
    assert_eq!(inside(&rootfs, "cat /etc/hooked"), "root\n");
    assert_eq!(inside(&rootfs, "cat /home/runner/hooked"), "runner\n");
    let hook = "/usr/local/libexec/mayfly/job-started.sh";
    assert_eq!(
        inside(&rootfs, "cat /home/runner/actions-runner/.env"),
        format!("ACTIONS_RUNNER_HOOK_JOB_STARTED={hook}\n")
    );
    assert!(inside(&rootfs, &format!("cat {hook}")).contains("/etc/mayfly/job-started.d/*"));
    assert!(inside(&rootfs, "stat /usr/local/bin/tool").contains("Mode:  0755"));
}

#[test]
fn an_unexpected_runner_is_rejected_before_packages_are_installed() {
    let fixture = Fixture::new();
    super::fs::write(fixture.path("tiny.toml"), format!("{RECIPE}[runner]\nversion = 'latest'\n"))
        .unwrap();
    let refused = |output: &Output, code: i32, parts: &[&str]| {
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{message}");
        for part in parts {
            assert!(message.contains(part), "{part} in {message}");
        }
        assert!(!message.contains("installing packages"), "{message}");
        assert!(fixture.workspaces().is_empty());
    };
    let output = fixture.build().output().unwrap();
    refused(&output, 78, &["does not specify which runner", "--runner-archive"]);

    let (bytes, sha256) = archive(fixture.directory.path());
    let path = fixture.path("runner.tar.gz");
    let local = |settings: &[&str]| {
        let mut command = fixture.build();
        command.arg("--runner-archive").arg(&path);
        command.args(settings.iter().flat_map(|setting| ["--set", setting])).output().unwrap()
    };
    let other = "0".repeat(64);
    let expected = format!("runner.sha256={other}");
    let output = local(&[&expected, "runner.version=2.999.0"]);
    refused(&output, 65, &["runner.tar.gz", &sha256, &other]);

    let github = simulator(bytes.clone(), &other);
    refused(&build(&fixture, &github), 65, &[&github.url(), &sha256, &other]);

    super::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refused(&local(&[]), 65, &["runner.tar.gz", "damaged"]);
}
