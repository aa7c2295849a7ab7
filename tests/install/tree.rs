//! Tests installations below another root directory (`--root`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::{CommandOutput, Running, TIMEOUT};

/// The executable that is installed.
const BUILT: &str = env!("CARGO_BIN_EXE_mayfly");

/// Returns the absolute path of a script of the project.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts").join(name)
}

/// Returns the options that make `scripts/install` take the executable under test.
pub(crate) fn build_options() -> [String; 2] {
    ["--from".to_owned(), Path::new(BUILT).parent().unwrap().display().to_string()]
}

/// A root directory to install Mayfly in.
pub(crate) struct InstallRoot {
    pub(crate) root: TempDir,
}

impl InstallRoot {
    /// Creates a root with only files of other programs.
    fn bare() -> Self {
        let root = tempfile::Builder::new().prefix("mayfly-tree-").tempdir().unwrap();
        let other = root.path().join("usr/local/bin");
        fs::create_dir_all(&other).unwrap();
        fs::create_dir_all(root.path().join("usr/local/share/man")).unwrap();
        fs::write(other.join("other"), "other").unwrap();
        Self { root }
    }

    /// Creates a root and installs Mayfly in it.
    pub(crate) fn installed() -> Self {
        let tree = Self::bare();
        tree.install(&[]).assert_code(0);
        tree
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn script(&self, name: &str, arguments: &[&str]) -> CommandOutput {
        let mut command = Command::new(script(name));
        command.arg("--root").arg(self.root.path()).args(arguments);
        if name == "install" {
            command.args(build_options());
        }
        Running::start(&mut command).finish(TIMEOUT)
    }

    fn install(&self, arguments: &[&str]) -> CommandOutput {
        self.script("install", arguments)
    }

    fn uninstall(&self, arguments: &[&str]) -> CommandOutput {
        self.script("uninstall", arguments)
    }

    /// Returns the type, mode, and content of each file by its path.
    fn snapshot(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut directories = vec![self.root.path().to_owned()];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                let metadata = path.symlink_metadata().unwrap();
                let content = if metadata.is_dir() {
                    directories.push(path.clone());
                    Vec::new()
                } else {
                    fs::read(&path).unwrap()
                };
                found.insert(path, (metadata.mode(), content));
            }
        }
        found
    }
}

#[test]
fn what_was_installed_goes_again_and_nothing_else() {
    for prefix in [&[][..], &["--prefix", "/opt/mayfly"]] {
        let tree = InstallRoot::bare();
        let before = tree.snapshot();
        tree.install(prefix).assert_code(0);
        let installed = tree.snapshot();
        assert!(installed.len() > before.len() + 40, "{:?}", installed.keys());
        tree.install(prefix).assert_code(0);
        assert!(tree.snapshot() == installed, "a second installation changes files");
        tree.uninstall(prefix).assert_code(0);
        let after = tree.snapshot();
        assert!(after == before, "{:?}", after.keys());
    }
    let tree = InstallRoot::bare();
    tree.uninstall(&[]).assert_code(1).assert_stderr_has("nothing is installed");
}

#[test]
fn settings_that_were_changed_stay_until_they_are_purged() {
    let tree = InstallRoot::bare();
    let before = tree.snapshot();
    tree.install(&[]).assert_code(0);
    let settings = tree.path("etc/mayfly/mayfly.toml");
    let read = || fs::read_to_string(&settings).unwrap();
    let changed = read().replace("max = 4", "max = 2");
    assert_ne!(changed, read());
    fs::write(&settings, &changed).unwrap();
    tree.install(&[]).assert_code(0);
    assert_eq!(read(), changed);
    tree.uninstall(&[]).assert_code(0).assert_stderr_has("kept the changed settings file");
    assert_eq!(read(), changed);
    // `--purge` also works after an uninstallation without it.
    fs::create_dir_all(tree.path("var/lib/mayfly/images")).unwrap();
    tree.uninstall(&["--purge"]).assert_code(0);
    tree.uninstall(&["--purge"]).assert_stderr_has("nothing is installed");
    let mut after = tree.snapshot();
    for created_here in ["var", "var/lib"] {
        assert!(after.remove(&tree.path(created_here)).is_some());
    }
    // The installer does not record the directories that it creates for the settings.
    after.remove(&tree.path("etc"));
    assert!(after == before, "{:?}", after.keys());
}

#[test]
fn what_is_installed_finds_its_parts_and_its_settings_are_good() {
    let tree = InstallRoot::installed();
    let mayfly = |arguments: &[&str]| {
        let mut command = Command::new(tree.path("usr/local/bin/mayfly"));
        command.args(arguments).env("MAYFLY_STATE_DIR", tree.path("state"));
        command.env_remove("MAYFLY_GUEST");
        Running::start(&mut command).finish(TIMEOUT)
    };
    let settings = tree.path("etc/mayfly/mayfly.toml");
    let checked = mayfly(&["config", "check", "--config", settings.to_str().unwrap()]);
    assert_eq!(checked.assert_code(0).text(), "valid: 1 pools, local jobs only\n");
    let doctor: serde_json::Value =
        serde_json::from_slice(&mayfly(&["doctor", "--json"]).stdout).unwrap();
    let vsock =
        doctor.as_array().unwrap().iter().find(|one| one["subject"] == "vhost-device-vsock");
    let vsock = vsock.unwrap()["found"].as_str().unwrap();
    let libexec = tree.path("usr/local/libexec/mayfly");
    assert!(vsock.contains(libexec.to_str().unwrap()), "{vsock}");
    let guest = fs::metadata(libexec.join("mayfly-guest")).unwrap();
    assert_eq!(guest.permissions().mode() & 0o777, 0o755);
    assert!(tree.path("usr/local/share/mayfly/images/base/image.toml").is_file());
}

/// Returns a unit's exposure level according to systemd, from 0 (none) to 10.
fn exposure(unit: &Path) -> f64 {
    let mut command = Command::new("systemd-analyze");
    command.args(["security", "--offline=true", "--no-pager"]).arg(unit);
    let output = Running::start(&mut command).finish(TIMEOUT).text();
    let level = output.lines().find_map(|line| line.split_once("Overall exposure level for "));
    let (_, level) = level.unwrap_or_else(|| panic!("no exposure level: {output}"));
    level.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn units_are_good_and_little_is_exposed() {
    let tree = InstallRoot::installed();
    let units = tree.path("usr/local/lib/systemd/system");
    let names = ["mayfly.service", "mayfly@.service", "mayfly-image@.service"];
    let names = [&names[..], &["mayfly-image-refresh.service", "mayfly-image-refresh.timer"]];
    let mut found: Vec<_> =
        fs::read_dir(&units).unwrap().map(|one| one.unwrap().file_name()).collect();
    found.sort();
    let mut expected = names.concat();
    expected.sort_unstable();
    assert_eq!(found, expected);
    for name in expected {
        let text = fs::read_to_string(units.join(name)).unwrap();
        let unfilled = text.split_whitespace().find(|word| word.matches('@').count() > 1);
        assert_eq!(unfilled, None, "{name}");
        // `systemd-analyze` looks for the executables on this machine.
        let here = text.replace("/usr/local", tree.root.path().join("usr/local").to_str().unwrap());
        fs::write(units.join(name), here).unwrap();
    }
    for name in names.concat() {
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(units.join(name));
        let ending = Running::start(&mut verify).finish(TIMEOUT);
        ending.assert_code(0);
        assert_eq!(ending.stderr, "", "{name}");
    }
    for name in ["mayfly.service", "mayfly@.service"] {
        let exposure = exposure(&units.join(name));
        eprintln!("{name}: exposure level {exposure}");
        assert!(exposure <= 3.0, "{name}: {exposure}");
    }
}
