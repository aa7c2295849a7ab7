//! The arguments that are common to the commands that start one microVM.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use mayfly_protocol::message::Bytes;

use super::report::{self, CliError};
use super::trust::TrustArguments;
use mayfly_egress::policy::Policies;
use mayfly_failure::Code;
use mayfly_host::size::Size;
use mayfly_host::state::StateDirectory;
use mayfly_machine::accelerator::AcceleratorPreference;
use mayfly_shepherd::plan::{Deadlines, MicrovmPlan};
use mayfly_shepherd::planner::{self, MicrovmRequest};

/// The microVM of one command.
#[derive(Debug, clap::Args)]
pub(super) struct MicrovmArguments {
    /// Image to boot: NAME, or NAME@ and the beginning of a digest
    #[arg(long, value_name = "NAME[@DIGEST]", default_value = "base")]
    pub(super) image: String,
    /// Number of virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(super) cpus: u32,
    /// Memory of the microVM
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    pub(super) memory: Size,
    /// Size of its disk; only written data takes space on the host [default: 16G, or the size of
    /// the image if larger]
    #[arg(long, value_name = "SIZE")]
    pub(super) disk: Option<Size>,
    /// Set an environment variable for the command; without a value, pass on the current one
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(|text| variable(&text)))]
    pub(super) env: Vec<(OsString, OsString)>,
    /// Copy into the microVM before the command starts: a file to GUEST, or into GUEST if that is a
    /// directory or ends with /; of a directory, its contents into GUEST
    #[arg(long, value_name = "HOST:GUEST", value_parser = OsStringValueParser::new().try_map(|text| copy_in(&text)))]
    pub(super) copy_in: Vec<CopyIn>,
    /// End the command after this time, e.g. 90s or 1h30m
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Time limit for the boot of the guest [default: 20s, in emulation 2m]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) boot_timeout: Option<Duration>,
    /// Accelerator: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<AcceleratorPreference>)]
    pub(super) accel: AcceleratorPreference,
    /// Egress policy of the microVM: one of the settings file, or none, open or github
    /// [default: open (any public address), for a runner github]
    #[arg(long, value_name = "POLICY")]
    pub(super) egress: Option<String>,
    /// Write a record of its allowed and refused connections into this directory
    #[arg(long, value_name = "DIR")]
    pub(super) egress_record: Option<PathBuf>,
    #[command(flatten)]
    pub(super) trust: TrustArguments,
    /// Settings file
    #[arg(long, value_name = "FILE", env = "MAYFLY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Print the duration of each phase on stderr
    #[arg(long)]
    pub(super) timings: bool,
    /// Print events as JSON lines on stderr
    #[arg(long)]
    pub(super) json: bool,
}

/// A file or directory to copy into the microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyIn {
    pub(super) host: PathBuf,
    pub(super) guest: Vec<u8>,
}

impl MicrovmArguments {
    /// Plans the microVM. `egress` is the default policy.
    pub(super) fn plan(
        &self,
        egress: &str,
        state: &StateDirectory,
        requested_at: u64,
    ) -> Result<MicrovmPlan, CliError> {
        let image = self.image.parse();
        let egress = self.egress.as_deref().unwrap_or(egress);
        let request = MicrovmRequest {
            requested_at,
            image: image
                .map_err(|error| CliError::usage(format!("--image {}: {error}", self.image)))?,
            trust: self.trust.trust(),
            accelerator: self.accel,
            processors: self.cpus,
            memory: self.memory,
            disk: self.disk,
            egress: Policies::read(self.config.as_deref())?.get(egress)?.clone(),
            egress_record: self.egress_record.as_deref().map(record_directory).transpose()?,
            boot: self.boot_timeout,
            deadlines: Deadlines { job: self.timeout, ..Deadlines::default() },
            detached: None,
        };
        let (plan, warning) = planner::plan(request, state)?;
        if let Some(warning) = warning {
            warn(&warning);
        }
        Ok(plan)
    }

    /// Returns the environment variables for the command.
    pub(super) fn environment(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        self.env.iter().map(|(name, value)| (bytes(name), bytes(value)))
    }
}

/// Converts an argument of the command line into the bytes of a job.
pub(super) fn bytes(text: &OsStr) -> Bytes {
    text.as_bytes().to_vec().into()
}

/// Creates the record directory and returns its absolute path, because the shepherd has another
/// working directory.
fn record_directory(chosen: &Path) -> Result<PathBuf, CliError> {
    let made = std::fs::create_dir_all(chosen).and_then(|()| std::fs::canonicalize(chosen));
    made.map_err(|error| {
        CliError::file(format!("--egress-record {}: {error}", chosen.display()), Code::CannotWrite)
    })
}

/// Prints a warning if stderr is a terminal. Programs read the events instead.
fn warn(message: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        report::warning(message);
    }
}

/// The minimum memory: below it the kernel and the agent leave nothing for a command.
const MIN_MEMORY: Size = Size::mebibytes(192);

fn memory(text: &str) -> Result<Size, String> {
    let size: Size =
        text.parse().map_err(|error: mayfly_host::size::InvalidSize| error.to_string())?;
    if size < MIN_MEMORY {
        return Err(format!("a microVM needs at least {MIN_MEMORY}"));
    }
    Ok(size)
}

fn variable(text: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(0) => return Err("the name of the variable is empty".to_owned()),
        Some(at) => (OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]).into()),
        None => {
            let value =
                std::env::var_os(text).ok_or("the variable is not set here; use NAME=VALUE")?;
            (text, value)
        }
    };
    Ok((name.to_owned(), value))
}

fn copy_in(text: &OsStr) -> Result<CopyIn, String> {
    // A path on the host may contain colons. The guest path starts after the last one.
    let (host, guest) = split_paths(text, text.as_bytes().iter().rposition(|byte| *byte == b':'))?;
    Ok(CopyIn { host: host.into(), guest: absolute(guest)? })
}

/// Splits an argument into two paths at the given colon.
pub(super) fn split_paths(
    text: &OsStr,
    colon: Option<usize>,
) -> Result<(OsString, OsString), String> {
    let part = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
    match colon {
        Some(at) if at > 0 && at + 1 < text.len() => {
            let bytes = text.as_bytes();
            Ok((part(&bytes[..at]), part(&bytes[at + 1..])))
        }
        _ => Err("expected two paths separated by a colon".to_owned()),
    }
}

/// Checks that a path in the guest is absolute.
pub(super) fn absolute(path: OsString) -> Result<Vec<u8>, String> {
    if path.as_bytes().starts_with(b"/") {
        Ok(path.into_vec())
    } else {
        Err("the path in the microVM must be absolute".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_in_is_split_at_the_last_colon() {
        let copy = copy_in("a:b:/c".as_ref()).unwrap();
        assert_eq!((copy.host, copy.guest), ("a:b".into(), b"/c".to_vec()));
        for wrong in ["", ":", "a", "a:", ":/b", "a:b"] {
            assert!(copy_in(wrong.as_ref()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables_are_split_at_the_first_equals_sign_and_may_be_any_bytes() {
        let bytes = OsString::from_vec(b"A=b=\xff".to_vec());
        let (name, value) = variable(&bytes).unwrap();
        assert_eq!((name.as_bytes(), value.as_bytes()), (&b"A"[..], &b"b=\xff"[..]));
        assert!(variable("=x".as_ref()).is_err());
        assert!(variable("MAYFLY_SURELY_NOT_SET".as_ref()).is_err());
    }

    #[test]
    fn too_little_memory_is_rejected_with_the_minimum() {
        assert_eq!(memory("64M").unwrap_err(), "a microVM needs at least 192 MiB");
    }
}
