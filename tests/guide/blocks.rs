//! The fenced blocks of the pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The environment that a block runs in, from the comment before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Environment {
    /// `<!-- run: host -->`: a host with the images `base` and `runner`.
    Host,
    /// `<!-- run: host, at length -->`: the same, only with `scripts/test --long`.
    LongHost,
    /// `<!-- run: store -->`: a host whose images can't boot, but can be stored, moved, and
    /// signed.
    Store,
    /// `<!-- run: daemon -->`: like `service`, but the block itself starts the daemon.
    Daemon,
    /// `<!-- run: service -->`: a simulated GitHub, and a daemon with the page's settings and seven
    /// jobs in its ledger.
    Service,
    /// `<!-- run: machine -->`: a machine with systemd, to install Mayfly on.
    Machine,
    /// `<!-- run: compose -->`: containers; `scripts/test-compose` runs them.
    Compose,
    /// `<!-- run: build -->`: like `service`, with a GitHub that serves a runner, and with time for
    /// an image build; only with `scripts/test --long`.
    Build,
    /// `<!-- run: long -->`: the source tree, with a long time limit; only with `scripts/test
    /// --long`.
    Long,
    /// `<!-- not run: WHY -->`.
    NotRun,
}

impl Environment {
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
            other => return other.strip_prefix("not run: ").map(|_| Self::NotRun),
        })
    }
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The page, relative to the project.
    pub(crate) page: String,
    /// The line number of its opening fence.
    pub(crate) line: usize,
    /// The word after the fence: `sh`, `toml`, …
    pub(crate) language: String,
    /// The line before the fence: an HTML comment.
    pub(crate) comment: String,
    pub(crate) text: String,
}

impl Block {
    /// Returns the page and line, for messages.
    pub(crate) fn location(&self) -> String {
        format!("{}:{}", self.page, self.line)
    }

    /// Returns the environment, if the comment names one.
    pub(crate) fn environment(&self) -> Option<Environment> {
        Environment::parse(&self.comment)
    }
}

/// Returns the root of the project.
pub(crate) fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the pages whose commands are run.
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

/// Returns the blocks of a page, in order.
pub(crate) fn page_blocks(page: &str) -> Vec<Block> {
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
    assert!(open.is_none(), "{page}: unterminated block");
    blocks
}

/// Returns the command blocks of all pages.
pub(crate) fn commands() -> Vec<Block> {
    let all = pages().iter().flat_map(|page| page_blocks(page)).collect::<Vec<_>>();
    all.into_iter().filter(|block| block.language == "sh").collect()
}

#[test]
fn each_block_of_commands_says_where_it_is_run() {
    let blocks = commands();
    assert!(blocks.len() > 20, "{}", blocks.len());
    let unmarked: Vec<_> = blocks.iter().filter(|block| block.environment().is_none()).collect();
    assert!(unmarked.is_empty(), "the line before names no known environment: {unmarked:#?}");
    let mut counts = BTreeMap::new();
    for environment in blocks.iter().filter_map(Block::environment) {
        *counts.entry(format!("{environment:?}")).or_insert(0) += 1;
    }
    eprintln!("{counts:?}");
    // Blocks that are not run must remain exceptions.
    assert!(counts["NotRun"] <= 6, "{counts:?}");
}

#[test]
fn commands_are_in_blocks_that_are_seen() {
    for page in pages() {
        for block in page_blocks(&page) {
            let known = ["sh", "toml", "text", "json", ""].contains(&block.language.as_str());
            assert!(known, "{}: unknown language {:?}", block.location(), block.language);
        }
    }
}

#[test]
fn commands_for_containers_are_run_by_their_own_script() {
    let script = fs::read_to_string(project().join("scripts/test-compose")).unwrap();
    // The script selects a block by a quoted part of its text.
    let calls = script.lines().filter(|line| line.contains("guide \"$work/"));
    let named: Vec<_> = calls.filter_map(|line| line.split('\'').nth(1)).collect();
    for block in commands().iter().filter(|block| block.environment() == Some(Environment::Compose))
    {
        let is_run = named.iter().any(|words| block.text.contains(words));
        assert!(is_run, "scripts/test-compose does not run {}, only {named:?}", block.location());
    }
}
