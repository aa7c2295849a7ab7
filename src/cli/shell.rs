//! What is made of the command definitions: completions and man pages. Hidden verbs, which
//! `scripts/install` calls; what is hidden is in neither.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;

use super::output;
use super::report::Problem;
use crate::failure::Code;

/// Print the completions for a shell.
#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArguments {
    /// The shell
    shell: Shell,
}

/// Write a man page for each verb into a directory.
#[derive(Debug, clap::Args)]
pub(super) struct ManArguments {
    /// The directory, which has to be there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub(super) fn completions(
    arguments: &CompletionsArguments,
    command: &Command,
) -> Result<ExitCode, Problem> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut shown(command), command.get_name(), &mut text);
    let written = output::stdout().write_all(&text);
    written.map_err(|error| not_written(Path::new("standard output"), &error))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(arguments: &ManArguments, mut command: Command) -> Result<ExitCode, Problem> {
    command.build();
    pages(&command, &arguments.dir)?;
    Ok(ExitCode::SUCCESS)
}

fn pages(command: &Command, directory: &Path) -> Result<(), Problem> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        pages(verb, directory)?;
    }
    let man = Man::new(command.clone()).manual("Mayfly");
    let path = directory.join(man.get_filename());
    let page = page(&man, command).map_err(|error| not_written(&path, &error))?;
    std::fs::write(&path, plain(&String::from_utf8_lossy(&page)))
        .map_err(|error| not_written(&path, &error))
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
    if command.get_subcommands().any(|verb| !verb.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    // The library would fill these lines as if they were prose.
    if let Some(text) = command.get_after_long_help().or(command.get_after_help()) {
        page.extend_from_slice(examples(&text.to_string()).as_bytes());
    }
    Ok(page)
}

/// Text below the options, line by line as it is.
fn examples(text: &str) -> String {
    let mut section = ".SH EXAMPLES\n.nf\n".to_owned();
    for line in text.lines().filter(|line| *line != "Examples:") {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // With it, no line is taken for a request.
        let _ = writeln!(section, "\\&{line}");
    }
    section.push_str(".fi\n");
    section
}

/// A page that every roff reads alike, whatever the character set of the system.
fn plain(page: &str) -> String {
    page.chars()
        .map(|letter| match letter {
            _ if letter.is_ascii() => letter.to_string(),
            _ => format!("\\[u{:04X}]", u32::from(letter)),
        })
        .collect()
}

/// A command without what is hidden, as far as completions are about it.
fn shown(command: &Command) -> Command {
    let mut shown = Command::new(command.get_name().to_owned()).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(version) = command.get_version() {
        shown = shown.version(version.to_owned());
    }
    let arguments = command.get_arguments().filter(|argument| !argument.is_hide_set());
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.args(arguments).subcommands(verbs.map(self::shown))
}

fn not_written(path: &Path, error: &io::Error) -> Problem {
    Problem::file(format!("can't write {}: {error}", path.display()), Code::CannotWrite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_ascii() {
        assert_eq!(plain("TOKEN=… \\-"), "TOKEN=\\[u2026] \\-");
    }

    #[test]
    fn no_line_of_an_example_is_taken_for_a_request() {
        let section = examples("Examples:\n  mayfly run -- 'a\\b'\n.ig\n'ig");
        let lines: Vec<_> = section.lines().collect();
        let expected =
            [".SH EXAMPLES", ".nf", "\\&  mayfly run \\-\\- 'a\\eb'", "\\&.ig", "\\&'ig", ".fi"];
        assert_eq!(lines, expected);
    }
}
