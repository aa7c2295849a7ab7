//! Builds real images, so it needs the requirements of a build: mmdebstrap, namespaces, and a
//! reachable mirror of Debian's packages.

#![expect(
    clippy::unwrap_used,
    reason = "a test may panic; clippy.toml only knows functions marked so"
)]

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "image/ordinary.rs"]
mod ordinary;
#[path = "image/runner.rs"]
mod runner;

/// The timeout of every wait.
const TIMEOUT: Duration = Duration::from_secs(300);

const RECIPE: &str = r#"
name = "tiny"
profiles = ["profiles/kernel.toml"]
suite = "trixie"
size = "512M"
[kernel]
arguments = ["audit=0"]
[[users]]
name = "runner"
uid = 1001
home = "/home/runner"
shell = "/bin/bash"
[[files]]
path = "/home/runner/deep/greeting"
owner = "runner"
content = "hello\n"
"#;

const PROFILE: &str = r#"
modules = ["virtio_blk", "ext4"]
[kernel]
package = "linux-image-cloud-amd64"
"#;

struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("tiny.toml"), RECIPE).unwrap();
        fs::create_dir(directory.path().join("profiles")).unwrap();
        fs::write(directory.path().join("profiles/kernel.toml"), PROFILE).unwrap();
        fs::write(directory.path().join("agent"), static_program()).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn mayfly(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mayfly"));
        command.arg("image").env("MAYFLY_IMAGE_STORE", self.path("store"));
        command.env("MAYFLY_GUEST", self.path("agent")).env_remove("SOURCE_DATE_EPOCH");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run<const N: usize>(&self, arguments: [&str; N]) -> Output {
        self.mayfly().args(arguments).output().unwrap()
    }

    fn build(&self) -> Command {
        let mut command = self.mayfly();
        command.arg("build").arg(self.path("tiny.toml"));
        command
    }

    /// Returns the entries of the store.
    fn store(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path("store")) else { return Vec::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Asserts that the store has neither images nor working directories.
    #[track_caller]
    fn assert_holds_nothing(&self) {
        let mut names = self.store();
        names.retain(|name| ![".lock", ".downloads"].contains(&name.as_str()));
        assert_eq!(names, Vec::<String>::new());
    }

    fn workspaces(&self) -> Vec<String> {
        let mut names = self.store();
        names.retain(|name| name.starts_with(".building-"));
        names
    }
}

/// Returns an ELF header and a segment, which pass as a static program.
fn static_program() -> Vec<u8> {
    let mut program = vec![0; 64 + 56];
    program[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    program[16] = 2; // an executable
    program[18] = 62; // for x86-64
    program[20] = 1;
    program[24] = 0x40; // entry point
    program[32] = 64; // where the program headers are
    program[52] = 64; // length of this header
    program[54] = 56; // length of a program header
    program[56] = 1; // how many there are
    program[64] = 1; // a segment to load
    program
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Returns the reference that a successful build prints.
fn built(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout).trim().to_owned()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn bytes_at(path: &Path, offset: u64, length: usize) -> Vec<u8> {
    let mut file = fs::File::open(path).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes).unwrap();
    bytes
}

fn inside(rootfs: &Path, request: &str) -> String {
    let output = Command::new("/sbin/debugfs").arg("-R").arg(request).arg(rootfs).output();
    text(&output.unwrap().stdout)
}

#[test]
fn a_recipe_becomes_an_image_that_is_shown_checked_and_removed() {
    let fixture = Fixture::new();
    let setting = "kernel.guest_modules+=br_netfilter";
    let output = fixture.build().args(["--set", setting]).output().unwrap();
    let reference = built(&output);
    assert!(text(&output.stderr).contains("installing packages"), "progress in plain lines");
    assert!(fixture.workspaces().is_empty());

    let listed = fixture.run(["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    let directory = PathBuf::from(listed[0]["directory"].as_str().unwrap());
    assert_eq!(listed[0]["newest"], true);
    assert_eq!(format!("tiny@{}", listed[0]["digest"].as_str().unwrap()), reference);

    let manifest = fixture.run(["inspect", "tiny", "--json"]);
    let manifest: serde_json::Value = serde_json::from_slice(&manifest.stdout).unwrap();
    let arguments = manifest["kernel"]["command_line"].as_str().unwrap();
    assert!(arguments.starts_with("init_on_alloc=1 "), "hardened: {arguments}");
    assert!(arguments.ends_with(" audit=0"), "the recipe's own come last: {arguments}");
    let modules = manifest["kernel"]["modules"].as_array().unwrap();
    assert!(modules.iter().any(|module| module == "virtio_blk"), "{modules:?}");
    assert_eq!(manifest["inputs"]["settings"][0], setting);
    assert_eq!(
        manifest["inputs"]["effective"]["modules"],
        serde_json::json!(["virtio_blk", "ext4"])
    );
    let guest_modules = manifest["settings"]["modules"].as_array().unwrap();
    let packages = manifest["packages"].as_array().unwrap();
    assert!(packages.iter().any(|package| package["name"] == "base-files"));
    assert!(!packages.iter().any(|package| package["name"] == "initramfs-tools"));
    assert_sboms_have(&fixture, packages.len());

    let rootfs = directory.join("rootfs.img");
    assert_eq!(bytes_at(&directory.join("kernel"), 0, 4), b"\x7fELF");
    assert_eq!(bytes_at(&directory.join("initramfs"), 0, 6), b"070701");
    assert_eq!(bytes_at(&rootfs, 0x438, 2), [0x53, 0xef], "the magic of ext4");
    assert_eq!(fs::metadata(&rootfs).unwrap().len(), 512 << 20);
    assert_eq!(inside(&rootfs, "cat /home/runner/deep/greeting"), "hello\n");
    for path in ["/home/runner/deep", "/home/runner/deep/greeting"] {
        let owner = inside(&rootfs, &format!("stat {path}"));
        assert!(owner.contains("User:  1001   Group:  1001"), "{path}: {owner}");
    }
    assert_modules_are_there(&rootfs, guest_modules);
    assert!(inside(&rootfs, "stat /usr/bin/su").contains("Mode:  0755"), "no set-user-id");
    // No manual pages, but their directories, which packages of Java need for their links.
    let pages = inside(&rootfs, "ls -p /usr/share/man/man1");
    assert!(pages.contains("/../") && !pages.contains(".gz/"), "{pages}");

    let difference = fixture.run(["diff", "tiny", &reference, "--json"]);
    let difference: serde_json::Value = serde_json::from_slice(&difference.stdout).unwrap();
    assert_eq!(difference["changes"], serde_json::json!([]));

    assert!(fixture.run(["verify", &reference]).status.success());
    assert_a_changed_sbom_is_rejected(&fixture, &directory);

    fs::set_permissions(&rootfs, fs::Permissions::from_mode(0o644)).unwrap();
    let mut changed = fs::File::options().write(true).open(&rootfs).unwrap();
    changed.seek(SeekFrom::Start(300 << 20)).unwrap();
    std::io::Write::write_all(&mut changed, b"!").unwrap();
    let verified = fixture.run(["verify", "tiny"]);
    assert_eq!(verified.status.code(), Some(65));
    assert!(text(&verified.stderr).contains("rootfs.img"));

    assert!(fixture.run(["remove", "tiny"]).status.success());
    let gone = fixture.run(["inspect", "tiny"]);
    assert_eq!(gone.status.code(), Some(66));
    assert!(text(&gone.stderr).contains("`tiny`"));
    fixture.assert_holds_nothing();
}

fn assert_a_changed_sbom_is_rejected(fixture: &Fixture, directory: &Path) {
    let bill = directory.join("sbom.spdx.json");
    let kept = fs::read_to_string(&bill).unwrap();
    fs::set_permissions(&bill, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&bill, kept.replace("GPL", "MIT")).unwrap();
    let refused = fixture.run(["sbom", "tiny"]);
    assert_eq!(refused.status.code(), Some(65));
    assert!(refused.stdout.is_empty() && text(&refused.stderr).contains("sbom.spdx.json"));
    fs::write(&bill, kept).unwrap();
}

/// Asserts that each module is in the file system, after its dependencies, and in the index of
/// `modprobe`.
fn assert_modules_are_there(rootfs: &Path, modules: &[serde_json::Value]) {
    let names: Vec<&str> =
        modules.iter().map(|path| path.as_str().unwrap().rsplit_once('/').unwrap().1).collect();
    assert_eq!(names, ["llc.ko", "stp.ko", "bridge.ko", "br_netfilter.ko"]);
    let (directory, _) = modules[0].as_str().unwrap().split_once("/kernel/").unwrap();
    let known = inside(rootfs, &format!("cat {directory}/modules.dep"));
    for path in modules {
        let path = path.as_str().unwrap();
        assert!(inside(rootfs, &format!("stat {path}")).contains("Type: regular"), "{path}");
        let relative = path.strip_prefix(directory).unwrap().trim_start_matches('/');
        assert!(known.contains(&format!("{relative}:")), "{relative} in {known}");
    }
}

/// Asserts that both SBOMs of the image have its packages, the kernel's, and the agent's crates.
fn assert_sboms_have(fixture: &Fixture, packages: usize) {
    let bill = |format| -> serde_json::Value {
        let output = fixture.run(["sbom", "tiny", "--format", format]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let purls = |list: &serde_json::Value, purl: fn(&serde_json::Value) -> &serde_json::Value| {
        let list = list.as_array().unwrap().iter();
        list.filter_map(|entry| purl(entry).as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let spdx =
        purls(&bill("spdx")["packages"], |package| &package["externalRefs"][0]["referenceLocator"]);
    let cyclonedx = purls(&bill("cyclonedx")["components"], |component| &component["purl"]);
    assert_eq!(spdx, cyclonedx);
    let debian: Vec<_> = spdx.iter().filter(|purl| purl.starts_with("pkg:deb/debian/")).collect();
    assert_eq!(debian.len(), packages + 1);
    assert!(debian.iter().any(|purl| purl.contains("/linux-image-")), "{debian:?}");
    assert!(spdx.iter().any(|purl| purl.starts_with("pkg:cargo/nix@")), "{spdx:?}");
    let licenses = bill("spdx")["packages"].to_string();
    assert!(licenses.contains("GPL-2.0-or-later"), "no license was parsed");
}

#[test]
#[ignore = "takes minutes"]
fn concurrent_builds_and_rebuilds_give_the_same_image_or_report_differences() {
    let fixture = Fixture::new();
    let recipe = RECIPE.replace(r#"content = "hello\n""#, r#"source = "greeting""#);
    fs::write(fixture.path("tiny.toml"), recipe).unwrap();
    fs::write(fixture.path("greeting"), "hello\n").unwrap();
    let builds = [fixture.build().spawn().unwrap(), fixture.build().spawn().unwrap()];
    let [first, second] = builds.map(|build| built(&build.wait_with_output().unwrap()));
    // The same inputs give the same bytes, so the second build finds the image present.
    assert_eq!(first, second);
    assert!(fixture.run(["verify", "tiny"]).status.success());
    assert!(fixture.workspaces().is_empty());
    let check = || {
        let recipe = fixture.path("tiny.toml");
        let mut command = fixture.mayfly();
        command.args(["rebuild-check", "tiny", "--json", "--recipe"]).arg(recipe);
        let output = command.output().unwrap();
        let answer: serde_json::Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        (output.status.code(), answer)
    };
    let (code, answer) = check();
    assert_eq!((code, &answer["same"]), (Some(0), &true.into()), "{answer}");

    // The recipe is the same, a file that it refers to is not.
    fs::write(fixture.path("greeting"), "hallo\n").unwrap();
    let (code, answer) = check();
    assert_eq!((code, &answer["same"]), (Some(65), &false.into()), "{answer}");
    let files =
        serde_json::json!([{ "path": "/home/runner/deep/greeting", "difference": "content" }]);
    assert_eq!(answer["files"], files);
    let changes = answer["changes"].as_array().unwrap();
    let changed = |section: &str, key: &str| {
        changes.iter().any(|change| {
            change["section"] == section && change["key"].as_str().unwrap().starts_with(key)
        })
    };
    assert!(changed("inputs", "files.") && changed("parts", "rootfs.sha256"), "{answer}");
    assert!(!changed("packages", "") && !changed("parts", "kernel."), "{answer}");

    // Neither image is stored, and no working directory remains.
    assert_eq!(fixture.workspaces(), Vec::<String>::new());
    let listed = fixture.run(["list", "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let digest = listed[0]["digest"].as_str().unwrap();
    assert_eq!(format!("tiny@{digest}"), first);

    // Different inputs are rejected before the build.
    fs::write(fixture.path("tiny.toml"), RECIPE).unwrap();
    let mut command = fixture.mayfly();
    command.args(["rebuild-check", "tiny", "--recipe"]).arg(fixture.path("tiny.toml"));
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    assert!(
        text(&output.stderr).contains("tiny.toml differs from the input of image `tiny@"),
        "{output:?}"
    );
}

#[test]
fn a_build_that_is_killed_leaves_nothing_that_runs_and_nothing_that_stays() {
    let fixture = Fixture::new();
    let mut build = fixture.build().spawn().unwrap();
    let begun = || {
        let names = fixture.workspaces();
        names.iter().any(|name| fixture.path("store").join(name).join("work/root/usr").exists())
    };
    wait_until("packages are being unpacked", begun);
    assert!(!processes_below(fixture.directory.path()).is_empty());
    build.kill().unwrap();
    build.wait().unwrap();

    wait_until("its processes are gone", || processes_below(fixture.directory.path()).is_empty());
    let listed = fixture.run(["list", "--json"]);
    assert_eq!(text(&listed.stdout).trim(), "[]");
    let dead = fixture.workspaces();
    assert_eq!(dead.len(), 1);

    // The next build removes the remains, and its own when it times out.
    let output = fixture.build().args(["--timeout", "2s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));
    assert_eq!(fixture.workspaces(), Vec::<String>::new());
    assert!(processes_below(fixture.directory.path()).is_empty());
}

/// Takes minutes: run by `scripts/test --long`.
#[test]
#[ignore = "takes minutes"]
fn ten_builds_killed_at_any_moment_leave_the_store_whole() {
    let fixture = Fixture::new();
    let begun = Instant::now();
    let reference = built(&fixture.build().output().unwrap());
    let duration = begun.elapsed();
    for kill in 0..10 {
        // A different image each time, killed later each time, up to its publication.
        let mut build = fixture.build();
        build.args(["--set", &format!("kernel.arguments+=kill={kill}")]);
        let mut build = build.spawn().unwrap();
        std::thread::sleep(duration.mul_f64(f64::from(kill) / 9.0));
        build.kill().unwrap();
        build.wait().unwrap();
        wait_until("its processes are gone", || {
            processes_below(fixture.directory.path()).is_empty()
        });
        let listed = fixture.run(["list", "--json"]);
        assert_eq!(text(&listed.stderr), "", "no image is broken");
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        for image in listed.as_array().unwrap() {
            let image = format!("tiny@{}", image["digest"].as_str().unwrap());
            assert!(fixture.run(["verify", &image]).status.success(), "{image}");
        }
        assert!(fixture.run(["verify", &reference]).status.success());
        assert!(fixture.run(["inspect", "tiny"]).status.success(), "the name means an image");
    }
    built(&fixture.build().output().unwrap());
    assert_eq!(fixture.workspaces(), Vec::<String>::new());
}

/// Returns the processes whose arguments or environment refer to something below `directory`.
fn processes_below(directory: &Path) -> Vec<String> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let names = |path: PathBuf| {
        fs::read(path).is_ok_and(|bytes| bytes.windows(needle.len()).any(|window| window == needle))
    };
    fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| names(entry.path().join("cmdline")) || names(entry.path().join("environ")))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn an_invalid_recipe_is_rejected_before_the_build() {
    let fixture = Fixture::new();
    let wrong = RECIPE.replace("suite", "sweet");
    fs::write(fixture.path("tiny.toml"), wrong).unwrap();
    let output = fixture.build().output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    let message = text(&output.stderr);
    for part in ["tiny.toml", "line 4", "sweet"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert!(fixture.store().is_empty());
}

#[test]
fn a_missing_or_dynamic_agent_is_rejected() {
    let fixture = Fixture::new();
    let output = fixture.build().args(["--agent", "/no/such/agent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(66));
    let output = fixture.build().args(["--agent", "/bin/sh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(65));
    assert!(text(&output.stderr).contains("linked dynamically"));
}

#[test]
fn packages_and_modules_that_are_not_there_are_named() {
    let fixture = Fixture::new();
    let wrong = RECIPE.replace("size", "packages = ['no-such-package']\nsize");
    fs::write(fixture.path("tiny.toml"), wrong).unwrap();
    let output = fixture.build().output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).contains("no-such-package"), "{}", text(&output.stderr));
    assert!(fixture.workspaces().is_empty());

    fs::write(fixture.path("tiny.toml"), RECIPE).unwrap();
    let output = fixture.build().args(["--set", "modules+=no_such_module"]).output().unwrap();
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).contains("no_such_module"), "{}", text(&output.stderr));
    fixture.assert_holds_nothing();
}
