//! The log of programs that a job executed, as its guest reports them, with a size limit.
//!
//! These are claims, like everything from a guest: the agent is honest until the job becomes root
//! in the microVM; after that, they come from the attacker.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use mayfly_protocol::message::Program;
use serde::Serialize;

/// The log's file name in the microVM's directory.
pub(super) const PROGRAM_LOG: &str = "programs.jsonl";

/// Maximum size in bytes, enough for some thirty thousand programs.
const LIMIT: usize = 4 << 20;

/// The log. Its file is created with the first program.
#[derive(Debug)]
pub(super) struct ProgramLog {
    path: PathBuf,
    file: Option<File>,
    remaining: usize,
    // Programs that are not in the log and not counted in it yet.
    left_out: u64,
}

/// A line of the log.
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

impl ProgramLog {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(PROGRAM_LOG), file: None, remaining: LIMIT, left_out: 0 }
    }

    /// Logs the programs of a message. Counts those that exceed the limit or that the disk has no
    /// space for; the job is not affected.
    pub(super) fn add(&mut self, programs: &[Program], left_out: u32) {
        self.left_out = self.left_out.saturating_add(u64::from(left_out));
        let mut text = Vec::new();
        let mut written = 0;
        for program in programs {
            let line = encode(&Line::new(program));
            // Reserves space for the final count.
            if text.len() + line.len() + LAST_LINE > self.remaining {
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

    /// Logs how many programs were left out.
    pub(super) fn finish(&mut self) {
        let left_out = std::mem::take(&mut self.left_out);
        if left_out > 0 {
            // If the disk is full, the reader of the log notices that anyway.
            let _ = self.append(&encode(&Line::LeftOut { left_out }));
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
        self.remaining = self.remaining.saturating_sub(text.len());
        written
    }
}

/// Maximum length of the final line in bytes.
const LAST_LINE: usize = 64;

impl<'a> Line<'a> {
    fn new(program: &'a Program) -> Self {
        // Nanoseconds in 64 bits reach the year 2554.
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

fn encode(line: &Line<'_>) -> Vec<u8> {
    // Serialization can't fail.
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
        std::fs::read_to_string(directory.join(PROGRAM_LOG)).unwrap()
    }

    #[test]
    fn a_program_is_a_line_and_unknown_fields_are_null() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = ProgramLog::new(directory.path());
        let gone = Program { parent: 0, user: 0, path: Vec::new().into(), ..program(b"") };
        programs.add(&[program(b"/bin/\xff\n"), gone], 0);
        programs.finish();
        let expected = "\
{\"time\":\"1970-01-01T00:00:01.000Z\",\"process\":7,\"parent\":1,\"user\":1001,\"program\":\"/bin/\u{fffd}\\n\"}
{\"time\":\"1970-01-01T00:00:01.000Z\",\"process\":7,\"parent\":null,\"user\":null,\"program\":null}
";
        assert_eq!(text(directory.path()), expected);
    }

    #[test]
    fn a_job_without_programs_creates_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = ProgramLog::new(directory.path());
        programs.add(&[], 0);
        programs.finish();
        assert!(!directory.path().join(PROGRAM_LOG).exists());
    }

    #[test]
    fn the_file_is_bounded_and_what_does_not_fit_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = ProgramLog::new(directory.path());
        // Control characters take six times their length as JSON.
        let hostile = vec![program(&[1; 512]); 512];
        for _ in 0..10 {
            programs.add(&hostile, 1);
        }
        programs.finish();
        let text = text(directory.path());
        assert!(text.len() <= LIMIT, "{}", text.len());
        let kept = text.lines().count() - 1;
        let last = format!("{{\"left_out\":{}}}", 5120 - kept + 10);
        assert_eq!(text.lines().last(), Some(last.as_str()));
    }

    #[test]
    fn any_time_from_a_guest_can_be_logged() {
        let directory = tempfile::tempdir().unwrap();
        let mut programs = ProgramLog::new(directory.path());
        programs.add(&[Program { time: u64::MAX, ..program(b"/x") }], u32::MAX);
        assert!(text(directory.path()).contains("2554-"));
    }
}
