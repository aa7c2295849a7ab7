//! What people read of errors, hints and the log: whoever reads it may have typed no command, and has
//! never seen this program's types. So no text outside `cli/` names an option of a command line, unless
//! it says the whole command, and none shows a value as Rust prints it, unless that is a text.

use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files that only a command line reaches: its verbs, and the building of images.
const OF_COMMANDS: [&str; 5] = ["cli", "trial", "image/build", "image/hardening", "api/client.rs"];
/// Files of tests whose names don't say so.
const OF_TESTS: [&str; 5] =
    ["properties.rs", "simulation.rs", "world.rs", "words.rs", "reference.rs"];
/// What begins a whole command.
const COMMANDS: [&str; 5] = ["mayfly ", "cargo ", "unshare ", "usermod ", "-C target-feature"];
/// Texts of `image/error.rs` that only `mayfly image` says.
const OF_IMAGE: [&str; 5] = [
    "--set {setting} is wrong",
    "Give it more with",
    "Name it with --agent",
    "Name an archive with",
    "Name the recipe with",
];
/// Names of values that are texts, which Rust prints in quotation marks.
const TEXTS: [&str; 12] = [
    "answer",
    "destination",
    "found",
    "host",
    "label",
    "name",
    "path",
    "program",
    "text",
    "user",
    "value",
    "wanted",
];
/// Beginnings of what shows values without a name that are texts, and of what nobody reads: names of
/// threads, fingerprints, what `Debug` itself writes.
const KNOWN: [&str; 17] = [
    "there is no pool {:?}",
    "there is no runner group {:?}",
    "{:?}, or that with other properties",
    "{0:?} is no head of an audit log",
    "{0:?} is no address such as",
    "{0:?} is not https",
    "{0:?} names no organisation",
    "{0:?} is no repository such as",
    "{0:?} is no size",
    "the character {0:?}",
    "the ClientHello names {0:?}",
    "the request's Host is {0:?}",
    "the message's kind {0:?}",
    "label {0:?}",
    "{stream:?}",
    "{policy:?}",
    "Delivery {{",
];
/// Quotation marks that begin no text.
const QUOTES: [&str; 2] = ["'\"'", "'\\\"'"];

/// The code of a file without its tests and comments, and its string literals.
struct Source {
    path: PathBuf,
    code: String,
    literals: Vec<String>,
}

fn sources(directory: &Path, all: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "tests" && name != "testing" {
                sources(&path, all);
            }
        } else if path.extension().is_some_and(|end| end == "rs")
            && !name.contains("tests")
            && !OF_TESTS.contains(&name)
        {
            let text = fs::read_to_string(&path).unwrap();
            let (code, literals) = read(text.split("mod tests {").next().unwrap());
            all.push(Source { path, code, literals });
        }
    }
}

/// Code without comments and with empty literals, and what was in these.
fn read(text: &str) -> (String, Vec<String>) {
    let (mut code, mut literals) = (String::new(), Vec::new());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if let Some(after) = QUOTES.iter().find_map(|quote| rest.strip_prefix(quote)) {
            rest = after;
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            let end = raw.find("\"#").unwrap_or(raw.len());
            literals.push(raw[..end].to_owned());
            rest = &raw[(end + 2).min(raw.len())..];
        } else if first == '"' {
            let end = end(&rest[1..]);
            literals.push(rest[1..=end].split_whitespace().collect::<Vec<_>>().join(" "));
            code.push_str("\"\"");
            rest = &rest[(end + 2).min(rest.len())..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    (code, literals)
}

/// How long a literal is that begins here.
fn end(text: &str) -> usize {
    let mut escaped = false;
    text.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    })
    .unwrap_or(text.len())
}

fn all() -> Vec<Source> {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    assert!(all.len() > 100, "only {} files were found", all.len());
    all
}

fn is_below(path: &Path, places: &[&str]) -> bool {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    places.iter().any(|place| path.starts_with(root.join(place)))
}

/// Whether a text names an option, among other words and not as part of a command.
fn names_an_option(text: &str) -> bool {
    let is_option = |word: &str| {
        let word = word.trim_start_matches(['`', '(']);
        word.strip_prefix("--")
            .is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
    };
    text.contains(' ')
        && text.split(' ').any(is_option)
        && !COMMANDS.iter().any(|command| text.contains(command))
        && !OF_IMAGE.iter().any(|beginning| text.starts_with(beginning))
}

/// What a text shows as Rust prints it, and is not known to be a text.
fn shows_a_type(text: &str) -> bool {
    let mut parts = text.split(":?}").chain(text.split(":#?}"));
    let shown = parts.clone().count() > 2;
    shown
        && !KNOWN.iter().any(|beginning| text.starts_with(beginning))
        && parts.any(|part| match part.rsplit_once('{') {
            Some((_, name)) if !name.contains(['}', ' ']) => !TEXTS.contains(&name),
            _ => false,
        })
}

#[test]
fn no_text_that_the_daemons_users_read_names_an_option() {
    let mut found = Vec::new();
    for source in all().iter().filter(|source| !is_below(&source.path, &OF_COMMANDS)) {
        let wrong = source.literals.iter().filter(|text| names_an_option(text));
        found.extend(wrong.map(|text| format!("{}: {text}", source.path.display())));
    }
    assert_eq!(found, Vec::<String>::new(), "name a setting, or say it without the option");
}

#[test]
fn no_text_shows_a_type_as_rust_prints_it() {
    let mut found = Vec::new();
    for source in all() {
        let wrong = source.literals.iter().filter(|text| shows_a_type(text));
        found.extend(wrong.map(|text| format!("{}: {text}", source.path.display())));
        // Fields of the log: `stage = ?stage`, `?stage`.
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
    assert_eq!(found, Vec::<String>::new(), "give the type a Display of its own");
}

#[test]
fn the_search_finds_what_it_is_for() {
    for text in ["give it longer with --timeout", "or use a smaller `--disk`"] {
        assert!(names_an_option(text), "{text}");
    }
    for text in ["--timeout", "run mayfly image build --help", "a -- b", "10 --"] {
        assert!(!names_an_option(text), "{text}");
    }
    for text in ["while {stage:?}", "{:?} is", "it is {stage:#?} now", "{text:?} in {stage:?}"] {
        assert!(shows_a_type(text), "{text}");
    }
    assert!(!shows_a_type("there is no user {user:?} in {path}"));
    let (code, literals) = read("a(\"b \\\" c\", ?d) // \"e\"\n'\"' \"f\\\n   g\"");
    assert_eq!(
        (&*code, literals),
        ("a(\"\", ?d) \n \"\"", vec!["b \\\" c".into(), "f\\ g".into()])
    );
}
