//! Generates pages of `docs/`, or parts of them, from the code, so that both always agree.
//! `MAYFLY_WRITE_REFERENCE=1 cargo test --workspace --lib reference` regenerates them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "only tests call this crate"
)]

#[cfg(test)]
mod message_style;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod sources;

use std::path::{Path, PathBuf};

/// The first line of a page that is generated as a whole.
pub const NOTE: &str = "<!-- Generated from the code: MAYFLY_WRITE_REFERENCE=1 cargo test --workspace --lib reference -->\n\n";

/// Returns the path of a file in `docs/`.
pub fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name)
}

/// Returns the content of a file in `docs/`.
pub fn read(name: &str) -> String {
    std::fs::read_to_string(document(name)).unwrap_or_default()
}

/// Panics unless a page has this content below the note. Each page has one such test.
pub fn assert_generated(name: &str, page: &str) {
    assert_is(name, &format!("{NOTE}{page}"));
}

/// Panics unless the named parts of a page have this content. A part is between `<!-- made: NAME
/// -->` and `<!-- end -->`; the rest of the page is written by hand. Each page has one such test.
pub fn assert_generated_parts(name: &str, parts: &[(&str, String)]) {
    let written = read(name);
    let mut page = written.clone();
    for (part, text) in parts {
        page = replace_part(&page, part, text)
            .unwrap_or_else(|| panic!("docs/{name} has no part `{part}`"));
    }
    assert_eq!(
        written.matches("<!-- made: ").count(),
        parts.len(),
        "docs/{name} has other generated parts"
    );
    assert_is(name, &page);
}

fn assert_is(name: &str, page: &str) {
    if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() {
        std::fs::write(document(name), page).unwrap();
    }
    let same = read(name) == page;
    assert!(
        same,
        "docs/{name} is outdated: MAYFLY_WRITE_REFERENCE=1 cargo test --workspace --lib reference regenerates it"
    );
}

fn replace_part(page: &str, part: &str, text: &str) -> Option<String> {
    let (before, rest) = page.split_once(&format!("<!-- made: {part} -->\n"))?;
    let (_, after) = rest.split_once("<!-- end -->")?;
    Some(format!("{before}<!-- made: {part} -->\n\n{text}\n<!-- end -->{after}"))
}

/// Returns the cells of the rows of all tables in a text, without headings.
pub fn rows(text: &str) -> Vec<Vec<&str>> {
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
    let generated = replace_part(page, "a", "new\n").unwrap();
    assert_eq!(generated, "before\n<!-- made: a -->\n\nnew\n\n<!-- end -->\nafter");
    assert_eq!(replace_part(&generated, "a", "new\n").unwrap(), generated);
    assert!(replace_part(page, "b", "").is_none());
    assert_eq!(rows("| key | is |\n|---|---|\n| `a` | one |\n"), [["`a`", "one"]]);
}
