//! The arguments of `mayfly run`, and how each is read.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::cli::microvm::{MicrovmArguments, absolute, halves};

/// Run a command in a throwaway microVM.
///
/// The microVM is booted for this command and destroyed after it. The exit status is the
/// command's (128 + n if signal n ended it); Mayfly's own failures have codes of their own, from 64
/// on. Ctrl-C interrupts the command; a second one ends the microVM.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(super) microvm: MicrovmArguments,
    /// Where the command starts [default: the user's home directory]
    #[arg(long, short = 'w', value_name = "DIR")]
    pub(super) workdir: Option<OsString>,
    /// The user it runs as [default: runner]
    #[arg(long, short = 'u', value_name = "NAME")]
    pub(super) user: Option<String>,
    /// Copy out of the microVM after the command ended, or at the timeout: a file to HOST, or into
    /// it under its own name if that is a directory or ends with /; a directory to HOST, or into it
    /// under its own name if HOST has another name and is not empty
    #[arg(long, value_name = "GUEST:HOST", value_parser = OsStringValueParser::new().try_map(|text| copy_out(&text)))]
    pub(super) copy_out: Vec<CopyOut>,
    /// Connect standard input to the command
    #[arg(long, short = 'i')]
    pub(super) interactive: bool,
    /// Give the command a terminal
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
   64  wrong arguments                      77  the host forbids it
   65  an image was changed                124  the command did not end in time
   66  no such image or file               125  the microVM failed
   69  the host lacks something            126  the command can't be executed
   73  a file can't be written             127  there is no such command";

/// A file or directory to be copied out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CopyOut {
    pub(crate) guest: Vec<u8>,
    pub(crate) host: PathBuf,
}

fn copy_out(text: &OsStr) -> Result<CopyOut, String> {
    let (guest, host) = halves(text, text.as_bytes().iter().position(|byte| *byte == b':'))?;
    Ok(CopyOut { guest: absolute(guest)?, host: host.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_split_where_its_guest_path_ends() {
        let copy = copy_out("/c:a:b".as_ref()).unwrap();
        assert_eq!((copy.guest, copy.host), (b"/c".to_vec(), "a:b".into()));
        assert!(copy_out("c:a".as_ref()).is_err());
    }
}
