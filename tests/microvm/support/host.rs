//! A host for one test: a state directory, programs, and optionally another user or other devices.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::running::{CommandOutput, Running};
use super::{TIMEOUT, images, processes};

/// A user and group id that no system uses.
pub(crate) const ORDINARY_USER: u32 = 61_001;

/// The environment in which a test runs Mayfly.
pub(crate) struct Host {
    root: TempDir,
    /// The executable.
    pub(crate) mayfly: PathBuf,
    /// `$PATH`.
    pub(crate) path: OsString,
    /// A command that executes the one after it. Empty: Mayfly runs directly.
    pub(crate) wrapper: Vec<OsString>,
}

impl Host {
    /// Creates a working host with the image `base`.
    pub(crate) fn new() -> Self {
        Self::with_image("base")
    }

    /// Creates a host with one image of the tests' store.
    pub(crate) fn with_image(name: &str) -> Self {
        let host = Self::bare();
        let image = images().join(name);
        assert!(
            image.join("latest/manifest.json").is_file(),
            "{} does not exist: run scripts/test",
            image.display()
        );
        symlink(image, host.images().join(name)).unwrap();
        // Shared, so that the tests verify the image only once.
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verified");
        fs::create_dir_all(&shared).unwrap();
        symlink(shared, host.state().join("verified")).unwrap();
        host
    }

    /// Creates a host without an image.
    pub(crate) fn bare() -> Self {
        let root = tempfile::Builder::new().prefix("mayfly-test-").tempdir().unwrap();
        let own = std::env::var_os("MAYFLY_TEST_BIN_DIR").map(PathBuf::from);
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(own.into_iter().chain(std::env::split_paths(&rest)));
        let mayfly = PathBuf::from(env!("CARGO_BIN_EXE_mayfly"));
        let host = Self { root, mayfly, path: path.unwrap(), wrapper: Vec::new() };
        fs::create_dir_all(host.images()).unwrap();
        host
    }

    /// Returns the directory for files of the test.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Returns the state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// Returns the image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.state().join("images")
    }

    /// Returns the command `mayfly` with these arguments.
    pub(crate) fn mayfly<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let mut words = self.wrapper.iter().cloned().chain([self.mayfly.clone().into()]);
        let mut command = Command::new(words.next().unwrap());
        command
            .args(words)
            .args(arguments.into_iter().map(|argument| argument.as_ref().to_owned()))
            .env_clear()
            .env("PATH", &self.path)
            .env("MAYFLY_STATE_DIR", self.state())
            .current_dir(self.root());
        command
    }

    /// Returns the command `mayfly run` with these arguments.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.mayfly([OsString::from("run")].into_iter().chain(arguments))
    }

    /// Starts `mayfly run` with these arguments.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        Running::start(&mut self.command(arguments))
    }

    /// Runs `mayfly run` with these arguments to its exit.
    pub(crate) fn run<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> CommandOutput {
        self.start(arguments).finish(TIMEOUT)
    }

    /// Runs a shell script in a microVM to its exit.
    pub(crate) fn shell(&self, script: &str) -> CommandOutput {
        self.run(["--", "sh", "-c", script])
    }

    /// Returns the directories of all microVMs, running or ended.
    pub(crate) fn microvms(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("microvms"));
        entries.map_or_else(
            |_| Vec::new(),
            |entries| entries.map(|entry| entry.unwrap().path()).collect(),
        )
    }

    /// Checks that a successful run left nothing behind.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.microvms(), Vec::<PathBuf>::new(), "a successful run left a directory");
        self.assert_no_process();
    }

    /// Checks that no process of this host remains.
    pub(crate) fn assert_no_process(&self) {
        let left = processes::mentioning(self.root());
        assert!(left.is_empty(), "processes remain: {left:?}");
    }

    /// Reduces `$PATH` to the named programs.
    pub(crate) fn restrict_programs(&mut self, names: &[&str]) {
        let directory = self.program_directory();
        for name in names {
            fs::copy(self.find(name), directory.join(name)).unwrap();
        }
        self.path = directory.into();
    }

    /// Replaces a program by a shell script.
    pub(crate) fn replace_program(&mut self, name: &str, script: &str) {
        let directory = self.program_directory();
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Replaces a program by a copy of another one.
    #[allow(dead_code, reason = "the benchmarks use less")]
    pub(crate) fn replace_program_by(&mut self, name: &str, other: &Path) {
        fs::copy(other, self.program_directory().join(name)).unwrap();
    }

    /// Runs Mayfly as an ordinary user from now on, with readable copies of all programs and of
    /// `base`, and with these `devices`.
    pub(crate) fn run_as_ordinary_user(&mut self, devices: &Devices) {
        super::require_root();
        self.program_directory();
        // The target of the link may be readable for root only.
        let base = self.images().join("base");
        if base.is_symlink() {
            let real = fs::canonicalize(base.join("latest")).unwrap();
            fs::remove_file(&base).unwrap();
            let copy = base.join(real.file_name().unwrap());
            fs::create_dir_all(&copy).unwrap();
            let mut copying = Command::new("cp");
            copying.arg("-r").arg("--sparse=always").arg(real.join(".")).arg(&copy);
            assert!(copying.status().unwrap().success());
            symlink(real.file_name().unwrap(), base.join("latest")).unwrap();
            fs::remove_file(self.state().join("verified")).unwrap();
        }
        fs::set_permissions(self.root(), Permissions::from_mode(0o755)).unwrap();
        for directory in [self.root().to_owned(), self.state(), self.images()] {
            chown(directory, Some(ORDINARY_USER), Some(ORDINARY_USER)).unwrap();
        }
        let dev = self.root().join("dev");
        fs::create_dir(&dev).unwrap();
        let user = ORDINARY_USER.to_string();
        let script = devices.script();
        self.wrapper = ["unshare", "--mount", "--propagation=private", "sh", "-ec", &script]
            .map(OsString::from)
            .into_iter()
            .chain([dev.into(), user.into()])
            .collect();
    }

    /// Returns a directory that comes first in `$PATH`, with the copy of Mayfly that runs from now
    /// on. Mayfly would also find the programs beside the build's own executable.
    fn program_directory(&mut self) -> PathBuf {
        let directory = self.root().join("bin");
        if directory.is_dir() {
            return directory;
        }
        fs::create_dir(&directory).unwrap();
        let device = self.find("vhost-device-vsock");
        fs::copy(&self.mayfly, directory.join("mayfly")).unwrap();
        self.mayfly = directory.join("mayfly");
        // A separate, later entry of `$PATH`, so that a test can remove it.
        let more = self.root().join("more");
        fs::create_dir(&more).unwrap();
        fs::copy(device, more.join("vhost-device-vsock")).unwrap();
        let rest = std::env::split_paths(&self.path);
        let path = std::env::join_paths([directory.clone(), more].into_iter().chain(rest));
        self.path = path.unwrap();
        directory
    }

    /// Returns the path of a program that Mayfly would find.
    pub(crate) fn find(&self, name: &str) -> PathBuf {
        let beside = self.mayfly.parent().unwrap().to_owned();
        let own = [beside.join("../libexec/mayfly"), beside];
        let mut directories = own.into_iter().chain(std::env::split_paths(&self.path));
        let found = directories.find_map(|directory| {
            let path = directory.join(name);
            path.is_file().then_some(path)
        });
        found.unwrap_or_else(|| panic!("{name} is not installed: run scripts/test"))
    }
}

/// The modes of an ordinary user's device nodes; `None` means that the node does not exist.
pub(crate) struct Devices {
    pub(crate) tun: Option<u32>,
    pub(crate) kvm: Option<u32>,
}

impl Default for Devices {
    /// The modes of most distributions, for users who may run microVMs.
    fn default() -> Self {
        Self { tun: Some(0o666), kvm: None }
    }
}

impl Devices {
    /// Returns a shell script that mounts its own `/dev` for itself only and executes `$2…` as the
    /// user `$1`. Its `$0` is an empty directory.
    fn script(&self) -> String {
        let node = |path: &str, mode: Option<u32>, numbers: &str| {
            mode.map_or_else(String::new, |mode| {
                format!("mknod --mode={mode:o} \"$0/{path}\" c {numbers}\n")
            })
        };
        let always = [
            ("null", "1 3"),
            ("zero", "1 5"),
            ("random", "1 8"),
            ("urandom", "1 9"),
            ("tty", "5 0"),
        ];
        let always: String =
            always.iter().map(|(path, numbers)| node(path, Some(0o666), numbers)).collect();
        format!(
            "mount -t tmpfs -o mode=755 devices \"$0\"\n\
             mkdir \"$0/net\"\n\
             {always}{}{}\
             mount --move \"$0\" /dev\n\
             user=$1; shift\n\
             exec setpriv --reuid=\"$user\" --regid=\"$user\" --clear-groups \
             --bounding-set=-all --inh-caps=-all --no-new-privs -- \"$@\"",
            node("net/tun", self.tun, "10 200"),
            node("kvm", self.kvm, "10 232"),
        )
    }
}
