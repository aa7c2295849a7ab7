//! Reads this crate's own source code, for checks of what it says.

use std::fs;
use std::path::{Path, PathBuf};

/// Test files whose names don't contain `tests`.
const TEST_FILES: [&str; 7] = [
    "properties.rs",
    "simulation.rs",
    "world.rs",
    "message_style.rs",
    "messages.rs",
    "sources.rs",
    "reference.rs",
];
/// Character literals with a quotation mark, which do not start a string.
const QUOTES: [&str; 2] = ["'\"'", "'\\\"'"];

/// The code of a file without tests and comments, and its string literals.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) code: String,
    pub(super) literals: Vec<String>,
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
            && !TEST_FILES.contains(&name)
        {
            let text = fs::read_to_string(&path).unwrap();
            let (code, literals) = read(text.split("mod tests {").next().unwrap());
            all.push(Source { path, code, literals });
        }
    }
}

/// Returns the code without comments and with empty literals, and the contents of the literals.
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
            let end = literal_length(&rest[1..]);
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

/// Returns the length of the literal that starts here.
fn literal_length(text: &str) -> usize {
    let mut escaped = false;
    text.find(|letter| {
        let ends = letter == '"' && !escaped;
        escaped = letter == '\\' && !escaped;
        ends
    })
    .unwrap_or(text.len())
}

/// Reads all files of `src/` that are not tests.
pub(super) fn all() -> Vec<Source> {
    let mut all = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), &mut all);
    assert!(all.len() > 100, "only {} files were found", all.len());
    all
}

#[test]
fn literals_are_apart_from_code() {
    let (code, literals) = read("a(\"b \\\" c\", ?d) // \"e\"\n'\"' \"f\\\n   g\"");
    assert_eq!(
        (&*code, literals),
        ("a(\"\", ?d) \n \"\"", vec!["b \\\" c".into(), "f\\ g".into()])
    );
}
