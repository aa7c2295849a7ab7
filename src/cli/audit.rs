//! `mayfly audit`: whether the daemon's audit log is whole, and what is in it.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use super::report::Problem;
use crate::host::state::StateDirectory;
use crate::ledger::audit::Head;
use crate::ledger::{LedgerError, Reader, segments};

/// The verbs of `mayfly audit`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Say whether each entry follows from the one before, and none was changed or removed
    ///
    /// Prints the head: the last entry's number and hash. Kept elsewhere, it shows with --contains
    /// whether the log was rewritten since. Exit code 65 where the chain is broken.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        /// A head that was printed earlier, which the log must contain
        #[arg(long, value_name = "NUMBER:HASH")]
        contains: Option<Head>,
        /// Look at an export instead of the daemon's own log
        #[arg(long, value_name = "DIRECTORY")]
        exported: Option<PathBuf>,
    },
    /// Print the entries as JSON lines, the oldest first
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// Only those after this number
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
    },
    /// Copy the log into a directory, as files of 4096 entries each, and print the head
    ///
    /// What is there already is checked and not written again, so it costs little to do it daily. The
    /// daemon removes old segments (`host.audit_age`, `host.audit_bytes`); an export keeps what it has.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// Where to
        directory: PathBuf,
    },
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  mayfly audit verify | tee head         keep the head where the daemon can't write
  mayfly audit verify --contains $(cat head)";

const EXPORT_EXAMPLES: &str = "\
Examples:
  mayfly audit export /srv/evidence/mayfly
  mayfly audit verify --exported /srv/evidence/mayfly";

const SHOW_EXAMPLES: &str = "\
Examples:
  mayfly audit show --after 1200
  mayfly audit show | jq -c 'select(.action == \"registration.intended\")'";

pub(super) fn run(verb: &Verb, state: &StateDirectory) -> Result<ExitCode, Problem> {
    let reader = || Reader::open(&state.ledger());
    let kept = state.audit();
    match verb {
        Verb::Verify { contains, exported: Some(directory) } => {
            output::stdout().line(segments::verify_exported(directory, *contains)?)?;
        }
        Verb::Verify { contains, exported: None } => {
            output::stdout().line(reader()?.verify_audit(&kept, *contains)?)?;
        }
        Verb::Export { directory } => {
            output::stdout().line(reader()?.export_audit(&kept, directory)?)?;
        }
        Verb::Show { after } => {
            let mut out = output::stdout();
            reader()?.audit_history(&kept, *after, |line| {
                let text = serde_json::to_string(line);
                let text = text.map_err(|error| LedgerError::Json("an entry", error))?;
                Ok::<_, Problem>(out.line(text)?)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
