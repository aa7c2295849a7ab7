//! What pages refer to is there: other pages, their headings, and the messages that they quote.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::blocks::project;

/// All files below a directory whose names end so.
fn files(directory: &Path, end: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, end, found);
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
}

/// All pages for people.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&project().join("docs"), ".md", &mut found);
    let top = fs::read_dir(project()).unwrap().map(|entry| entry.unwrap().path());
    found.extend(top.filter(|path| path.extension().is_some_and(|end| end == "md")));
    found
}

/// The anchors of a page's headings, as GitHub makes them.
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
            assert!(file.exists(), "{}: there is no {path}", document.display());
            if !anchor.is_empty() {
                let there = anchors(&fs::read_to_string(&file).unwrap());
                assert!(there.contains(anchor), "{}: no heading {target}", document.display());
            }
            links += 1;
        }
    }
    assert!(links > 100, "{links}");
}

/// The glossary says where each thing lives.
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
        let [term, _, place] = row[..] else { panic!("{row:?}") };
        assert!(terms.insert(term), "{term} twice");
        let place = place.trim_matches('`');
        let (table, key) = place.split_once("]] ").unwrap_or((place, ""));
        let is_setting = settings.contains(table) && settings.contains(key);
        assert!(project().join(place).exists() || is_setting, "{term}: there is no {place}");
    }
    assert!(terms.len() > 50, "{}", terms.len());
}

/// The texts of the program, each literal on one line.
fn sources() -> String {
    let mut found = Vec::new();
    files(&project().join("src"), ".rs", &mut found);
    let text: String = found.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let pieces: Vec<_> = text.split("\\\n").collect();
    pieces.iter().map(|piece| piece.trim_start()).collect()
}

/// The messages that a page quotes in tables under `says`.
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
            // All but what is to be done about it.
            let told = cells[..cells.len() - 1].join(" | ");
            quoted.extend(told.split('`').skip(1).step_by(2).map(str::to_owned));
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
    let mut unsaid = Vec::new();
    for message in quoted {
        // What stands for something else: an ellipsis, a word in capitals, a number.
        let is_word = |word: &str| !word.contains('…') && word.chars().any(char::is_lowercase);
        let words: Vec<_> = message.split(' ').collect();
        for run in words.split(|word| !is_word(word)).filter(|run| run.len() > 1) {
            let text = run.join(" ");
            let text = text.trim_end_matches([':', ',', ')']);
            if sources.contains(text) {
                found += 1;
            } else {
                unsaid.push(text.to_owned());
            }
        }
    }
    assert_eq!(unsaid, Vec::<String>::new(), "nothing says these");
    assert!(found > 20, "{found}");
}
