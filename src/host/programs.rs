//! The programs that Mayfly runs: finding them and checking their versions.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use mayfly_failure::{Code, Failure};

/// A required program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequiredProgram {
    /// Its file name.
    pub name: &'static str,
    /// The oldest version that works.
    pub minimum: Version,
    /// How to install it.
    pub remedy: &'static str,
}

/// QEMU. 7.2 is the oldest version tested with `-M microvm` and `vhost-user-vsock-device`.
pub const QEMU: RequiredProgram = RequiredProgram {
    name: "qemu-system-x86_64",
    minimum: Version(7, 2),
    remedy: "install the package qemu-system-x86",
};

/// The tool that creates overlays; part of QEMU.
pub const QEMU_IMG: RequiredProgram = RequiredProgram {
    name: "qemu-img",
    minimum: Version(7, 2),
    remedy: "install the package qemu-utils",
};

/// The backend of the guest's virtio-vsock device. Older versions have different options.
pub const VHOST_DEVICE_VSOCK: RequiredProgram = RequiredProgram {
    name: "vhost-device-vsock",
    minimum: Version(0, 3),
    remedy: "run scripts/quickstart, or: cargo install vhost-device-vsock --locked",
};

/// A major and minor version.
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
    /// It is in none of the searched directories.
    #[error("the program {} was not found in {}", program.name, join(.searched))]
    Missing {
        /// The program.
        program: RequiredProgram,
        /// The directories that were searched, in order.
        searched: Vec<PathBuf>,
    },
    /// It did not print its version.
    #[error("can't determine the version of {path} from its output {output:?}")]
    NoVersion {
        /// Its path.
        path: PathBuf,
        /// The first line of its output.
        output: String,
        /// The program.
        program: RequiredProgram,
    },
    /// It is older than the oldest supported version.
    #[error("{path} is version {found}, older than the required {}", program.minimum)]
    TooOld {
        /// Its path.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The program.
        program: RequiredProgram,
    },
}

impl Failure for ProgramError {
    fn code(&self) -> Code {
        Code::Unavailable
    }

    fn hint(&self) -> Option<String> {
        let (Self::Missing { program, .. }
        | Self::NoVersion { program, .. }
        | Self::TooOld { program, .. }) = self;
        Some(program.remedy.to_owned())
    }
}

/// The search path if `PATH` names no directory.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn join(directories: &[PathBuf]) -> String {
    let names = directories.iter().map(|directory| directory.display().to_string());
    names.collect::<Vec<_>>().join(", ")
}

impl RequiredProgram {
    /// Finds the program: beside Mayfly's own executable, then in `../libexec/mayfly` from there,
    /// where `scripts/quickstart` installs what has no package, then in `$PATH`.
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

    /// Finds the program and checks its version, which takes tens of milliseconds.
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
        let output = match output {
            Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
            Err(error) => error.to_string(),
        };
        parse_version(&output).ok_or_else(|| ProgramError::NoVersion {
            path: path.to_owned(),
            output: output.lines().next().unwrap_or_default().to_owned(),
            program: *self,
        })
    }
}

fn search_path() -> Vec<PathBuf> {
    let executable = std::env::current_exe().ok();
    let directory = executable.as_deref().and_then(Path::parent);
    let prefix = directory.and_then(Path::parent);
    let own = directory
        .zip(prefix)
        .map(|(directory, prefix)| [directory.to_owned(), prefix.join("libexec/mayfly")]);
    let path = std::env::var_os("PATH");
    own.into_iter().flatten().chain(system_path(path.as_deref())).collect()
}

/// Returns the directories of `PATH`, or of [`DEFAULT_PATH`] if it names none. Relative ones are
/// left out: QEMU must not come from the current directory.
fn system_path(path: Option<&OsStr>) -> Vec<PathBuf> {
    let absolute = |path: &OsStr| {
        std::env::split_paths(path).filter(|directory| directory.is_absolute()).collect::<Vec<_>>()
    };
    let named = path.map(absolute).unwrap_or_default();
    if named.is_empty() { absolute(DEFAULT_PATH.as_ref()) } else { named }
}

/// Returns the first `MAJOR.MINOR` in a program's output.
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
    fn versions_are_found_in_the_output_of_programs() {
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
    fn only_executable_files_are_found() {
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
    fn a_path_without_directories_falls_back_to_the_default() {
        let usual: Vec<_> = std::env::split_paths(DEFAULT_PATH).collect();
        for path in [None, Some(""), Some(":"), Some("."), Some("relative:./bin:")] {
            assert_eq!(system_path(path.map(OsStr::new)), usual, "{path:?}");
        }
        let path = Some(OsStr::new(":/a:relative:/b"));
        assert_eq!(system_path(path), [PathBuf::from("/a"), "/b".into()]);
    }
}
