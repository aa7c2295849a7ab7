//! Generates shell completions and man pages from the command definitions. These hidden subcommands
//! are for `scripts/install`. The output omits everything that is hidden.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::output;
use super::report::CliError;
use mayfly_failure::Code;

/// Print completions for a shell.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Write a man page for each command into a directory.
#[derive(Debug, clap::Args)]
pub(super) struct ManArguments {
    /// Existing directory
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(
    arguments: &CompletionsArguments,
    command: &Command,
) -> Result<ExitCode, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut visible(command), command.get_name(), &mut text);
    let written = output::stdout().write_all(&text);
    written.map_err(|error| write_error(Path::new("standard output"), &error))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(arguments: &ManArguments, mut command: Command) -> Result<ExitCode, CliError> {
    command.build();
    pages(&command, &arguments.dir)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &Command, directory: &Path) -> Result<(), CliError> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        pages(subcommand, directory)?;
    }
    let man = Man::new(command.clone()).manual("Mayfly");
    let path = directory.join(man.get_filename());
    let page = page(&man, command).map_err(|error| write_error(&path, &error))?;
    std::fs::write(&path, to_ascii(&String::from_utf8_lossy(&page)))
        .map_err(|error| write_error(&path, &error))
}

fn page(man: &Man, command: &Command) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.get_subcommands().any(|subcommand| !subcommand.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    // `clap_mangen` would reflow these lines like prose.
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        page.extend_from_slice(examples(&text.to_string()).as_bytes());
    }
    Ok(page)
}

/// Returns the EXAMPLES section with the text below the options, line by line.
fn examples(text: &str) -> String {
    let mut section = ".SH EXAMPLES\n.nf\n".to_owned();
    for line in text.lines().filter(|line| *line != "Examples:") {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // `\&` keeps roff from reading a line as a request.
        let _ = writeln!(section, "\\&{line}");
    }
    section.push_str(".fi\n");
    section
}

/// Returns a page in ASCII, so that every roff reads it alike.
fn to_ascii(page: &str) -> String {
    page.chars()
        .map(|letter| match letter {
            _ if letter.is_ascii() => letter.to_string(),
            _ => format!("\\[u{:04X}]", u32::from(letter)),
        })
        .collect()
}

/// Returns a command without its hidden parts, as needed for completions.
fn visible(command: &Command) -> Command {
    let mut visible = Command::new(command.get_name().to_owned()).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        visible = visible.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        visible = visible.version(version.to_owned());
    }
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let subcommands = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    visible.args(arguments).subcommands(subcommands.map(self::visible))
}

fn write_error(path: &Path, error: &io::Error) -> CliError {
    CliError::file(format!("can't write {}: {error}", path.display()), Code::CannotWrite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_ascii() {
        assert_eq!(to_ascii("TOKEN=… \\-"), "TOKEN=\\[u2026] \\-");
    }

    #[test]
    fn lines_of_examples_are_not_roff_requests() {
        let section = examples("Examples:\n  mayfly run -- 'a\\b'\n.ig\n'ig");
        let lines: Vec<_> = section.lines().collect();
        let expected =
            [".SH EXAMPLES", ".nf", "\\&  mayfly run \\-\\- 'a\\eb'", "\\&.ig", "\\&'ig", ".fi"];
        assert_eq!(lines, expected);
    }
}
