//! Generates the page of all commands from their definitions, like the man pages.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory};

use super::Arguments;
use mayfly_reference::assert_generated;

const TOP: &str = "\
# Commands

Data goes to stdout, messages go to stderr. Scripts can rely on the [exit codes](exit-codes.md). Most commands have
`--json` for programs. The commands from `submit` to `reload` call the daemon's [API](api.md) through `--socket`, or
through the socket in the state directory. `audit` reads the ledger itself, with or without a daemon.
`mayfly COMMAND --help` and `man mayfly-COMMAND` have the same texts as this page.

";

fn page() -> String {
    let mut command = Arguments::command();
    command.build();
    let mut page = TOP.to_owned();
    page.push_str("| command | purpose |\n|---|---|\n");
    for (path, command) in leaves(&command) {
        let anchor = path.replace(' ', "-");
        let _ = writeln!(page, "| [`{path}`](#{anchor}) | {} |", about(command));
    }
    page.push_str("\nOptions of every command:\n\n");
    page.push_str(&options(command.get_arguments().filter(|option| option.is_global_set())));
    for (path, command) in leaves(&command) {
        page.push_str(&section(&path, command));
    }
    page
}

/// Returns the commands without subcommands, in order.
fn leaves(command: &Command) -> Vec<(String, &Command)> {
    let mut leaves = Vec::new();
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        if subcommand.has_subcommands() {
            leaves.extend(self::leaves(subcommand));
        } else {
            leaves.push((subcommand.get_bin_name().unwrap_or_default().to_owned(), subcommand));
        }
    }
    leaves
}

fn about(command: &Command) -> String {
    command.get_about().map(|about| about.to_string().replace('\n', " ")).unwrap_or_default()
}

fn section(path: &str, command: &Command) -> String {
    let mut text = format!("\n## `{path}`\n\n");
    let about = command.get_long_about().or(command.get_about());
    let _ = writeln!(text, "{}\n", about.map(ToString::to_string).unwrap_or_default());
    let usage = command.clone().render_usage().to_string();
    let _ = writeln!(text, "```text\n{}\n```\n", usage.trim_start_matches("Usage: "));
    let own: Vec<_> = command.get_arguments().filter(|option| !is_omitted(option)).collect();
    if !own.is_empty() {
        text.push_str(&options(own.into_iter()));
        text.push('\n');
    }
    let examples = command.get_after_long_help().or(command.get_after_help());
    let examples = examples.map(ToString::to_string).unwrap_or_default();
    let examples = examples.trim_start_matches("Examples:\n");
    let _ = writeln!(text, "```text\n{examples}\n```");
    text
}

/// Returns whether a section omits an option.
fn is_omitted(option: &Arg) -> bool {
    let id = option.get_id().as_str();
    option.is_hide_set() || ["state_dir", "help", "version"].contains(&id)
}

fn options<'a>(options: impl Iterator<Item = &'a Arg>) -> String {
    let mut table = "| option | meaning |\n|---|---|\n".to_owned();
    for option in options {
        let help = option.get_long_help().or(option.get_help());
        let mut help = help.map(|help| help.to_string().replace('\n', " ")).unwrap_or_default();
        // `|` separates the cells of a table, and `<` starts an HTML tag.
        help = help.replace('|', "\\|").replace('<', "&lt;");
        let defaults = option.get_default_values();
        if option.get_action().takes_values() && !defaults.is_empty() {
            let words: Vec<_> = defaults.iter().map(|word| word.to_string_lossy()).collect();
            let _ = write!(help, " [default: `{}`]", words.join(" "));
        }
        if let Some(variable) = option.get_env().filter(|_| !option.is_hide_env_set()) {
            let _ = write!(help, " [`{}`]", variable.to_string_lossy());
        }
        let _ = writeln!(table, "| `{}` | {help} |", call(option).replace('|', "\\|"));
    }
    table
}

/// Returns how an option is written.
fn call(option: &Arg) -> String {
    let names: Vec<_> = [
        option.get_short().map(|short| format!("-{short}")),
        option.get_long().map(|long| format!("--{long}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let takes = option.get_action().takes_values();
    let value = option.get_value_names().filter(|_| takes).unwrap_or_default().join(" ");
    format!("{} {value}", names.join(", ")).trim().to_owned()
}

#[test]
fn the_reference_matches_the_definitions() {
    assert_generated("reference/commands.md", &page());
}
