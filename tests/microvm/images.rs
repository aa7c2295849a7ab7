//! Signing, exporting, importing, and garbage-collecting images. Signatures are also checked
//! against the `minisign` program.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::host::{Devices, ORDINARY_USER};
use crate::support::image::TestImage;
use crate::support::{CommandOutput, Host, Running, TIMEOUT, until};

/// The time limit for hashing and compressing a gigabyte, or for deriving a key from a password,
/// which is slow by design: minutes in an unoptimized build.
const WORK: Duration = Duration::from_secs(200);

/// Runs `mayfly image` with these arguments to its exit.
fn image(host: &Host, arguments: &[&str]) -> CommandOutput {
    Running::start(&mut host.mayfly(["image"].iter().chain(arguments))).finish(WORK)
}

/// Creates a key pair with minisign. Returns the secret key's file, the public key's file, and the
/// public key.
fn keys(host: &Host, name: &str, password: Option<&str>) -> (String, String, String) {
    let [secret, public] = ["key", "pub"].map(|end| host.root().join(format!("{name}.{end}")));
    let mut command = Command::new("minisign");
    command.arg("-G").arg("-s").arg(&secret).arg("-p").arg(&public);
    let input = host.root().join("input");
    let typed = password.map(|password| format!("{password}\n{password}\n"));
    if typed.is_none() {
        command.arg("-W");
    }
    fs::write(&input, typed.unwrap_or_default()).unwrap();
    let made = command.stdin(fs::File::open(input).unwrap()).output();
    let made = made.expect("minisign is not installed: run scripts/test");
    assert!(made.status.success(), "{made:?}");
    let key = fs::read_to_string(&public).unwrap().lines().nth(1).unwrap().to_owned();
    (text(&secret), text(&public), key)
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Installs an unbootable image `name` that contains `byte`. Returns its path.
fn install(host: &Host, name: &'static str, byte: u8) -> PathBuf {
    let mut image = TestImage::unbootable();
    image.name = name;
    image.kernel = vec![byte; 3];
    image.install(host)
}

#[test]
fn only_signed_images_are_accepted() {
    let here = Host::bare();
    let directory = install(&here, "hollow", b'a');
    let (secret, public, key) = keys(&here, "good", None);
    let (_, other, _) = keys(&here, "other", None);
    image(&here, &["verify", "hollow", "--key", &public])
        .assert_code(77)
        .assert_stderr_has("not signed");
    image(&here, &["sign", "hollow", "--key", &secret]).assert_code(0);
    let verified = image(&here, &["verify", "hollow", "--key", &public, "--json"]);
    let verified: Value = serde_json::from_str(&verified.assert_code(0).text()).unwrap();
    assert_eq!(verified["signed_with"], key);
    image(&here, &["verify", "hollow", "--key", &other])
        .assert_code(77)
        .assert_stderr_has("signed with the untrusted key");

    // A signature with one changed letter is invalid.
    let file = directory.join("manifest.json.minisig");
    let good = fs::read_to_string(&file).unwrap();
    let line = good.lines().nth(1).unwrap();
    let letter = if &line[40..41] == "A" { "B" } else { "A" };
    let bad = good.replace(line, &[&line[..40], letter, &line[41..]].concat());
    fs::remove_file(&file).unwrap();
    fs::write(&file, bad).unwrap();
    image(&here, &["verify", "hollow", "--key", &public])
        .assert_code(77)
        .assert_stderr_has("signature");
    fs::write(&file, good).unwrap();
    image(&here, &["verify", "hollow", "--key", &public]).assert_code(0);

    // minisign agrees, in both directions.
    let minisign = |arguments: &[&str]| {
        let run = Command::new("minisign").args(arguments).current_dir(&directory).output();
        run.unwrap().status.success()
    };
    assert!(minisign(&["-V", "-q", "-m", "manifest.json", "-P", &key]));
    fs::remove_file(directory.join("manifest.json.minisig")).unwrap();
    assert!(minisign(&["-S", "-W", "-s", &secret, "-m", "manifest.json"]));
    image(&here, &["verify", "hollow", "--key", &key]).assert_code(0);

    let doctor = |key: &str| {
        let run = Running::start(&mut here.mayfly(["doctor", "--json", "--image-key", key]));
        let checks: Value = serde_json::from_str(&run.finish(TIMEOUT).text()).unwrap();
        let check = checks.as_array().unwrap().iter().find(|check| check["subject"] == "images");
        check.unwrap()["outcome"].clone()
    };
    assert_eq!((doctor(&public), doctor(&other)), ("good".into(), "bad".into()));

    // A host that requires a signature boots nothing else, and creates nothing.
    let run = |keys: &str, options: &[&str]| {
        let mut command = here.command(options.iter().chain(&["--image", "hollow", "--", "true"]));
        Running::start(command.env("MAYFLY_IMAGE_KEYS", keys)).finish(TIMEOUT)
    };
    run(&other, &[]).assert_code(77).assert_stderr_has("is not trusted");
    run("", &["--image-key", &other]).assert_code(77);
    run(&format!("{other},nonsense"), &[])
        .assert_code(64)
        .assert_stderr_has("not a minisign public key");
    here.assert_clean();
    // The signature is accepted, and the boot fails: this image is unbootable.
    let failed = run(&format!("{other},{key}"), &["--boot-timeout", "1s"]);
    assert!(!failed.stderr.contains("trusted"), "{}", failed.stderr);
    assert_ne!(failed.code(), 77);
}

/// Adds a runner of the given age to a manifest.
fn with_runner(manifest: &mut Value, days: u64) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    manifest["runner"] = json!({
        "version": "2.335.1",
        "sha256": "0".repeat(64),
        "released": now - days * 86_400,
        "directory": "/home/runner/actions-runner",
    });
}

#[test]
fn a_runner_that_github_may_soon_reject_is_reported() {
    let host = Host::bare();
    let mut old = TestImage::unbootable();
    old.name = "old";
    old.change = |manifest| with_runner(manifest, 25);
    old.install(&host);
    let mut young = TestImage::unbootable();
    young.name = "young";
    young.change = |manifest| with_runner(manifest, 5);
    young.install(&host);
    let warning = "runner 2.335.1 in the image is 25 days old";
    image(&host, &["inspect", "old"]).assert_code(0).assert_stderr_has(warning);
    let inspected = image(&host, &["inspect", "young"]);
    assert_eq!(inspected.assert_code(0).stderr, "");
}

#[test]
fn a_protected_key_signs_with_its_password_only() {
    let host = Host::bare();
    install(&host, "hollow", b'a');
    let (secret, public, _) = keys(&host, "protected", Some("right"));
    let sign = |password: Option<&str>| {
        let mut command = host.mayfly(["image", "sign", "hollow", "--key", &secret]);
        if let Some(password) = password {
            command.env("MAYFLY_SIGNING_PASSWORD", password);
        }
        Running::start(&mut command).finish(WORK)
    };
    sign(Some("wrong")).assert_code(65).assert_stderr_has("wrong password");
    image(&host, &["verify", "hollow", "--key", &public]).assert_code(77);
    let ending = sign(Some("right"));
    ending.assert_code(0);
    assert!(!ending.stderr.contains("right") && !ending.text().contains("right"));
    image(&host, &["verify", "hollow", "--key", &public]).assert_code(0);
}

#[test]
fn an_archive_transports_an_image_and_a_damaged_one_is_rejected_also_for_an_ordinary_user() {
    let here = Host::bare();
    let mut there = Host::bare();
    let directory = install(&here, "hollow", b'a');
    let (secret, _, key) = keys(&here, "good", None);
    image(&here, &["sign", "hollow", "--key", &secret]).assert_code(0);
    let file = there.root().join("hollow.tar.zst");
    image(&here, &["export", "hollow", &text(&file)]).assert_code(0);
    image(&here, &["export", "hollow", &text(&file)]).assert_code(73).assert_stderr_has("exists");
    let archive = fs::read(&file).unwrap();
    assert!(archive.len() < 64 << 10, "a megabyte of nothing is small: {}", archive.len());

    there.run_as_ordinary_user(&Devices::default());
    let bad = there.root().join("bad.tar.zst");
    for at in [3, archive.len() / 2, archive.len() - 1] {
        let mut damaged = archive.clone();
        damaged[at] ^= 0x10;
        fs::write(&bad, damaged).unwrap();
        image(&there, &["import", &text(&bad)]).assert_code(65).assert_stderr_has("can't import");
    }
    fs::write(&bad, &archive[..archive.len() - 1]).unwrap();
    image(&there, &["import", &text(&bad)]).assert_code(65).assert_stderr_has("is truncated");
    assert_eq!(image(&there, &["list", "--json"]).text().trim(), "[]");

    let (_, _, other) = keys(&here, "other", None);
    image(&there, &["import", "--image-key", &other, &text(&file)]).assert_code(77);
    image(&there, &["import", "--image-key", &key, &text(&file), "--image-key", &other])
        .assert_code(0);
    let digest = directory.file_name().unwrap().to_str().unwrap();
    let image_there = there.images().join("hollow").join(digest);
    assert_eq!(fs::metadata(&image_there).unwrap().uid(), ORDINARY_USER);
    image(&there, &["verify", "hollow", "--key", &key]).assert_code(0);

    // A changed part is detected in the store, and is not exported.
    let kernel = image_there.join("kernel");
    fs::remove_file(&kernel).unwrap();
    fs::write(&kernel, "bad").unwrap();
    chown(&kernel, Some(ORDINARY_USER), Some(ORDINARY_USER)).unwrap();
    image(&there, &["verify", "hollow"]).assert_code(65).assert_stderr_has("kernel");
    let further = there.root().join("state/further.tar.zst");
    image(&there, &["export", "hollow", &text(&further)]).assert_code(65);
    assert!(!further.exists());
}

#[test]
fn an_import_that_is_killed_leaves_nothing() {
    let (here, there) = (Host::bare(), Host::bare());
    let mut image_here = TestImage::unbootable();
    // Incompressible, so that half of the archive is half of the image.
    image_here.rootfs = (0..1u64 << 17).flat_map(|n| Sha256::digest(n.to_le_bytes())).collect();
    image_here.install(&here);
    let file = here.root().join("hollow.tar.zst");
    image(&here, &["export", "hollow", &text(&file)]).assert_code(0);
    let archive = fs::read(file).unwrap();
    let mut import = there.mayfly(["image", "import", "-"]);
    let mut import = Running::start_with(&mut import, Stdio::piped());
    let mut stdin = import.stdin();
    stdin.write_all(&archive[..archive.len() / 2]).unwrap();
    let written = || {
        let files = fs::read_dir(format!("/proc/{}/fd", import.pid())).unwrap();
        let mut files = files.filter_map(|file| fs::metadata(file.unwrap().path()).ok());
        files.any(|file| file.nlink() == 0 && file.len() == 4 << 20 && file.blocks() > 0)
    };
    until("the import writes", TIMEOUT, || written().then_some(()));
    import.signal(Signal::SIGKILL);
    import.finish(TIMEOUT);
    let left: Vec<_> = fs::read_dir(there.images()).unwrap().collect();
    assert_eq!(left.len(), 1, "not only the lock remains: {left:?}");
}

#[test]
fn an_imported_image_runs_and_is_kept_while_in_use() {
    let (here, there) = (Host::new(), Host::bare());
    let file = text(&there.root().join("base.tar.zst"));
    image(&here, &["export", "base", &file]).assert_code(0);
    let imported = image(&there, &["import", &file]);
    let imported = imported.assert_code(0).text().trim().to_owned();
    assert_eq!(
        fs::canonicalize(there.images().join("base/latest")).unwrap().file_name(),
        fs::canonicalize(here.images().join("base/latest")).unwrap().file_name()
    );
    let (secret, public, _) = keys(&there, "good", None);
    image(&there, &["sign", "base", "--key", &secret]).assert_code(0);
    let script = "echo up; read end";
    let options = ["--image-key", &public, "-i", "--", "sh", "-c", script];
    let mut running = Running::start_with(&mut there.command(options), Stdio::piped());
    running.wait_for_output("up");

    // After two more builds, neither its name nor a rollback refers to it.
    for byte in [b'a', b'b'] {
        let elsewhere = Host::bare();
        install(&elsewhere, "base", byte);
        let file = text(&elsewhere.root().join("base.tar.zst"));
        image(&elsewhere, &["export", "base", &file]).assert_code(0);
        image(&there, &["import", &file]).assert_code(0);
    }
    let kept = |options: &[&str]| {
        let output = image(&there, &[&["gc", "--json"], options].concat());
        let report: Value = serde_json::from_str(&output.assert_code(0).text()).unwrap();
        let builds = report["images"].as_array().unwrap().clone();
        let build = builds
            .into_iter()
            .find(|build| imported == format!("base@{}", build["digest"].as_str().unwrap()));
        build.map(|build| build["kept"].clone())
    };
    assert_eq!(kept(&[]), Some("in-use".into()));
    running.feed(b"\n".to_vec());
    running.finish(TIMEOUT).assert_code(0);
    assert_eq!(kept(&["--dry-run"]), Some(Value::Null));
    assert_eq!(kept(&["--keep", "3"]), Some("recent".into()));
    assert_eq!(kept(&[]), Some(Value::Null));
    assert_eq!(kept(&[]), None);
    let before = fs::read_link(there.images().join("base/latest")).unwrap();
    image(&there, &["rollback", "base"]).assert_code(0);
    assert_ne!(fs::read_link(there.images().join("base/latest")).unwrap(), before);
    image(&there, &["rollback", "base"]).assert_code(0);
    assert_eq!(fs::read_link(there.images().join("base/latest")).unwrap(), before);
}
