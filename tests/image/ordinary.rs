//! Builds the image `runner` as an ordinary user: the result has the same bytes as root's.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Fixture, built};

/// An unused user and group id.
const USER: u32 = 61_002;

/// Runs `$1…` as that user, who has a name and a range of ids in this namespace only. `$0` is an
/// empty directory.
const AS_USER: &str = "
    for file in passwd subuid subgid; do
        cp /etc/$file \"$0/$file\"
    done
    echo 'mayfly-test:x:61002:61002::/nonexistent:/bin/sh' >>\"$0/passwd\"
    echo 'mayfly-test:1000000000:65536' | tee -a \"$0/subuid\" >>\"$0/subgid\"
    for file in passwd subuid subgid; do
        mount --bind \"$0/$file\" /etc/$file
    done
    exec setpriv --reuid=61002 --regid=61002 --clear-groups -- \"$@\"
";

/// Returns the agent of the tests' images.
fn agent() -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_mayfly")).join("../../libexec/mayfly/mayfly-guest");
    std::env::var_os("MAYFLY_GUEST").map_or(beside, PathBuf::from)
}

/// Takes more than half a minute: run by `scripts/test --long`.
#[test]
#[ignore = "takes minutes"]
fn an_ordinary_user_builds_the_bytes_that_root_builds() {
    assert!(nix::unistd::geteuid().is_root(), "this test becomes another user: run it as root");
    let images = std::env::var_os("MAYFLY_TEST_IMAGES");
    let images = images.expect("MAYFLY_TEST_IMAGES names no image store: run scripts/test");
    let of_root = fs::read_link(PathBuf::from(images).join("runner/latest")).unwrap();

    // Copies, because the originals may be accessible to root only.
    let fixture = Fixture::new();
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let archive = fixture.path("runner.tar.gz");
    let pack = project.join("tests/github-sim/pack-runner");
    assert!(Command::new(pack).arg(&archive).status().unwrap().success());
    fs::copy(env!("CARGO_BIN_EXE_mayfly"), fixture.path("mayfly")).unwrap();
    fs::copy(agent(), fixture.path("agent")).unwrap();
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(project.join("images")).arg(fixture.path("images"));
    assert!(copy.status().unwrap().success());
    let [etc, state, store] = ["etc", "state", "store"].map(|name| fixture.path(name));
    fs::create_dir(&etc).unwrap();
    for directory in [&state, &store] {
        fs::create_dir(directory).unwrap();
        chown(directory, Some(USER), Some(USER)).unwrap();
    }
    fs::set_permissions(fixture.directory.path(), PermissionsExt::from_mode(0o755)).unwrap();

    let mut build = Command::new("unshare");
    build.args(["--mount", "--propagation=private", "sh", "-ec", AS_USER]).arg(etc);
    build.arg(fixture.path("mayfly")).args(["image", "build", "--runner-archive"]).arg(archive);
    build.arg(fixture.path("images/runner/image.toml"));
    build.env("MAYFLY_STATE_DIR", state).env("MAYFLY_IMAGE_STORE", store);
    build.env("MAYFLY_GUEST", fixture.path("agent")).env_remove("SOURCE_DATE_EPOCH");
    build.current_dir(fixture.directory.path());
    let reference = built(&build.output().unwrap());
    assert_eq!(reference, format!("runner@{}", of_root.display()));
    // Files of the user's id range are removed with the build's directory.
    assert!(fixture.workspaces().is_empty());
}
