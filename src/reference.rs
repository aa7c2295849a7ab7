//! Pages of `docs/reference/` that are made from the code, whole or in parts, so that neither can say
//! what the other doesn't. `MAYFLY_WRITE_REFERENCE=1 cargo test --lib reference` writes them anew.

use std::path::{Path, PathBuf};

/// What goes to the top of a page that is made as a whole.
pub(crate) const NOTE: &str =
    "<!-- Made from the code: MAYFLY_WRITE_REFERENCE=1 cargo test --lib reference -->\n\n";

/// A file below `docs/`.
pub(crate) fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

/// What it says.
pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(document(name)).unwrap_or_default()
}

/// Fails unless a page is this, below the note. One test for each page.
pub(crate) fn assert_made(name: &str, page: &str) {
    assert_is(name, &format!("{NOTE}{page}"));
}

/// Fails unless the named parts of a page are these. A part stands between `<!-- made: NAME -->`
/// and `<!-- end -->`; what is around the parts is written by hand. One test for each page.
pub(crate) fn assert_made_in_parts(name: &str, parts: &[(&str, String)]) {
    let written = read(name);
    let mut page = written.clone();
    for (part, text) in parts {
        page = replaced(&page, part, text)
            .unwrap_or_else(|| panic!("docs/{name} has no part `{part}`"));
    }
    assert_eq!(written.matches("<!-- made: ").count(), parts.len(), "docs/{name} has other parts");
    assert_is(name, &page);
}

fn assert_is(name: &str, page: &str) {
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        std::fs::write(document(name), page).unwrap();
    }
    let same = read(name) == page;
    assert!(
        same,
        "docs/{name} is old: MAYFLY_WRITE_REFERENCE=1 cargo test --lib reference writes it anew"
    );
}

fn replaced(page: &str, part: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<!-- made: {part} -->\n"))?;
    let (_, after) = rest.split_once("<!-- end -->")?;
    Some(format!("{before}<!-- made: {part} -->\n\n{text}\n<!-- end -->{after}"))
}

/// The rows of all tables of a text, cell by cell, without headings.
pub(crate) fn rows(text: &str) -> Vec<Vec<&str>> {
    let lines: Vec<_> = text.lines().collect();
    let is_rule = |line: &str| line.starts_with("|--");
    let is_heading = |at: usize| lines.get(at + 1).is_some_and(|next| is_rule(next));
    let is_row = |at: &usize| lines[*at].starts_with("| ") && !is_heading(*at);
    let cells = |at: usize| lines[at].trim_matches('|').split(" | ").map(str::trim).collect();
    (0..lines.len()).filter(is_row).map(cells).collect()
}

#[test]
fn a_part_is_replaced_and_the_rest_stays() {
    let page = "before\n<!-- made: a -->\nold\n<!-- end -->\nafter";
    let made = replaced(page, "a", "new\n").unwrap();
    assert_eq!(made, "before\n<!-- made: a -->\n\nnew\n\n<!-- end -->\nafter");
    assert_eq!(replaced(&made, "a", "new\n").unwrap(), made);
    assert!(replaced(page, "b", "").is_none());
    assert_eq!(rows("| key | is |\n|---|---|\n| `a` | one |\n"), [["`a`", "one"]]);
}
