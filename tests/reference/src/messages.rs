//! Generates `docs/reference/messages.md`, so that a review sees all messages side by side, and checks
//! their form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::sources::{Literal, Source, all, workspace};
use crate::assert_generated;

/// The most words of one message.
const MAX_WORDS: usize = 25;
/// The first words of texts that other programs read.
const FOR_PROGRAMS: [&str; 34] = [
    "echo ",
    "{JOB} ",
    "{MICROVM} WHERE",
    "{REGISTRATION} WHERE",
    "SELECT ",
    "INSERT ",
    "UPDATE ",
    "DELETE ",
    "CREATE ",
    "ALTER ",
    "DROP ",
    "DESC ",
    "IS NOT NULL",
    "PRAGMA ",
    "WITH ",
    "VACUUM ",
    "BEGIN ",
    "<",
    "#",
    "table ip ",
    "id -Gn",
    "awk ",
    "exec ",
    "own=",
    "for ",
    "bash ",
    "setpriv ",
    "grep ",
    "head -c",
    "ls -d",
    "cd &&",
    "git init",
    "printf ",
    "getent ",
];
/// Calls and attributes whose texts people read, however short.
const SHOWN: [&str; 9] = [
    "#[error",
    "error!",
    "warn!",
    "info!",
    "debug!",
    "hint",
    "warning",
    "ApiError::new",
    "CliError::file",
];
/// Calls whose texts nobody reads while Mayfly runs well.
const NOT_SHOWN: [&str; 3] = ["assert!", "assert_eq!", "unreachable!"];
/// Phrases that hide who does what, with an example of what to say instead.
const VAGUE: [(&str, &str); 8] = [
    ("there is no ", "NAME not found"),
    ("there are no ", "no NAME"),
    ("there is none", "NAME is not set"),
    ("that there is", "available"),
    ("nobody", "no client"),
    ("came to be", "started"),
    (" is no ", "is not a NAME"),
    ("somebody", "a client"),
];

/// Returns whether a literal is a message: an argument of a call that shows it to people, or
/// otherwise a sentence or a part of one. Texts that begin on a line of their own are pages, examples
/// and scripts.
fn is_message(literal: &Literal) -> bool {
    let Literal { text, call, is_lint_reason } = literal;
    let calls = |names: &[&str]| names.iter().any(|name| call.ends_with(name));
    if *is_lint_reason || calls(&NOT_SHOWN) || text.is_empty() {
        return false;
    }
    if calls(&SHOWN) {
        return true;
    }
    let is_word = |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_ascii_alphabetic());
    text.split_whitespace().filter(is_word).count() > 2
        && !text.starts_with('\\')
        && !FOR_PROGRAMS.iter().any(|beginning| text.starts_with(beginning))
}

fn messages(source: &Source) -> impl Iterator<Item = String> {
    let literals = source.literals.iter().filter(|literal| is_message(literal));
    literals.map(|literal| literal.text.replace("\\ ", ""))
}

/// Returns the crate that a file belongs to.
fn folder(path: &Path) -> String {
    let inside = path.strip_prefix(workspace()).unwrap().to_str().unwrap();
    let (_, below) = inside.split_once('/').unwrap();
    below.split('/').next().unwrap().to_owned()
}

#[test]
fn the_page_lists_all_messages() {
    let mut folders = BTreeMap::<_, Vec<_>>::new();
    let sources = all();
    for source in &sources {
        folders.entry(folder(&source.path)).or_default().extend(messages(source));
    }
    let mut page = "# Messages\n\nLook up a message here, or review the wording of all of them: errors, hints, log \
                    lines, progress. Texts in braces are filled in. The help of the command line is \
                    in [commands.md](commands.md).\n"
        .to_owned();
    for (folder, mut texts) in folders {
        texts.sort();
        texts.dedup();
        if !texts.is_empty() {
            write!(page, "\n## {folder}\n\n```text\n").unwrap();
            for text in &texts {
                writeln!(page, "{text}").unwrap();
            }
            page.push_str("```\n");
        }
    }
    assert_generated("reference/messages.md", &page);
}

#[test]
fn messages_are_short_and_say_who_does_what() {
    let mut found = Vec::new();
    for source in all() {
        for text in messages(&source) {
            let lower = text.to_lowercase().replace(" no longer", "");
            if let Some((phrase, better)) = VAGUE.iter().find(|(phrase, _)| lower.contains(phrase))
            {
                found
                    .push(format!("{}: {phrase:?}, try {better:?}: {text}", source.path.display()));
            }
            let longest =
                text.split(['.', ';', ':', '(']).map(|part| part.split_whitespace().count());
            if longest.max().unwrap_or_default() > MAX_WORDS {
                found.push(format!("{}: over {MAX_WORDS} words: {text}", source.path.display()));
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}
