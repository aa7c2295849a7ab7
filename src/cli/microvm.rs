//! What every verb that makes one microVM can be told about it, and how each is read.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use mayfly_protocol::message::Bytes;

use super::report::{self, Problem};
use super::trust::TrustArguments;
use crate::egress::policy::Policies;
use crate::failure::Code;
use crate::host::size::Size;
use crate::host::state::StateDirectory;
use crate::machine::accelerator::Wish;
use crate::shepherd::plan::{Deadlines, Plan};
use crate::shepherd::planner::{self, Wanted};

/// A microVM of one command, on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct MicrovmArguments {
    /// The image to boot, by name or by name and the beginning of its digest
    #[arg(long, value_name = "NAME[@DIGEST]", default_value = "base")]
    pub(super) image: String,
    /// Virtual processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=255))]
    pub(super) cpus: u32,
    /// Memory of the microVM
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = memory)]
    pub(super) memory: Size,
    /// Size of its disk, of which only what is written takes room on the host [default: 16G, or
    /// the image's if that is more]
    #[arg(long, value_name = "SIZE")]
    pub(super) disk: Option<Size>,
    /// Set a variable for the command; without a value, the one it has here
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]", value_parser = OsStringValueParser::new().try_map(|text| variable(&text)))]
    pub(super) env: Vec<(OsString, OsString)>,
    /// Copy into the microVM before the command starts: a file to GUEST, or into it under its own
    /// name if that is a directory or ends with /; of a directory what is in it into GUEST
    #[arg(long, value_name = "HOST:GUEST", value_parser = OsStringValueParser::new().try_map(|text| copy_in(&text)))]
    pub(super) copy_in: Vec<CopyIn>,
    /// End the command after this time, e.g. 90s or 1h30m
    #[arg(long, value_name = "DURATION", default_value = "6h", value_parser = humantime::parse_duration)]
    pub(super) timeout: Duration,
    /// Give up a guest that is not ready after this time [default: 20s, and 2m in emulation]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(super) boot_timeout: Option<Duration>,
    /// What executes the guest's instructions: auto, kvm or tcg (software emulation)
    #[arg(long, value_name = "ACCELERATOR", default_value = "auto", value_parser = str::parse::<Wish>)]
    pub(super) accel: Wish,
    /// What the microVM may reach: a policy of the settings file, or none, open or github
    /// [default: open, any public address; for a runner github]
    #[arg(long, value_name = "POLICY")]
    pub(super) egress: Option<String>,
    /// Keep the record of what it reached, and was refused, in this directory
    #[arg(long, value_name = "DIR")]
    pub(super) egress_record: Option<PathBuf>,
    #[command(flatten)]
    pub(super) trust: TrustArguments,
    /// The settings file
    #[arg(long, value_name = "FILE", env = "MAYFLY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Say on stderr how long each phase took
    #[arg(long)]
    pub(super) timings: bool,
    /// Print events as JSON lines on stderr
    #[arg(long)]
    pub(super) json: bool,
}

/// A file or directory to be copied in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyIn {
    pub(super) host: PathBuf,
    pub(super) guest: Vec<u8>,
}

impl MicrovmArguments {
    /// The microVM that they ask for; `egress` is the policy where they name none.
    pub(super) fn plan(
        &self,
        egress: &str,
        state: &StateDirectory,
        asked: u64,
    ) -> Result<Plan, Problem> {
        let image = self.image.parse();
        let egress = self.egress.as_deref().unwrap_or(egress);
        let wanted = Wanted {
            asked,
            image: image
                .map_err(|error| Problem::usage(format!("--image {}: {error}", self.image)))?,
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
        let (plan, warning) = planner::plan(wanted, state)?;
        if let Some(warning) = warning {
            warn(&warning);
        }
        Ok(plan)
    }

    /// The variables for the command.
    pub(super) fn environment(&self) -> impl Iterator<Item = (Bytes, Bytes)> {
        self.env.iter().map(|(name, value)| (bytes(name), bytes(value)))
    }
}

/// A text of the command line as it goes into a job.
pub(super) fn bytes(text: &OsStr) -> Bytes {
    text.as_bytes().to_vec().into()
}

/// The shepherd works elsewhere, so the path must not depend on where it is.
fn record_directory(chosen: &Path) -> Result<PathBuf, Problem> {
    let made = std::fs::create_dir_all(chosen).and_then(|()| std::fs::canonicalize(chosen));
    made.map_err(|error| {
        Problem::file(format!("--egress-record {}: {error}", chosen.display()), Code::CannotWrite)
    })
}

/// A warning is for a person; a program reads the events.
fn warn(message: &str) {
    if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
        report::warning(message);
    }
}

/// Below this the kernel and the agent leave nothing for a command.
const LEAST_MEMORY: Size = Size::mebibytes(192);

fn memory(text: &str) -> Result<Size, String> {
    let size: Size =
        text.parse().map_err(|error: crate::host::size::NotASize| error.to_string())?;
    if size < LEAST_MEMORY {
        return Err(format!("a microVM needs at least {LEAST_MEMORY}"));
    }
    Ok(size)
}

fn variable(text: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    let (name, value) = match bytes.iter().position(|byte| *byte == b'=') {
        Some(0) => return Err("a variable needs a name".to_owned()),
        Some(at) => (OsStr::from_bytes(&bytes[..at]), OsStr::from_bytes(&bytes[at + 1..]).into()),
        None => {
            let value = std::env::var_os(text).ok_or("it has no value here; write NAME=VALUE")?;
            (text, value)
        }
    };
    Ok((name.to_owned(), value))
}

fn copy_in(text: &OsStr) -> Result<CopyIn, String> {
    // A path on the host may have colons; the guest's begins after the last.
    let (host, guest) = halves(text, text.as_bytes().iter().rposition(|byte| *byte == b':'))?;
    Ok(CopyIn { host: host.into(), guest: absolute(guest)? })
}

/// Two paths with a colon between them, at the given place.
pub(super) fn halves(text: &OsStr, colon: Option<usize>) -> Result<(OsString, OsString), String> {
    let half = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
    match colon {
        Some(at) if at > 0 && at + 1 < text.len() => {
            let bytes = text.as_bytes();
            Ok((half(&bytes[..at]), half(&bytes[at + 1..])))
        }
        _ => Err("write two paths with a colon between them".to_owned()),
    }
}

/// A path of the guest.
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
    fn a_copy_is_split_where_its_guest_path_begins() {
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
    fn too_little_memory_is_refused_with_what_is_needed() {
        assert_eq!(memory("64M").unwrap_err(), "a microVM needs at least 192 MiB");
    }
}
