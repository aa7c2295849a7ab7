//! The arguments of `mayfly run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::microvm::{MicrovmArguments, absolute, split_paths};

/// Run a command in a throwaway microVM.
///
/// Boots a microVM for the command and destroys it afterwards. Exits with the command's status, or
/// with 128 + n if signal n ended it. Mayfly's own failures have codes from 64 on. Ctrl-C
/// interrupts the command; a second Ctrl-C ends the microVM.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(super) microvm: MicrovmArguments,
    /// Working directory of the command [default: the user's home directory]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(super) workdir: Option<OsString>,
    /// User to run the command as [default: runner]
    #[arg(long, short = 'u', value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Copy out of the microVM when the command has ended or timed out: a file to HOST, or into
    /// HOST if that is a directory or ends with /; a directory to HOST, or into HOST under its own
    /// name if HOST has another name and is not empty
    #[arg(long, value_name = "GUEST:HOST", value_parser = OsStringValueParser::new().try_map(|text| copy_out(&text)))]
    pub(super) copy_out: Vec<CopyOut>,
    /// Connect standard input to the command
    #[arg(long, short = 'i')]
    pub(super) interactive: bool,
    /// Allocate a terminal for the command
    #[arg(long, short = 't')]
    pub(super) tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<OsString>,
}

const EXAMPLES: &str = "\
Examples:
  mayfly run -- sh -c 'uname -a; id'
  mayfly run -i -- wc -c < file
  mayfly run -it --user root -- bash
  mayfly run --copy-in .:/home/runner/src -w /home/runner/src -- git status
  mayfly run --copy-out /home/runner/out:out -- sh -c 'mkdir out; date > out/when'
  mayfly run --egress none -- ./untrusted
  mayfly run --memory 4G --cpus 2 --timeout 20m --timings -- make test

Exit codes of Mayfly itself:
   64  invalid arguments                    77  the host denies access
   65  an image was modified               124  the command timed out
   66  no such image or file               125  the microVM failed
   69  the host lacks something            126  the command can't be executed
   73  a file can't be written             127  the command does not exist";

/// A file or directory to copy out of the microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyOut {
    pub(crate) guest: Vec<u8>,
    pub(crate) host: PathBuf,
}

fn copy_out(text: &OsStr) -> Result<CopyOut, String> {
    let (guest, host) = split_paths(text, text.as_bytes().iter().position(|byte| *byte == b':'))?;
    Ok(CopyOut { guest: absolute(guest)?, host: host.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copy_out_is_split_at_the_first_colon() {
        let copy = copy_out("/c:a:b".as_ref()).unwrap();
        assert_eq!((copy.guest, copy.host), (b"/c".to_vec(), "a:b".into()));
        assert!(copy_out("c:a".as_ref()).is_err());
    }
}
