//! The fenced blocks of the pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a block is run, by the comment before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Setting {
    /// `<!-- run: host -->`: a host with the images `base` and `runner`.
    Host,
    /// `<!-- run: host, at length -->`: the same, with `scripts/test --long`.
    LongHost,
    /// `<!-- run: store -->`: a host whose images can't boot but be kept, moved and signed.
    Store,
    /// `<!-- run: daemon -->`: as `service`, but the block ends with a daemon that stays.
    Daemon,
    /// `<!-- run: service -->`: a simulated GitHub, and a daemon with the page's settings and seven
    /// jobs in its ledger.
    Service,
    /// `<!-- run: machine -->`: a machine with systemd that Mayfly can be installed on.
    Machine,
    /// `<!-- run: compose -->`: containers; `scripts/test-compose` runs them.
    Compose,
    /// `<!-- run: build -->`: as `service`, with a GitHub that gives a runner, and all the time that
    /// building an image with it takes; `scripts/test --long`.
    Build,
    /// `<!-- run: long -->`: the sources, with all the time it takes; `scripts/test --long`.
    Long,
    /// `<!-- not run: WHY -->`.
    Not,
}

impl Setting {
    fn parse(comment: &str) -> Option<Self> {
        Some(match comment.strip_prefix("<!-- ")?.strip_suffix(" -->")? {
            "run: host" => Self::Host,
            "run: host, at length" => Self::LongHost,
            "run: store" => Self::Store,
            "run: daemon" => Self::Daemon,
            "run: service" => Self::Service,
            "run: machine" => Self::Machine,
            "run: compose" => Self::Compose,
            "run: build" => Self::Build,
            "run: long" => Self::Long,
            other => return other.strip_prefix("not run: ").map(|_| Self::Not),
        })
    }
}

/// A block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The page, relative to the project.
    pub(crate) page: String,
    /// The line of its fence.
    pub(crate) line: usize,
    /// What is behind the fence: `sh`, `toml` …
    pub(crate) language: String,
    /// The line before the fence, which does not show.
    pub(crate) comment: String,
    pub(crate) text: String,
}

impl Block {
    /// For messages.
    pub(crate) fn place(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }

    /// Where it is run, if it says so.
    pub(crate) fn setting(&self) -> Option<Setting> {
        Setting::parse(&self.comment)
    }
}

/// The project.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages whose commands are run.
pub(crate) fn pages() -> Vec<String> {
    let guide = fs::read_dir(project().join("docs/guide")).unwrap();
    let files = guide.map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|end| end == "md"));
    let relative =
        |path: PathBuf| path.strip_prefix(project()).unwrap().to_str().unwrap().to_owned();
    let mut pages: Vec<_> = files.map(relative).collect();
    pages.push("README.md".to_owned());
    pages.sort();
    pages
}

/// The blocks of a page, in order.
pub(crate) fn of(page: &str) -> Vec<Block> {
    let text = fs::read_to_string(project().join(page)).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut before = "";
    for (index, line) in text.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                open = Some(Block {
                    page: page.to_owned(),
                    line: index + 1,
                    language: language.trim().to_owned(),
                    comment: before.trim().to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some("")) => blocks.extend(open.take()),
            (Some(block), _) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
        before = line;
    }
    assert!(open.is_none(), "{page}: a block does not end");
    blocks
}

/// The blocks of commands of all pages.
pub(crate) fn commands() -> Vec<Block> {
    let all = pages().iter().flat_map(|page| of(page)).collect::<Vec<_>>();
    all.into_iter().filter(|block| block.language == "sh").collect()
}

#[test]
fn each_block_of_commands_says_where_it_is_run() {
    let blocks = commands();
    assert!(blocks.len() > 20, "{}", blocks.len());
    let mute: Vec<_> = blocks.iter().filter(|block| block.setting().is_none()).collect();
    assert!(mute.is_empty(), "no known setting on the line before: {mute:#?}");
    let mut counts = BTreeMap::new();
    for setting in blocks.iter().filter_map(Block::setting) {
        *counts.entry(format!("{setting:?}")).or_insert(0) += 1;
    }
    eprintln!("{counts:?}");
    // What can't be run is to stay the exception.
    assert!(counts["Not"] <= 6, "{counts:?}");
}

#[test]
fn commands_are_in_blocks_that_are_seen() {
    for page in pages() {
        for block in of(&page) {
            let known = ["sh", "toml", "text", "json", ""].contains(&block.language.as_str());
            assert!(known, "{}: what is {:?}?", block.place(), block.language);
        }
    }
}

#[test]
fn commands_for_containers_are_run_by_their_own_script() {
    let script = fs::read_to_string(project().join("scripts/test-compose")).unwrap();
    // It names a block by some words of it.
    let calls = script.lines().filter(|line| line.contains("guide \"$work/"));
    let named: Vec<_> = calls.filter_map(|line| line.split('\'').nth(1)).collect();
    for block in commands().iter().filter(|block| block.setting() == Some(Setting::Compose)) {
        let is_run = named.iter().any(|words| block.text.contains(words));
        assert!(is_run, "{} is not run by scripts/test-compose, only {named:?}", block.place());
    }
}
