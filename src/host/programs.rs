//! The programs that Mayfly runs: where they are, and whether they are new enough.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Code, Failure};

/// A program that Mayfly needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    /// Its file name.
    pub name: &'static str,
    /// The oldest version that works.
    pub minimum: Version,
    /// How one gets it.
    pub remedy: &'static str,
}

/// QEMU. 7.2 is the oldest that was tried with `-M microvm` and `vhost-user-vsock-device`.
pub const QEMU: Program = Program {
    name: "qemu-system-x86_64",
    minimum: Version(7, 2),
    remedy: "install the package qemu-system-x86",
};

/// The tool that makes overlays; of the same source as QEMU.
pub const QEMU_IMG: Program =
    Program { name: "qemu-img", minimum: Version(7, 2), remedy: "install the package qemu-utils" };

/// The other end of the guest's virtio-vsock device. Older versions take other options.
pub const VHOST_DEVICE_VSOCK: Program = Program {
    name: "vhost-device-vsock",
    minimum: Version(0, 3),
    remedy: "run scripts/quickstart, or: cargo install vhost-device-vsock --locked",
};

/// Major and minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u16, pub u16);

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.0, self.1)
    }
}

/// A program can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// It is in none of the places that are searched.
    #[error("the program {} was not found in {}", program.name, listed(.searched))]
    Missing {
        /// The program.
        program: Program,
        /// The directories that were searched, in order.
        searched: Vec<PathBuf>,
    },
    /// It did not tell its version.
    #[error("{path} does not tell its version: {answer:?}")]
    Mute {
        /// Where it is.
        path: PathBuf,
        /// What it said instead.
        answer: String,
        /// The program.
        program: Program,
    },
    /// It is older than what works.
    #[error("{path} is version {found}, older than the {} that is needed", program.minimum)]
    TooOld {
        /// Where it is.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The program.
        program: Program,
    },
}

impl Failure for ProgramError {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn hint(&self) -> Option<String> {
        let (Self::Missing { program, .. }
        | Self::Mute { program, .. }
        | Self::TooOld { program, .. }) = self;
        Some(program.remedy.to_owned())
    }
}

/// Where programs are looked for if `PATH` names no directory.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn listed(directories: &[PathBuf]) -> String {
    let names = directories.iter().map(|directory| directory.display().to_string());
    names.collect::<Vec<_>>().join(", ")
}

impl Program {
    /// Finds it: beside Mayfly's own executable, in `../libexec/mayfly` from there, where
    /// `scripts/quickstart` puts what no package has, then in `$PATH`.
    pub fn find(&self) -> Result<PathBuf, ProgramError> {
        self.find_in(search_path())
    }

    fn find_in(&self, directories: Vec<PathBuf>) -> Result<PathBuf, ProgramError> {
        let mut paths = directories.iter().map(|directory| directory.join(self.name));
        let found = paths.find(|path| {
            nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
        });
        drop(paths);
        found.ok_or(ProgramError::Missing { program: *self, searched: directories })
    }

    /// Finds it and asks for its version, which takes tens of milliseconds.
    pub fn check(&self) -> Result<(PathBuf, Version), ProgramError> {
        let path = self.find()?;
        let found = self.version_of(&path)?;
        if found < self.minimum {
            return Err(ProgramError::TooOld { path, found, program: *self });
        }
        Ok((path, found))
    }

    fn version_of(&self, path: &Path) -> Result<Version, ProgramError> {
        let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
        let answer = match output {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => error.to_string(),
        };
        parse_version(&answer).ok_or_else(|| ProgramError::Mute {
            path: path.to_owned(),
            answer: answer.lines().next().unwrap_or_default().to_owned(),
            program: *self,
        })
    }
}

fn search_path() -> Vec<PathBuf> {
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent);
    let prefix = beside.and_then(Path::parent);
    let own = beside
        .zip(prefix)
        .map(|(beside, prefix)| [beside.to_owned(), prefix.join("libexec/mayfly")]);
    let path = std::env::var_os("PATH");
    own.into_iter().flatten().chain(system_path(path.as_deref())).collect()
}

/// The directories of `PATH`, or of [`DEFAULT_PATH`] where it names none. One that is not absolute
/// is left out: nobody wants the QEMU of the current directory.
fn system_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let absolute = |path: &OsStr| {
        std::env::split_paths(path).filter(|directory| directory.is_absolute()).collect::<Vec<_>>()
    };
    let named = path.map(absolute).unwrap_or_default();
    if named.is_empty() { absolute(DEFAULT_PATH.as_ref()) } else { named }
}

/// The first `MAJOR.MINOR` in what a program says of itself.
fn parse_version(text: &str) -> Option<Version> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').splitn(3, '.');
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next()?.chars().take_while(char::is_ascii_digit).collect::<String>();
        Some(Version(major, minor.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        for (text, version) in [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", Version(10, 0)),
            ("qemu-img version 7.2.22 (Debian 1:7.2+dfsg)", Version(7, 2)),
            ("vhost-device-vsock 0.3.0", Version(0, 3)),
        ] {
            assert_eq!(parse_version(text), Some(version), "{text}");
        }
        assert_eq!(parse_version("command not found"), None);
    }

    #[test]
    fn only_what_can_be_executed_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(QEMU.name);
        std::fs::write(&path, "").unwrap();
        let search = || QEMU.find_in(vec!["/nowhere".into(), directory.path().to_owned()]);
        let error = search().unwrap_err().to_string();
        let place = directory.path().display();
        let says = format!("the program qemu-system-x86_64 was not found in /nowhere, {place}");
        assert_eq!(error, says);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(search(), Ok(path));
    }

    #[test]
    fn a_path_that_names_no_directory_gives_way_to_the_usual_one() {
        let usual: Vec<_> = std::env::split_paths(DEFAULT_PATH).collect();
        for path in [None, Some(""), Some(":"), Some("."), Some("relative:./bin:")] {
            assert_eq!(system_path(path.map(OsStr::new)), usual, "{path:?}");
        }
        let path = Some(OsStr::new(":/a:relative:/b"));
        assert_eq!(system_path(path), [PathBuf::from("/a"), "/b".into()]);
    }
}
