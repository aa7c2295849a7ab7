//! Checks the references of pages: links, headings, paths in the glossary, and quoted messages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::blocks::project;

/// Adds all files below a directory whose names have this suffix to `found`.
fn find_files(directory: &Path, suffix: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            find_files(&path, suffix, found);
        } else if path.to_str().unwrap().ends_with(suffix) {
            found.push(path);
        }
    }
}

/// Returns all documentation pages.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    find_files(&project().join("docs"), ".md", &mut found);
    let top = fs::read_dir(project()).unwrap().map(|entry| entry.unwrap().path());
    found.extend(top.filter(|path| path.extension().is_some_and(|end| end == "md")));
    found
}

/// Returns the anchors of a page's headings, as GitHub generates them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let text = line.trim_start_matches('#').trim().to_lowercase();
        let kept = text.chars().filter(|c| c.is_alphanumeric() || "_- ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match path {
                "" => document.clone(),
                _ => document.parent().unwrap().join(path),
            };
            assert!(file.exists(), "{}: {path} does not exist", document.display());
            if !anchor.is_empty() {
                let anchors = anchors(&fs::read_to_string(&file).unwrap());
                assert!(anchors.contains(anchor), "{}: no heading {target}", document.display());
            }
            links += 1;
        }
    }
    assert!(links > 100, "{links}");
}

/// The glossary names the file or setting of each term.
#[test]
fn what_the_glossary_names_is_there_and_each_term_has_one_meaning() {
    let glossary = fs::read_to_string(project().join("docs/glossary.md")).unwrap();
    let settings = fs::read_to_string(project().join("docs/reference/settings.md")).unwrap();
    let rows: Vec<Vec<_>> = glossary
        .lines()
        .filter(|line| line.starts_with("| ") && !line.contains("---") && !line.contains("| Term"))
        .map(|line| line.trim_matches(['|', ' ']).split(" | ").collect())
        .collect();
    let mut terms = BTreeSet::new();
    for row in &rows {
        let [term, _, location] = row[..] else { panic!("{row:?}") };
        assert!(terms.insert(term), "{term} occurs twice");
        let location = location.trim_matches('`');
        let (table, key) = location.split_once("]] ").unwrap_or((location, ""));
        let is_setting = settings.contains(table) && settings.contains(key);
        assert!(project().join(location).exists() || is_setting, "{term}: unknown {location}");
    }
    assert!(terms.len() > 50, "{}", terms.len());
}

/// Returns the program's source, with each string literal on one line.
fn sources() -> String {
    let mut found = Vec::new();
    find_files(&project().join("src"), ".rs", &mut found);
    let text: String = found.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let pieces: Vec<_> = text.split("\\\n").collect();
    pieces.iter().map(|piece| piece.trim_start()).collect()
}

/// Returns the messages that a page quotes in tables with a `says` column.
fn quoted(page: &str) -> Vec<String> {
    let mut quoted = Vec::new();
    let mut says = false;
    for line in page.lines() {
        let Some(row) = line.trim_start().strip_prefix("| ") else {
            says &= line.trim_start().starts_with("|--");
            continue;
        };
        let cells: Vec<_> = row.split(" | ").collect();
        if cells.iter().any(|cell| cell.trim_end_matches('|').trim().ends_with("says")) {
            says = true;
        } else if says {
            // All cells but the last, which is the remedy.
            let messages = cells[..cells.len() - 1].join(" | ");
            quoted.extend(messages.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    quoted
}

#[test]
fn the_messages_that_are_quoted_are_the_programs() {
    let sources = sources();
    let page = project().join("docs/guide/troubleshooting.md");
    let quoted = quoted(&fs::read_to_string(page).unwrap());
    let mut found = 0;
    let mut missing = Vec::new();
    for message in quoted {
        // A placeholder is an ellipsis, a word in capitals, or a number.
        let is_word = |word: &str| !word.contains('…') && word.chars().any(char::is_lowercase);
        let words: Vec<_> = message.split(' ').collect();
        for run in words.split(|word| !is_word(word)).filter(|run| run.len() > 1) {
            let text = run.join(" ");
            let text = text.trim_end_matches([':', ',', ')']);
            if sources.contains(text) {
                found += 1;
            } else {
                missing.push(text.to_owned());
            }
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "messages that the program does not have");
    assert!(found > 20, "{found}");
}
