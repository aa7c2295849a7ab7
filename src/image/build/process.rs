//! Runs the programs of a build: each dies with the builder, is bounded in time, and what it
//! prints is kept for the case that it fails.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::Scope;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::Progress;
use crate::image::error::ImageError;

/// How many of a program's last lines are kept.
const TAIL: usize = 25;
/// A line is cut after so many bytes.
const LINE_LIMIT: u64 = 4096;
/// What a program may answer on its standard output, in bytes.
const ANSWER_LIMIT: usize = 4 << 20;

/// What the programs of one build have in common.
pub(super) struct Runner<'a> {
    /// When all of it must be done.
    pub(super) deadline: Deadline,
    /// Told each line that a program prints on standard error.
    pub(super) progress: &'a dyn Progress,
}

/// A point in time and the span that led to it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// When it passes.
    pub(super) fn at(self) -> Instant {
        self.at
    }

    fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// An error once it has passed.
    pub(super) fn check(self) -> Result<(), ImageError> {
        if self.left().is_zero() { Err(self.passed()) } else { Ok(()) }
    }

    fn passed(self) -> ImageError {
        ImageError::TimedOut { limit: self.limit }
    }
}

/// A line that a program printed.
enum Line {
    Output(Vec<u8>),
    Error(Vec<u8>),
}

impl Runner<'_> {
    /// Runs a program to its successful end and returns its standard output.
    ///
    /// Must be called from a thread that outlives the program: the kernel kills the program when
    /// that thread ends.
    pub(super) fn run(&self, command: &mut Command) -> Result<Vec<u8>, ImageError> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run_as(&program, command)
    }

    /// The same, with another name in messages than that of the command's own program.
    pub(super) fn run_as(
        &self,
        program: &str,
        command: &mut Command,
    ) -> Result<Vec<u8>, ImageError> {
        self.deadline.check()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        die_with_this_thread(command);
        let mut child = command.spawn().map_err(|error| failed(program, &error, Vec::new()))?;
        let mut said = Said::default();
        let outcome = std::thread::scope(|scope| {
            let lines = read_lines(scope, &mut child);
            let ended = self.follow(&lines, &mut said).and_then(|()| self.wait(&mut child));
            if ended.is_err() {
                // Also ends the readers: nothing that the child started outlives it for long.
                let _ = child.kill();
                let _ = child.wait();
            }
            drop(lines);
            ended
        });
        let status = outcome?;
        if status.success() {
            return Ok(said.output);
        }
        Err(failed(program, &status, said.tail.into()))
    }

    /// Takes in what a program prints until it has closed both its outputs.
    fn follow(&self, lines: &Receiver<Line>, said: &mut Said) -> Result<(), ImageError> {
        loop {
            match lines.recv_timeout(self.deadline.left()) {
                Ok(line) => said.take(line, self.progress),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => return Err(self.deadline.passed()),
            }
        }
    }

    /// Waits for a program that has closed its outputs, so is about to end.
    fn wait(&self, child: &mut Child) -> Result<ExitStatus, ImageError> {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) => self.deadline.check()?,
                Err(error) => return Err(ImageError::read("/proc")(error)),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn failed(program: &str, outcome: &dyn ToString, tail: Vec<String>) -> ImageError {
    ImageError::Tool { program: program.to_owned(), outcome: outcome.to_string(), tail }
}

/// What a program has printed, as far as it is kept.
#[derive(Default)]
struct Said {
    output: Vec<u8>,
    tail: VecDeque<String>,
}

impl Said {
    fn take(&mut self, line: Line, progress: &dyn Progress) {
        let text = match line {
            Line::Output(bytes) => {
                let text = printable(&bytes);
                if self.output.len() + bytes.len() <= ANSWER_LIMIT {
                    self.output.extend_from_slice(&bytes);
                }
                text
            }
            Line::Error(bytes) => {
                let text = printable(&bytes);
                progress.detail(&text);
                text
            }
        };
        if text.is_empty() {
            return;
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }
}

/// A line without its end and without what would move a terminal's cursor.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end().chars().filter(|c| !c.is_control() || *c == '\t').collect()
}

/// Reads a child's two outputs on threads of `scope`, which end with the outputs or when nobody
/// takes the lines any more.
fn read_lines<'scope>(scope: &'scope Scope<'scope, '_>, child: &mut Child) -> Receiver<Line> {
    let (sender, lines) = sync_channel(64);
    if let Some(output) = child.stdout.take() {
        let sender = sender.clone();
        scope.spawn(move || send_lines(output, &sender, Line::Output));
    }
    if let Some(output) = child.stderr.take() {
        scope.spawn(move || send_lines(output, &sender, Line::Error));
    }
    lines
}

fn send_lines(output: impl Read, sender: &SyncSender<Line>, kind: fn(Vec<u8>) -> Line) {
    let mut reader = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        // A read that fails is the end of what can be known; the exit status decides.
        let end =
            matches!(reader.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line), Ok(0) | Err(_));
        if end || sender.send(kind(line)).is_err() {
            return;
        }
    }
}

/// Lets the kernel kill the child when this thread ends, however it ends.
fn die_with_this_thread(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only async-signal-safe system calls are made (prctl, getppid),
    // and nothing is allocated: both errors are made from a number.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                // It died before it was asked for.
                Err(io::Error::from(nix::errno::Errno::ESRCH))
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<String>>);

    impl Progress for Recorder {
        fn step(&self, _: &str) {}
        fn detail(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    fn shell(
        script: &str,
        limit: Duration,
        progress: &dyn Progress,
    ) -> Result<Vec<u8>, ImageError> {
        let runner = Runner { deadline: Deadline::after(limit), progress };
        runner.run(Command::new("sh").args(["-c", script]))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn standard_output_is_the_answer_and_standard_error_the_progress() {
        let recorder = Recorder::default();
        let answer = shell("echo answer; echo detail >&2", MINUTE, &recorder).unwrap();
        assert_eq!(answer, b"answer\n");
        assert_eq!(*recorder.0.lock().unwrap(), ["detail"]);
    }

    #[test]
    fn a_failure_has_the_last_lines() {
        let script = "seq 100; printf 'bad\\033[2J news' >&2; exit 3";
        let error = shell(script, MINUTE, &Recorder::default()).unwrap_err();
        let ImageError::Tool { program, outcome, tail } = &error else { panic!("{error}") };
        assert_eq!((program.as_str(), outcome.as_str()), ("sh", "exit status: 3"));
        assert_eq!(tail.len(), TAIL);
        // The two outputs are read side by side, so their order is not certain.
        assert!(tail.iter().any(|line| line == "100"), "{tail:?}");
        assert!(!error.to_string().contains('\u{1b}'));
    }

    #[test]
    fn a_program_that_takes_too_long_is_killed() {
        let recorder = Recorder::default();
        let limit = Duration::from_secs(1);
        let error = shell("echo $$ >&2; exec sleep 600", limit, &recorder).unwrap_err();
        assert!(matches!(error, ImageError::TimedOut { .. }), "{error}");
        let process = recorder.0.lock().unwrap()[0].clone();
        assert!(!std::path::Path::new("/proc").join(process).exists());
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let runner = Runner { deadline: Deadline::after(MINUTE), progress: &Recorder::default() };
        let error = runner.run(&mut Command::new("/no/such/program")).unwrap_err();
        assert!(error.to_string().contains("/no/such/program"), "{error}");
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let recorder = Recorder::default();
        shell("head -c 20000 /dev/zero | tr '\\0' x >&2", MINUTE, &recorder).unwrap();
        let lines = recorder.0.lock().unwrap();
        assert_eq!(lines.iter().map(String::len).sum::<usize>(), 20_000);
        assert!(lines.iter().all(|line| line.len() <= 4096));
    }
}
