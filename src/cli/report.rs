//! Prints errors: the full chain of causes once, then a hint.

use std::path::Path;
use std::process::ExitCode;

use super::output::print_stderr;
use mayfly_failure::{Code, Failure, chain};
use mayfly_host::check::HostCheck;
use mayfly_shepherd::event::FailureReport;

/// An error of any crate, with its hint and exit code.
#[derive(Debug)]
pub(super) struct CliError {
    message: String,
    hint: Option<String>,
    code: Code,
}

impl<F: Failure + 'static> From<F> for CliError {
    fn from(failure: F) -> Self {
        Self { message: chain(&failure), hint: failure.hint(), code: failure.code() }
    }
}

impl CliError {
    /// Creates an error about arguments that no crate has an error for.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: Code::Usage }
    }

    /// Converts the error into a failed check of `mayfly doctor`.
    pub(super) fn as_check(&self, subject: &str) -> HostCheck {
        HostCheck::bad(subject, &self.message, self.hint.as_deref().unwrap_or_default())
    }

    /// Creates an error with an exit code and without a hint.
    pub(super) fn file(message: impl Into<String>, code: Code) -> Self {
        Self { message: message.into(), hint: None, code }
    }
}

/// Prints an error and returns its exit code.
pub(super) fn error(error: &CliError) -> ExitCode {
    show(&error.message, error.hint.as_deref());
    ExitCode::from(error.code as u8)
}

/// Prints how a microVM failed, with the end of its console, and returns the exit code.
pub(super) fn microvm_failure(report: &FailureReport, console: &[String]) -> ExitCode {
    let mut message = report.message.clone();
    for line in console {
        message.push_str("\n  | ");
        message.push_str(line);
    }
    show(&message, option_hint(&report.cause).or(report.hint.as_deref()));
    print_evidence(&report.black_box);
    ExitCode::from(report.code)
}

/// Returns the hint for a cause that names an option of `mayfly run` and `mayfly once`. Hints of
/// other crates name no options, because users of the daemon read them too.
fn option_hint(cause: &str) -> Option<&'static str> {
    match cause {
        "job_deadline" => Some("use a longer --timeout"),
        "host_disk_full" => {
            Some("free space on the file system of the state directory, or use a smaller --disk")
        }
        "job_too_long" => Some("pass large data as a file with --copy-in"),
        _ => None,
    }
}

/// Prints the path of the black box, if it exists.
pub(super) fn print_evidence(black_box: &Path) {
    if black_box.is_dir() {
        print_stderr(format_args!("evidence: {}", black_box.display()));
    }
}

/// Prints a warning.
pub(super) fn warning(message: &str) {
    print_stderr(format_args!("{YELLOW}warning{RESET}: {message}"));
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[1;36m";
const RESET: &str = "\x1b[0m";

fn show(message: &str, hint: Option<&str>) {
    print_stderr(format_args!("{RED}error{RESET}: {message}"));
    if let Some(hint) = hint {
        print_stderr(format_args!("{CYAN}hint{RESET}: {hint}"));
    }
}

/// Returns a word in the color of an outcome, or without color if stdout is not a terminal.
pub(super) fn colored(outcome: mayfly_host::check::CheckOutcome, word: &str) -> String {
    use mayfly_host::check::CheckOutcome;
    let color = match outcome {
        CheckOutcome::Good => GREEN,
        CheckOutcome::Warning => YELLOW,
        CheckOutcome::Bad => RED,
    };
    match anstream::AutoStream::choice(&std::io::stdout()) {
        anstream::ColorChoice::Never => word.to_owned(),
        _ => format!("{color}{word}{RESET}"),
    }
}

/// Prints an error of clap or the requested help, and returns the exit code.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // If stderr is closed, nothing can report it.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS }
}
