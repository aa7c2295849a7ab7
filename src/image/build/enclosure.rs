//! Where the programs of a build run: in namespaces of their own, as root of them.
//!
//! The same for root and for an ordinary user, but for the user namespace. In it, root is the
//! user who builds and the ids above are from the user's range in `/etc/subuid`, so the builder's
//! directories need no other permissions, and what root makes in there belongs to the builder.
//! The process namespace ends with its first process, which ends with the builder: nothing that a
//! package's script starts can outlive a build, and with the mount namespace go its mounts.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::process::Runner;
use crate::image::error::ImageError;

/// What an ordinary user's search path may lack.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes commands that run inside.
#[derive(Debug, Clone, Copy)]
pub(super) struct Enclosure {
    root: bool,
}

impl Enclosure {
    /// Checks that the host lets this user have one.
    pub(super) fn new(runner: &Runner<'_>) -> Result<Self, ImageError> {
        let enclosure = Self { root: nix::unistd::geteuid().is_root() };
        // With a second id, because a range that is missing is found only when it is used.
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

    /// A command that runs `program` inside, found in the system's usual places.
    pub(super) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = outside("unshare");
        if !self.root {
            command.args(["--user", "--map-root-user", "--map-auto"]);
        }
        command.args(["--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]);
        command.arg(program);
        command
    }

    /// Removes a directory with whatever is in it, also what belongs to other ids of the user's
    /// range.
    pub(super) fn remove(self, runner: &Runner<'_>, directory: &Path) -> Result<(), ImageError> {
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

/// A command for a program of the host: in English, with the system's programs in its path.
pub(super) fn outside(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", SYSTEM_PATH).env("LC_ALL", "C.UTF-8").env_remove("LANGUAGE");
    command
}

/// The programs that a build calls, with Debian's packages that have them.
const PROGRAMS: [(&str, &str); 7] = [
    ("unshare", "util-linux"),
    ("mmdebstrap", "mmdebstrap"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("depmod", "kmod"),
    ("mke2fs", "e2fsprogs"),
    ("debugfs", "e2fsprogs"),
];

/// Checks that every program is there, so that none is found missing half-way.
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
    use crate::failure::Failure;

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = check_each(&[("sh", "dash"), ("no-such-program", "some-package")]).unwrap_err();
        assert_eq!(error.to_string(), "no-such-program is not installed");
        assert_eq!(error.hint().as_deref(), Some("Install it: apt-get install some-package"));
    }
}
