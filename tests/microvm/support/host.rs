//! A host for one test: a state directory, programs, and perhaps another user or other devices.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::running::{Ending, Running};
use super::{PATIENCE, images, processes};

/// A user and group that no system has.
pub(crate) const ORDINARY_USER: u32 = 61_001;

/// What Mayfly finds when a test runs it.
pub(crate) struct Host {
    root: TempDir,
    /// The executable.
    pub(crate) mayfly: PathBuf,
    /// `$PATH`.
    pub(crate) path: OsString,
    /// A command that executes the one behind it; none executes Mayfly as it is.
    pub(crate) wrapper: Vec<OsString>,
}

impl Host {
    /// A host with the image `base`, on which all is well.
    pub(crate) fn new() -> Self {
        Self::with_image("base")
    }

    /// A host with one image of the tests' store.
    pub(crate) fn with_image(name: &str) -> Self {
        let host = Self::bare();
        let image = images().join(name);
        assert!(
            image.join("latest/manifest.json").is_file(),
            "{} is not there: run scripts/test",
            image.display()
        );
        symlink(image, host.images().join(name)).unwrap();
        // Whoever is the first to verify the image does it for all.
        let shared = Path::new(env!("CARGO_TARGET_TMPDIR")).join("verified");
        fs::create_dir_all(&shared).unwrap();
        symlink(shared, host.state().join("verified")).unwrap();
        host
    }

    /// A host without an image.
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

    /// Where the test may put files.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    /// The state directory.
    pub(crate) fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    /// The image store.
    pub(crate) fn images(&self) -> PathBuf {
        self.state().join("images")
    }

    /// `mayfly` with these arguments, not started.
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

    /// `mayfly run` with these arguments, not started.
    pub(crate) fn command<A: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = A>,
    ) -> Command {
        let arguments = arguments.into_iter().map(|argument| argument.as_ref().to_owned());
        self.mayfly([OsString::from("run")].into_iter().chain(arguments))
    }

    /// `mayfly run` with these arguments, under way.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Running {
        Running::start(&mut self.command(arguments))
    }

    /// `mayfly run` with these arguments, to its end.
    pub(crate) fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Ending {
        self.start(arguments).finish(PATIENCE)
    }

    /// A shell in a microVM, to its end.
    pub(crate) fn shell(&self, script: &str) -> Ending {
        self.run(["--", "sh", "-c", script])
    }

    /// What is left of microVMs, living or not.
    pub(crate) fn microvms(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.state().join("microvms"));
        entries.map_or_else(
            |_| Vec::new(),
            |entries| entries.map(|entry| entry.unwrap().path()).collect(),
        )
    }

    /// Fails if a run that ended well left anything.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(self.microvms(), Vec::<PathBuf>::new(), "a run that ended well leaves nothing");
        self.assert_no_process();
    }

    /// Fails if anything still runs here.
    pub(crate) fn assert_no_process(&self) {
        let left = processes::mentioning(self.root());
        assert!(left.is_empty(), "processes are left: {left:?}");
    }

    /// Only the programs that are named, of those that `$PATH` has, can be found from now on.
    pub(crate) fn keep_programs(&mut self, names: &[&str]) {
        let directory = self.own_programs();
        for name in names {
            fs::copy(self.find(name), directory.join(name)).unwrap();
        }
        self.path = directory.into();
    }

    /// Puts a shell script in the place of a program.
    pub(crate) fn replace_program(&mut self, name: &str, script: &str) {
        let directory = self.own_programs();
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Puts a copy of another program in the place of a program.
    #[allow(dead_code, reason = "the benchmarks use less")]
    pub(crate) fn replace_program_by(&mut self, name: &str, other: &Path) {
        fs::copy(other, self.own_programs().join(name)).unwrap();
    }

    /// From now on an ordinary user runs Mayfly, with copies of all programs and of `base` that
    /// such a user can read, and with the `devices` that are given.
    pub(crate) fn become_ordinary(&mut self, devices: &Devices) {
        super::require_root();
        self.own_programs();
        // What was linked may lie where only root can go.
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

    /// A directory of programs that comes first in `$PATH`, with a copy of Mayfly that is run from
    /// now on: beside the one of the build others may lie that it would find.
    fn own_programs(&mut self) -> PathBuf {
        let directory = self.root().join("bin");
        if directory.is_dir() {
            return directory;
        }
        fs::create_dir(&directory).unwrap();
        let device = self.find("vhost-device-vsock");
        fs::copy(&self.mayfly, directory.join("mayfly")).unwrap();
        self.mayfly = directory.join("mayfly");
        // A later entry than the copy of Mayfly itself, so that a test can take it away.
        let more = self.root().join("more");
        fs::create_dir(&more).unwrap();
        fs::copy(device, more.join("vhost-device-vsock")).unwrap();
        let rest = std::env::split_paths(&self.path);
        let path = std::env::join_paths([directory.clone(), more].into_iter().chain(rest));
        self.path = path.unwrap();
        directory
    }

    /// A program that Mayfly would find.
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

/// The modes of the device nodes that an ordinary user finds; none is not there.
pub(crate) struct Devices {
    pub(crate) tun: Option<u32>,
    pub(crate) kvm: Option<u32>,
}

impl Default for Devices {
    /// As most distributions have them for users who may run microVMs.
    fn default() -> Self {
        Self { tun: Some(0o666), kvm: None }
    }
}

impl Devices {
    /// A shell script that puts a `/dev` of our own in the place of the host's, for itself only,
    /// and executes `$2…` as the user `$1`. Its `$0` is an empty directory.
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
