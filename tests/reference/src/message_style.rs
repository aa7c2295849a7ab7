//! Checks the style of errors, hints and log messages. Their readers may not have typed a command
//! and don't know this program's types. So a text outside `cli/` must not name a command line
//! option, unless it contains the whole command, and no text may show the `Debug` format of a value
//! other than a string.

use std::path::Path;

use super::sources::{all, workspace};

/// Folders and files that only the command line uses: its commands, and image builds.
const COMMAND_LINE_ONLY: [&str; 5] =
    ["cli", "trial", "image/build", "image/hardening", "api/client.rs"];
/// Prefixes of a whole command.
const COMMANDS: [&str; 5] = ["mayfly ", "cargo ", "unshare ", "usermod ", "-C target-feature"];
/// Texts of `image/error.rs` that only `mayfly image` prints.
const IMAGE_COMMAND_TEXTS: [&str; 5] = [
    "invalid setting --set",
    "Set a longer limit with",
    "Set its path with --agent",
    "Give an archive with",
    "Name the recipe with",
];
/// Names of values that are strings, which `Debug` prints in quotation marks.
const STRING_VALUES: [&str; 11] = [
    "destination",
    "found",
    "host",
    "label",
    "name",
    "output",
    "path",
    "program",
    "text",
    "user",
    "value",
];
/// Prefixes of texts that show unnamed values which are strings, and of texts that users don't
/// read: names of threads, fingerprints, `Debug` implementations.
const ALLOWED_PREFIXES: [&str; 12] = [
    "unknown pool {:?}",
    "unknown runner group {:?}",
    "{:?}, or that with other properties",
    "{0:?} is not a head of an audit log",
    "{0:?} is not a size",
    "a host name must not contain {0:?}",
    "the ClientHello names another server, {0:?}",
    "the request names another host, {0:?}",
    "unknown message type {0:?}",
    "label {0:?}",
    "{policy:?}",
    "JobDelivery {{",
];
fn is_in(path: &Path, folders: &[&str]) -> bool {
    let root = workspace().join("src");
    folders.iter().any(|folder| path.starts_with(root.join(folder)))
}

/// Returns whether a text names an option that is not part of a whole command.
fn names_an_option(text: &str) -> bool {
    let is_option = |word: &str| {
        let word = word.trim_start_matches(['`', '(']);
        word.strip_prefix("--")
            .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    text.contains(' ')
        && text.split(' ').any(is_option)
        && !COMMANDS.iter().any(|command| text.contains(command))
        && !IMAGE_COMMAND_TEXTS.iter().any(|beginning| text.starts_with(beginning))
}

/// Returns whether a text shows the `Debug` format of a value that is not known to be a string.
fn shows_debug_format(text: &str) -> bool {
    let mut parts = text.split(":?}").chain(text.split(":#?}"));
    let shown = parts.clone().count() > 2;
    shown
        && !ALLOWED_PREFIXES.iter().any(|beginning| text.starts_with(beginning))
        && parts.any(|part| match part.rsplit_once('{') {
            Some((_, name)) if !name.contains(['}', ' ']) => !STRING_VALUES.contains(&name),
            _ => false,
        })
}

#[test]
fn messages_of_the_daemon_name_no_command_line_option() {
    let mut found = Vec::new();
    for source in all().iter().filter(|source| !is_in(&source.path, &COMMAND_LINE_ONLY)) {
        let wrong = source.texts().filter(|text| names_an_option(text));
        found.extend(wrong.map(|text| format!("{}: {text}", source.path.display())));
    }
    assert_eq!(found, Vec::<String>::new(), "name a setting, or omit the option");
}

#[test]
fn messages_contain_no_debug_format() {
    let mut found = Vec::new();
    for source in all() {
        let wrong = source.texts().filter(|text| shows_debug_format(text));
        found.extend(wrong.map(|text| format!("{}: {text}", source.path.display())));
        // Log fields: `stage = ?stage`, `?stage`.
        let fields = source.code.match_indices('?').filter(|(at, _)| {
            let before = source.code[..*at].chars().next_back();
            let after = source.code[at + 1..].chars().next();
            before.is_some_and(|c| c.is_whitespace() || c == '(')
                && after.is_some_and(|c| c.is_ascii_lowercase())
        });
        found.extend(fields.map(|(at, _)| {
            let line = source.code[..at].lines().last().unwrap_or_default();
            format!("{}: {line}?…", source.path.display())
        }));
    }
    assert_eq!(found, Vec::<String>::new(), "implement Display for the type");
}

#[test]
fn the_checks_find_violations() {
    for text in ["give it longer with --timeout", "or use a smaller `--disk`"] {
        assert!(names_an_option(text), "{text}");
    }
    for text in ["--timeout", "run mayfly image build --help", "a -- b", "10 --"] {
        assert!(!names_an_option(text), "{text}");
    }
    for text in ["while {stage:?}", "{:?} is", "it is {stage:#?} now", "{text:?} in {stage:?}"] {
        assert!(shows_debug_format(text), "{text}");
    }
    assert!(!shows_debug_format("unknown user {user:?} in {path}"));
}
