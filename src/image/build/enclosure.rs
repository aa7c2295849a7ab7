//! The namespaces in which the programs of a build run, as root.
//!
//! They are the same for root and ordinary users, except for the user namespace. In it, root maps
//! to the user who builds, and the ids above come from the user's range in `/etc/subuid`. So the
//! builder's directories need no extra permissions, and files made by this root belong to the
//! builder. The PID namespace ends with its first process, which ends with the builder: no process
//! of a package script outlives the build. The mounts end with the mount namespace.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::process::ProcessRunner;
use crate::error::ImageError;

/// The search path; that of an ordinary user may lack some of these.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Creates commands that run inside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Enclosure {
    root: bool,
}

impl Enclosure {
    /// Checks that the host allows the namespaces.
    pub(super) fn new(runner: &ProcessRunner<'_>) -> Result<Self, ImageError> {
        let enclosure = Self { root: nix::unistd::geteuid().is_root() };
        // Checks for a second id, because a missing range shows only when it is used.
        let mut probe = enclosure.command("sh");
        probe.args(["-c", "[ $(wc -l < /proc/self/uid_map) -ge \"$0\" ]"]);
        probe.arg(if enclosure.root { "1" } else { "2" });
        match runner.run(&mut probe) {
            Ok(_) => Ok(enclosure),
            Err(ImageError::Tool { outcome, tail, .. }) => Err(ImageError::NamespacesRefused {
                detail: tail.into_iter().next_back().unwrap_or(outcome),
                root: enclosure.root,
            }),
            Err(error) => Err(error),
        }
    }

    /// Returns a command that runs `program` inside, found in the system's search path.
    pub(super) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = host_command("unshare");
        if !self.root {
            command.args(["--user", "--map-root-user", "--map-auto"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
        command.arg(program);
        command
    }

    /// Removes a directory and its content, including files that belong to other ids of the user's
    /// range.
    pub(super) fn remove(
        self,
        runner: &ProcessRunner<'_>,
        directory: &Path,
    ) -> Result<(), ImageError> {
        match std::fs::remove_dir_all(directory) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(_) => {
                let mut command = self.command("rm");
                command.args(["-rf", "--one-file-system", "--"]).arg(directory);
                runner.run_as("rm", &mut command).map(drop)
            }
        }
    }
}

/// Returns a command that runs a program of the host in the C locale, with the system's search
/// path.
pub(super) fn host_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", SYSTEM_PATH).env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
    command
}

/// The programs that a build needs, with the Debian packages that contain them.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

/// Checks that every program is installed, so that none turns out to be missing halfway.
pub(super) fn check_programs() -> Result<(), ImageError> {
    check_each(&PROGRAMS)
}

fn check_each(programs: &[(&'static str, &'static str)]) -> Result<(), ImageError> {
    for &(program, package) in programs {
        let there = SYSTEM_PATH.split(':').any(|directory| {
            let path = Path::new(directory).join(program);
            nix::unistd::access(&path, nix::unistd::AccessFlags::X_OK).is_ok()
        });
        if !there {
            return Err(ImageError::ProgramMissing { program, package });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_failure::Failure;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = check_each(&[("sh", "dash"), ("no-such-program", "some-package")]).unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed");
        assert_eq!(error.hint().as_deref(), Some("Install it: apt-get install some-package"));
    }
}
