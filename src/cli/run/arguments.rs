//! The arguments of `mayfly run`, and how each is read.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::host::size::Size;
use crate::machine::accelerator::Wish;

/// Run a command in a throwaway microVM.
///
/// The microVM is booted for this command and destroyed after it. The exit status is the
/// command's (128 + n if signal n ended it); Mayfly's own failures have codes of their own, from 64
/// on. Ctrl-C interrupts the command; a second one ends the microVM.
#[derive(Debug, clap::Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArguments {
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
    /// Where the command starts [default: the user's home directory]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(super) workdir: Option<OsString>,
    /// The user it runs as [default: runner]
    #[arg(long, short = 'u', value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Copy a file or directory into the microVM before the command starts
    #[arg(long, value_name = "HOST:GUEST", value_parser = OsStringValueParser::new().try_map(|text| copy_in(&text)))]
    pub(super) copy_in: Vec<CopyIn>,
    /// Copy a file or directory out of the microVM after the command ended
    #[arg(long, value_name = "GUEST:HOST", value_parser = OsStringValueParser::new().try_map(|text| copy_out(&text)))]
    pub(super) copy_out: Vec<CopyOut>,
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
    #[arg(long, value_name = "POLICY", default_value = "none")]
    pub(super) egress: String,
    /// Keep the record of what it reached, and was refused, in this directory
    #[arg(long, value_name = "DIR")]
    pub(super) egress_record: Option<PathBuf>,
    /// The settings file
    #[arg(long, value_name = "FILE", env = "MAYFLY_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// Connect standard input to the command
    #[arg(long, short = 'i')]
    pub(super) interactive: bool,
    /// Give the command a terminal
    #[arg(long, short = 't')]
    pub(super) tty: bool,
    /// Say on stderr how long each phase took
    #[arg(long)]
    pub(super) timings: bool,
    /// Print events as JSON lines on stderr
    #[arg(long)]
    pub(super) json: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly run -- sh -c 'uname -a; id'
  mayfly run -i -- wc -c < file
  mayfly run -it --user root -- bash
  mayfly run --copy-in .:/home/runner/src -w src --copy-out /home/runner/src/out:out -- ./build
  mayfly run --egress open -- curl -sI https://example.com
  mayfly run --memory 4G --cpus 2 --timeout 20m --timings -- make test

Exit codes of Mayfly itself:
   64  wrong arguments                      77  the host forbids it
   65  an image was changed                124  the command did not end in time
   66  no such image or file               125  the microVM failed
   69  the host lacks something            126  the command can't be executed
   73  a file can't be written             127  there is no such command";

/// A file or directory to be copied in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyIn {
    pub(super) host: PathBuf,
    pub(super) guest: Vec<u8>,
}

/// A file or directory to be copied out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopyOut {
    pub(super) guest: Vec<u8>,
    pub(super) host: PathBuf,
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

fn copy_out(text: &OsStr) -> Result<CopyOut, String> {
    let (guest, host) = halves(text, text.as_bytes().iter().position(|byte| *byte == b':'))?;
    Ok(CopyOut { guest: absolute(guest)?, host: host.into() })
}

fn halves(text: &OsStr, colon: Option<usize>) -> Result<(OsString, OsString), String> {
    let half = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
    match colon {
        Some(at) if at > 0 && at + 1 < text.len() => {
            let bytes = text.as_bytes();
            Ok((half(&bytes[..at]), half(&bytes[at + 1..])))
        }
        _ => Err("write two paths with a colon between them".to_owned()),
    }
}

fn absolute(path: OsString) -> Result<Vec<u8>, String> {
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
    fn copies_are_split_where_their_guest_path_begins_or_ends() {
        let copy = copy_in("a:b:/c".as_ref()).unwrap();
        assert_eq!((copy.host, copy.guest), ("a:b".into(), b"/c".to_vec()));
        let copy = copy_out("/c:a:b".as_ref()).unwrap();
        assert_eq!((copy.guest, copy.host), (b"/c".to_vec(), "a:b".into()));
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
