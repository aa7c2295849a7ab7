//! `mayfly audit`: verifies, prints and exports the daemon's audit log.

use std::path::PathBuf;
use std::process::ExitCode;

use super::output;
use super::report::CliError;
use mayfly_host::state::StateDirectory;
use mayfly_ledger::audit::AuditHead;
use mayfly_ledger::{LedgerError, LedgerReader, segments};

/// The subcommands of `mayfly audit`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum AuditCommand {
    /// Verify that no entry was changed or removed
    ///
    /// Verifies the chain of hashes and prints its head: the number and hash of the last entry.
    /// Store the head elsewhere and pass it to --contains later, to detect that the log was
    /// rewritten. Exits with 65 if the chain is broken.
    #[command(after_help = VERIFY_EXAMPLES)]
    Verify {
        /// A head that was printed earlier and that the log must contain
        #[arg(long, value_name = "NUMBER:HASH")]
        contains: Option<AuditHead>,
        /// Verify an export instead of the daemon's own log
        #[arg(long, value_name = "DIRECTORY")]
        exported: Option<PathBuf>,
    },
    /// Print the entries as JSON lines, oldest first
    #[command(after_help = SHOW_EXAMPLES)]
    Show {
        /// Print only the entries after this number
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        after: u64,
    },
    /// Copy the log into a directory, as files of 4096 entries each, and print the head
    ///
    /// Verifies existing files instead of writing them again, so a daily export is cheap. The
    /// daemon removes old segments (`host.audit_age`, `host.audit_bytes`); an export keeps them.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export {
        /// Target directory
        directory: PathBuf,
    },
}

const VERIFY_EXAMPLES: &str = "\
Examples:
  mayfly audit verify | tee head         store the head where the daemon can't write
  mayfly audit verify --contains $(cat head)";

const EXPORT_EXAMPLES: &str = "\
Examples:
  mayfly audit export /srv/evidence/mayfly
  mayfly audit verify --exported /srv/evidence/mayfly";

const SHOW_EXAMPLES: &str = "\
Examples:
  mayfly audit show --after 1200
  mayfly audit show | jq -c 'select(.action == \"registration.intended\")'";

pub(super) fn run(command: &AuditCommand, state: &StateDirectory) -> Result<ExitCode, CliError> {
    let reader = || LedgerReader::open(&state.ledger());
    let audit_directory = state.audit();
    match command {
        AuditCommand::Verify { contains, exported: Some(directory) } => {
            output::stdout().line(segments::verify_exported(directory, *contains)?)?;
        }
        AuditCommand::Verify { contains, exported: None } => {
            output::stdout().line(reader()?.verify_audit(&audit_directory, *contains)?)?;
        }
        AuditCommand::Export { directory } => {
            output::stdout().line(reader()?.export_audit(&audit_directory, directory)?)?;
        }
        AuditCommand::Show { after } => {
            let mut out = output::stdout();
            reader()?.audit_history(&audit_directory, *after, |line| {
                let text = serde_json::to_string(line);
                let text = text.map_err(|error| LedgerError::Json("an entry", error))?;
                Ok::<_, CliError>(out.line(text)?)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
