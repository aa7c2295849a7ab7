//! The subcommands that boot images: `mayfly image audit` and `refresh`, and `rollback` after it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mayfly_image::hardening::CONTROLS;
use serde_json::{Value, json};

use crate::support::image::{TestImage, base, sha256};
use crate::support::{CommandOutput, Host, Running};

/// The time limit for a build and two boots on a busy machine.
const WORK: Duration = Duration::from_secs(900);

/// Runs `mayfly image` with these arguments to its exit.
fn image(host: &Host, arguments: &[&str]) -> CommandOutput {
    let mut command = host.mayfly(["image"].iter().chain(arguments));
    // If it is not beside `mayfly`: the agent that `base` was built with.
    if let Some(agent) = std::env::var_os("MAYFLY_GUEST") {
        command.env("MAYFLY_GUEST", agent);
    }
    Running::start(&mut command).finish(WORK)
}

/// Parses the JSON output.
#[track_caller]
fn json(ending: &CommandOutput) -> Value {
    serde_json::from_slice(&ending.stdout).unwrap_or_else(|_| panic!("no JSON: {ending:?}"))
}

/// Installs the image `weak`: `base` with a manifest that claims a kernel argument that is not
/// passed at boot.
fn install_weak(host: &Host) {
    let mut manifest: Value =
        serde_json::from_slice(&fs::read(base().join("manifest.json")).unwrap()).unwrap();
    manifest["name"] = "weak".into();
    let arguments = manifest["kernel"]["command_line"].as_str().unwrap();
    assert!(arguments.contains("slab_nomerge"), "{arguments}");
    manifest["kernel"]["command_line"] = arguments.replace("slab_nomerge", "").into();
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let digest = sha256(&manifest);
    let directory = host.images().join("weak").join(&digest);
    fs::create_dir_all(&directory).unwrap();
    for part in ["kernel", "initramfs", "rootfs.img", "sbom.spdx.json", "sbom.cdx.json"] {
        symlink(base().join(part), directory.join(part)).unwrap();
    }
    fs::write(directory.join("manifest.json"), manifest).unwrap();
    symlink(digest, host.images().join("weak/latest")).unwrap();
}

#[test]
fn an_audit_shows_every_control_and_fails_if_one_is_missing() {
    let host = Host::new();
    let audited = image(&host, &["audit", "base", "--json"]);
    let report = json(audited.assert_code(0));
    assert_eq!((&report["name"], &report["passed"]), (&"base".into(), &true.into()));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), CONTROLS.iter().map(|part| part.len()).sum::<usize>());
    for row in rows {
        assert_eq!(row["result"], "pass", "{row}");
        assert_ne!(row["evidence"], "", "{row}");
    }
    host.assert_clean();

    install_weak(&host);
    let audited = image(&host, &["audit", "weak"]);
    let text = audited.assert_code(1).text();
    let failed: Vec<_> = text.lines().filter(|line| line.starts_with("FAIL")).collect();
    assert_eq!(failed.len(), 1, "{text}");
    assert!(
        failed[0].contains("kernel.slabs-apart") && failed[0].contains("slab_nomerge"),
        "{text}"
    );
    let count = format!("{} passed, 1 failed, 0 off", rows.len() - 1);
    assert!(text.lines().last().is_some_and(|line| line.ends_with(&count)), "{text}");
    host.assert_clean();
}

/// Creates a host with an unbootable `base` of the same recipe: nothing should boot it.
fn with_unbootable_base() -> (Host, String) {
    let host = Host::bare();
    let mut image = TestImage::unbootable();
    image.name = "base";
    image.install(&host);
    let digest = latest_build(&host);
    (host, digest)
}

/// Returns the build that the name `base` refers to.
fn latest_build(host: &Host) -> String {
    let link = fs::read_link(host.images().join("base/latest")).unwrap();
    link.into_os_string().into_string().unwrap()
}

/// Returns the number of builds of `base`.
fn builds(host: &Host) -> usize {
    let entries = fs::read_dir(host.images().join("base")).unwrap();
    entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_dir()).count()
}

/// Writes the recipe of `base` with an addition.
fn recipe(host: &Host, name: &str, addition: &str) -> PathBuf {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/base/image.toml");
    let text = fs::read_to_string(&base).unwrap();
    let profiles = base.parent().unwrap().join("../profiles");
    let text = text.replace("../profiles", profiles.to_str().unwrap());
    let path = host.root().join(name);
    fs::write(&path, format!("{text}\n{addition}")).unwrap();
    path
}

/// Runs `mayfly image refresh base --json` with a recipe and further options.
fn refresh(host: &Host, recipe: &Path, options: &[&str]) -> CommandOutput {
    let words = ["refresh", "base", "--json", "--recipe", recipe.to_str().unwrap()];
    image(host, &[&words, options].concat())
}

#[test]
fn an_image_is_refreshed_only_if_something_changed() {
    let (host, before) = with_unbootable_base();
    let ending = image(&host, &["refresh", "base", "--json"]);
    let refreshed = json(ending.assert_code(0));
    assert_eq!(refreshed["reasons"], json!([]), "{refreshed}");
    assert_eq!((&refreshed["candidate"], &refreshed["moved"]), (&Value::Null, &false.into()));
    assert_eq!(refreshed["before"], *before);

    let changed = recipe(&host, "changed.toml", "[[files]]\npath = \"/etc/x\"\ncontent = \"x\"\n");
    let ending = refresh(&host, &changed, &["--check"]);
    let refreshed = json(ending.assert_code(1));
    assert_eq!(refreshed["reasons"], json!(["recipe"]), "{refreshed}");
    assert_eq!(refreshed["candidate"], Value::Null);
    assert_eq!((latest_build(&host), builds(&host)), (before, 1));
    image(&host, &["rollback", "base"]).assert_code(66).assert_stderr_has("base");
}

/// Two builds, each booted twice. Runs with `scripts/test --long`.
#[test]
#[ignore = "takes minutes"]
fn a_name_moves_only_to_builds_that_pass_and_back() {
    let (host, before) = with_unbootable_base();
    let hook = "[[hooks]]\ncontent = \"#!/bin/sh\\necho 'exit 1' >/usr/bin/git\\n\"\n";
    let broken = recipe(&host, "broken.toml", hook);
    let ending = refresh(&host, &broken, &[]);
    let refreshed = json(ending.assert_code(1));
    assert_eq!(refreshed["reasons"], json!(["recipe"]), "{refreshed}");
    let rows = refreshed["audit"]["rows"].as_array().unwrap();
    assert!(!rows.is_empty() && rows.iter().all(|row| row["result"] == "pass"), "{refreshed}");
    assert_eq!(refreshed["smoke"]["passed"], false, "{refreshed}");
    let detail = refreshed["smoke"]["detail"].as_str().unwrap();
    assert!(detail.starts_with("git: "), "{detail}");
    assert_eq!((&refreshed["moved"], latest_build(&host)), (&false.into(), before.clone()));
    // It is kept for inspection.
    let candidate = format!("base@{}", refreshed["candidate"].as_str().unwrap());
    image(&host, &["inspect", &candidate]).assert_code(0);

    let greeting = "[[files]]\npath = \"/etc/greeting\"\ncontent = \"hello\\n\"\n";
    let good = recipe(&host, "good.toml", greeting);
    let ending = refresh(&host, &good, &[]);
    let refreshed = json(ending.assert_code(0));
    assert_eq!(refreshed["smoke"]["passed"], true, "{refreshed}");
    assert_eq!(refreshed["moved"], true);
    let after = refreshed["candidate"].as_str().unwrap().to_owned();
    assert_eq!((latest_build(&host), builds(&host)), (after.clone(), 3));
    host.run(["--image", "base", "--", "cat", "/etc/greeting"])
        .assert_code(0)
        .assert_output("hello\n");
    assert_eq!(json(refresh(&host, &good, &[]).assert_code(0))["reasons"], json!([]));

    image(&host, &["rollback", "base"]).assert_code(0);
    assert_eq!(latest_build(&host), before);
    image(&host, &["rollback", "base"]).assert_code(0);
    assert_eq!(latest_build(&host), after);
    host.assert_clean();
}
