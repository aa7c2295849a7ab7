//! How failures are shown: the whole chain of causes once, then what to do about it.

use std::path::Path;
use std::process::ExitCode;

use super::output::tell;
use crate::failure::{Code, Failure, chain};
use crate::host::check::Check;
use crate::shepherd::event::FailureReport;

/// A failure of any folder, on its way to a person.
#[derive(Debug)]
pub(super) struct Problem {
    message: String,
    hint: Option<String>,
    code: Code,
}

impl<F: Failure + 'static> From<F> for Problem {
    fn from(failure: F) -> Self {
        Self { message: chain(&failure), hint: failure.hint(), code: failure.code() }
    }
}

impl Problem {
    /// A failure that no folder has an error for: arguments that do not go together.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: Code::Usage }
    }

    /// As a check of `mayfly doctor` that failed.
    pub(super) fn as_check(&self, subject: &str) -> Check {
        Check::bad(subject, &self.message, self.hint.as_deref().unwrap_or_default())
    }

    /// A file that was named but can't be used.
    pub(super) fn file(message: impl Into<String>, code: Code) -> Self {
        Self { message: message.into(), hint: None, code }
    }
}

/// Shows a problem and gives its exit code.
pub(super) fn problem(problem: &Problem) -> ExitCode {
    show(&problem.message, problem.hint.as_deref());
    ExitCode::from(problem.code as u8)
}

/// Shows how a microVM failed, with the end of its console, and gives the exit code.
pub(super) fn failed(report: &FailureReport, console: &[String]) -> ExitCode {
    let mut message = report.message.clone();
    for line in console {
        message.push_str("\n  | ");
        message.push_str(line);
    }
    show(&message, option(&report.cause).or(report.hint.as_deref()));
    evidence(&report.black_box);
    ExitCode::from(report.code)
}

/// The option of `mayfly run` and `mayfly once` that helps against a cause. Hints of other folders
/// name none, as the daemon's users read them, too.
fn option(cause: &str) -> Option<&'static str> {
    match cause {
        "job_deadline" => Some("give it longer with --timeout"),
        "host_disk_full" => {
            Some("make room on the file system of the state directory, or use a smaller --disk")
        }
        "job_too_long" => Some("copy large data in as a file with --copy-in"),
        _ => None,
    }
}

/// Says where the evidence of an abnormal end is, if there is any.
pub(super) fn evidence(black_box: &Path) {
    if black_box.is_dir() {
        tell(format_args!("evidence: {}", black_box.display()));
    }
}

/// A warning that stops nothing.
pub(super) fn warning(message: &str) {
    tell(format_args!("{YELLOW}warning{RESET}: {message}"));
}

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const GREEN: &str = "\x1b[32m";
const CYAN: &str = "\x1b[1;36m";
const RESET: &str = "\x1b[0m";

fn show(message: &str, hint: Option<&str>) {
    tell(format_args!("{RED}error{RESET}: {message}"));
    if let Some(hint) = hint {
        tell(format_args!("{CYAN}hint{RESET}: {hint}"));
    }
}

/// A word in the colour of its meaning; without colour where stdout is no terminal.
pub(super) fn coloured(outcome: crate::host::check::Outcome, word: &str) -> String {
    use crate::host::check::Outcome;
    let colour = match outcome {
        Outcome::Good => GREEN,
        Outcome::Warning => YELLOW,
        Outcome::Bad => RED,
    };
    match anstream::AutoStream::choice(&std::io::stdout()) {
        anstream::ColorChoice::Never => word.to_owned(),
        _ => format!("{colour}{word}{RESET}"),
    }
}

/// Arguments that clap refused, or help that was asked for.
pub(super) fn usage(error: &clap::Error) -> ExitCode {
    // There is nowhere to report that stderr is closed.
    let _ = error.print();
    if error.use_stderr() { ExitCode::from(Code::Usage as u8) } else { ExitCode::SUCCESS }
}
