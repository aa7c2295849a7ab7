//! The programs that a job executed, as its guest tells them, in a file of bounded size.
//!
//! Like everything a guest says they are claims: of an honest agent until the job is root of the
//! microVM, of whoever has taken it over from then on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use mayfly_protocol::message::Program;
use serde::Serialize;

/// The file in the microVM's directory.
pub const PROGRAMS: &str = "programs.jsonl";

/// Bytes that are kept: some thirty thousand programs.
const LIMIT: usize = 4 << 20;

/// The file. It is made with the first program.
#[derive(Debug)]
pub(super) struct Programs {
    path: PathBuf,
    file: Option<File>,
    left: usize,
    // Told of, or not even that, and not in the file yet.
    left_out: u64,
}

/// A line of it.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Program {
        time: String,
        process: u32,
        parent: Option<u32>,
        user: Option<u32>,
        program: Option<std::borrow::Cow<'a, str>>,
    },
    LeftOut {
        left_out: u64,
    },
}

impl Programs {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(PROGRAMS), file: None, left: LIMIT, left_out: 0 }
    }

    /// Writes down what a message told. What the file has no room for, or the disk, is counted:
    /// that is no concern of the job's.
    pub(super) fn add(&mut self, programs: &[Program], left_out: u32) {
        self.left_out = self.left_out.saturating_add(u64::from(left_out));
        let mut text = Vec::new();
        let mut written = 0;
        for program in programs {
            let line = line(&Line::of(program));
            // Room is kept for the line that says how many were left out.
            if text.len() + line.len() + LAST_LINE > self.left {
                break;
            }
            text.extend(line);
            written += 1;
        }
        if self.append(&text).is_err() {
            written = 0;
        }
        self.left_out = self.left_out.saturating_add((programs.len() - written) as u64);
    }

    /// Writes down how many were left out.
    pub(super) fn end(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            // Whoever reads the file of a full disk has noticed.
            let _ = self.append(&line(&Line::LeftOut { left_out }));
        }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path)?,
        };
        let written = (&file).write_all(text);
        self.file = Some(file);
        self.left = self.left.saturating_sub(text.len());
        written
    }
}

/// Bytes of the line that says how many were left out, at the most.
const LAST_LINE: usize = 64;

impl<'a> Line<'a> {
    fn of(program: &'a Program) -> Self {
        // Up to the year 2554.
        let time = UNIX_EPOCH + Duration::from_nanos(program.time);
        let seen = program.parent != 0;
        Self::Program {
            time: humantime::format_rfc3339_millis(time).to_string(),
            process: program.process,
            parent: seen.then_some(program.parent),
            user: seen.then_some(program.user),
            program: (!program.path.is_empty()).then(|| String::from_utf8_lossy(&program.path)),
        }
    }
}

fn line(line: &Line<'_>) -> Vec<u8> {
    // Nothing in it can't be JSON.
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(path: &[u8]) -> Program {
        Program {
            time: 1_000_000_000,
            process: 7,
            parent: 1,
            user: 1001,
            path: path.to_vec().into(),
        }
    }

    fn text(directory: &Path) -> String {
        std::fs::read_to_string(directory.join(PROGRAMS)).unwrap()
    }

    #[test]
    fn a_program_is_a_line_and_what_was_not_seen_is_null() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = Programs::new(directory.path());
        let gone = Program { parent: 0, user: 0, path: Vec::new().into(), ..program(b"") };
        programs.add(&[program(b"/bin/\xff\n"), gone], 0);
        programs.end();
        let expected = "\
{\"time\":\"1970-01-01T00:00:01.000Z\",\"process\":7,\"parent\":1,\"user\":1001,\"program\":\"/bin/\u{fffd}\\n\"}
{\"time\":\"1970-01-01T00:00:01.000Z\",\"process\":7,\"parent\":null,\"user\":null,\"program\":null}
";
        assert_eq!(text(directory.path()), expected);
    }

    #[test]
    fn no_job_makes_a_file_without_programs() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = Programs::new(directory.path());
        programs.add(&[], 0);
        programs.end();
        assert!(!directory.path().join(PROGRAMS).exists());
    }

    #[test]
    fn the_file_is_bounded_and_what_does_not_fit_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = Programs::new(directory.path());
        // Control characters take six times their length as JSON.
        let hostile = vec![program(&[1; 512]); 512];
        for _ in 0..10 {
            programs.add(&hostile, 1);
        }
        programs.end();
        let text = text(directory.path());
        assert!(text.len() <= LIMIT, "{}", text.len());
        let kept = text.lines().count() - 1;
        let last = format!("{{\"left_out\":{}}}", 5120 - kept + 10);
        assert_eq!(text.lines().last(), Some(last.as_str()));
    }

    #[test]
    fn any_time_of_a_guest_can_be_written() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = Programs::new(directory.path());
        programs.add(&[Program { time: u64::MAX, ..program(b"/x") }], u32::MAX);
        assert!(text(directory.path()).contains("2554-"));
    }
}
