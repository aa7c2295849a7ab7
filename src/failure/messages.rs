//! Generates `docs/reference/messages.md`, so that a review sees all messages side by side, and checks
//! their form.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::sources::{Source, all};
use mayfly_reference::assert_generated;

/// The most words of one message.
const MAX_WORDS: usize = 25;
/// The first words of texts that other programs read.
const FOR_PROGRAMS: [&str; 15] = [
    "{JOB} ", "id -Gn", "awk ", "SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "ALTER ",
    "PRAGMA ", "WITH ", "VACUUM ", "BEGIN ", "<", "#",
];
/// Phrases that hide who does what, with an example of what to say instead.
const VAGUE: [(&str, &str); 7] = [
    ("there is no ", "NAME not found"),
    ("there are no ", "no NAME"),
    ("there is none", "NAME is not set"),
    ("that there is", "available"),
    ("nobody", "no client"),
    ("came to be", "started"),
    ("it is no ", "not a NAME"),
];

/// Returns whether a text is a sentence for people, or a part of one. Texts that begin on a line of
/// their own are pages, examples and scripts.
fn is_message(text: &str) -> bool {
    let is_word = |word: &&str| word.len() > 1 && word.chars().all(|c| c.is_ascii_alphabetic());
    text.split_whitespace().filter(is_word).count() > 2
        && !text.starts_with('\\')
        && !FOR_PROGRAMS.iter().any(|beginning| text.starts_with(beginning))
}

fn messages(source: &Source) -> impl Iterator<Item = String> {
    let texts = source.literals.iter().filter(|text| is_message(text));
    texts.map(|text| text.replace("\\ ", ""))
}

/// Returns the folder of `src/` that a file is in.
fn folder(path: &Path) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let inside = path.strip_prefix(root).unwrap();
    inside.iter().next().unwrap().to_string_lossy().trim_end_matches(".rs").to_owned()
}

#[test]
fn the_page_lists_all_messages() {
    let mut folders = BTreeMap::<_, Vec<_>>::new();
    let sources = all();
    for source in &sources {
        folders.entry(folder(&source.path)).or_default().extend(messages(source));
    }
    let mut page = "# Messages\n\nEvery message that the code of `src/` contains: errors, hints, log \
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
            let lower = text.to_lowercase();
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
