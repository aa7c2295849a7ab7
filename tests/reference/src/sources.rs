//! Reads the source code of the product, for checks of its messages.

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
/// The directories with code that people read messages of, below the workspace.
const ROOTS: [&str; 2] = ["src", "guest/agent/src"];
/// Character literals with two characters between the quotation marks that matter here.
const ESCAPED_CHARACTERS: [&str; 2] = ["'\\\"'", "'\\''"];

/// The code of a file without tests and comments, and its string literals.
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) code: String,
    pub(super) literals: Vec<Literal>,
}

/// A string literal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Literal {
    /// Its text, on one line.
    pub(super) text: String,
    /// The code before the innermost open parenthesis around it: the call or attribute that it is
    /// an argument of.
    pub(super) call: String,
    /// Whether it is the reason of an attribute for the compiler.
    pub(super) is_lint_reason: bool,
}

impl Source {
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.literals.iter().map(|literal| &*literal.text)
    }
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

/// Returns the code without comments and with empty literals, and the literals.
fn read(text: &str) -> (String, Vec<Literal>) {
    let (mut code, mut literals) = (String::new(), Vec::new());
    let mut calls = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if let Some(after) = skip_character(rest) {
            rest = after;
        } else if let Some(raw) = rest.strip_prefix("r#\"") {
            let end = raw.find("\"#").unwrap_or(raw.len());
            literals.push(Literal::new(raw[..end].to_owned(), &code, &calls));
            rest = &raw[(end + 2).min(raw.len())..];
        } else if first == '"' {
            let end = literal_length(&rest[1..]);
            let words: Vec<_> = rest[1..=end].split_whitespace().collect();
            literals.push(Literal::new(words.join(" "), &code, &calls));
            code.push_str("\"\"");
            rest = &rest[(end + 2).min(rest.len())..];
        } else {
            match first {
                '(' => calls.push(caller(&code)),
                ')' => _ = calls.pop(),
                _ => {}
            }
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    (code, literals)
}

impl Literal {
    fn new(text: String, before: &str, calls: &[String]) -> Self {
        let is_lint_reason = before.trim_end().ends_with("reason =");
        Self { text, call: calls.last().cloned().unwrap_or_default(), is_lint_reason }
    }
}

/// Returns what follows a character literal, if the text begins with one.
fn skip_character(text: &str) -> Option<&str> {
    let escaped = ESCAPED_CHARACTERS.iter().find_map(|literal| text.strip_prefix(literal));
    let plain = || text.strip_prefix('\'')?.strip_prefix(|c| c != '\\')?.strip_prefix('\'');
    escaped.or_else(plain)
}

/// Returns the path that ends the code, such as `tracing::warn!` or `#[error`.
fn caller(code: &str) -> String {
    let is_part = |c: char| c.is_alphanumeric() || "_:!#[".contains(c);
    let code = code.trim_end();
    code[code.trim_end_matches(is_part).len()..].to_owned()
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

/// Reads all files of the product that are not tests.
pub(super) fn all() -> Vec<Source> {
    let mut all = Vec::new();
    for root in ROOTS {
        sources(&workspace().join(root), &mut all);
    }
    assert!(all.len() > 100, "only {} files were found", all.len());
    all
}

/// Returns the directory of the workspace.
pub(super) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn literals_are_apart_from_code() {
    let text = "log::warn!(x(1), \"b \\\" c\", ?d) // \"e\"\n'(' '\"' reason = \"f\\\n   g\"";
    let (code, literals) = read(text);
    assert_eq!(code, "log::warn!(x(1), \"\", ?d) \n  reason = \"\"");
    let literal = |text: &str, call: &str, is_lint_reason| {
        let (text, call) = (text.to_owned(), call.to_owned());
        Literal { text, call, is_lint_reason }
    };
    let expected = [literal("b \\\" c", "log::warn!", false), literal("f\\ g", "", true)];
    assert_eq!(literals, expected);
}
