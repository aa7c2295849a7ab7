//! Runs the programs of a build. Each is killed with the builder, has a deadline, and its output is
//! kept for error messages.

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
use crate::error::ImageError;
use mayfly_common::text::printable;

/// The number of last lines that are kept.
const TAIL_LINES: usize = 25;
/// The longest line, in bytes; longer ones are split.
const MAX_LINE: u64 = 4096;
/// The most bytes of standard output that are kept.
const MAX_OUTPUT: usize = 4 << 20;

/// Runs programs with a common deadline and progress receiver.
pub(super) struct ProcessRunner<'a> {
    /// The deadline for all programs.
    pub(super) deadline: Deadline,
    /// Receives each line of standard error.
    pub(super) progress: &'a dyn Progress,
}

/// A point in time, with the limit that it results from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    pub(super) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// Returns the point in time.
    pub(super) fn at(self) -> Instant {
        self.at
    }

    fn remaining(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// Returns an error if the deadline has passed.
    pub(super) fn check(self) -> Result<(), ImageError> {
        if self.remaining().is_zero() { Err(self.timed_out()) } else { Ok(()) }
    }

    fn timed_out(self) -> ImageError {
        ImageError::TimedOut { limit: self.limit }
    }
}

/// A line of a program's output.
enum Line {
    Output(Vec<u8>),
    Error(Vec<u8>),
}

impl ProcessRunner<'_> {
    /// Runs a program until it succeeds and returns its standard output.
    ///
    /// Must be called from a thread that outlives the program: the kernel kills the program when
    /// that thread ends.
    pub(super) fn run(&self, command: &mut Command) -> Result<Vec<u8>, ImageError> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run_as(&program, command)
    }

    /// Like [`Self::run`], with another program name in messages.
    pub(super) fn run_as(
        &self,
        program: &str,
        command: &mut Command,
    ) -> Result<Vec<u8>, ImageError> {
        self.deadline.check()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        kill_with_this_thread(command);
        let mut child = command.spawn().map_err(|error| failed(program, &error, Vec::new()))?;
        let mut captured = CapturedOutput::default();
        let outcome = std::thread::scope(|scope| {
            let lines = read_lines(scope, &mut child);
            let ended = self.follow(&lines, &mut captured).and_then(|()| self.wait(&mut child));
            if ended.is_err() {
                // Also ends the readers: descendants of the child do not outlive it for long.
                let _ = child.kill();
                let _ = child.wait();
            }
            drop(lines);
            ended
        });
        let status = outcome?;
        if status.success() {
            return Ok(captured.output);
        }
        Err(failed(program, &status, captured.tail.into()))
    }

    /// Collects a program's output until it has closed both streams.
    fn follow(
        &self,
        lines: &Receiver<Line>,
        captured: &mut CapturedOutput,
    ) -> Result<(), ImageError> {
        loop {
            match lines.recv_timeout(self.deadline.remaining()) {
                Ok(line) => captured.add(line, self.progress),
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Err(RecvTimeoutError::Timeout) => return Err(self.deadline.timed_out()),
            }
        }
    }

    /// Waits for a program that has closed its outputs.
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

/// The captured output of a program.
#[derive(Default)]
struct CapturedOutput {
    output: Vec<u8>,
    tail: VecDeque<String>,
}

impl CapturedOutput {
    fn add(&mut self, line: Line, progress: &dyn Progress) {
        let text = match line {
            Line::Output(bytes) => {
                let text = printable(String::from_utf8_lossy(&bytes).trim_end());
                if self.output.len() + bytes.len() <= MAX_OUTPUT {
                    self.output.extend_from_slice(&bytes);
                }
                text
            }
            Line::Error(bytes) => {
                let text = printable(String::from_utf8_lossy(&bytes).trim_end());
                progress.detail(&text);
                text
            }
        };
        if text.is_empty() {
            return;
        }
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(text);
    }
}

/// Reads a child's two outputs on threads of `scope`, which end with the outputs or when the
/// receiver is dropped.
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
        // A failed read ends the output; the exit status decides.
        let end =
            matches!(reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line), Ok(0) | Err(_));
        if end || sender.send(kind(line)).is_err() {
            return;
        }
    }
}

/// Makes the kernel kill the child when this thread ends.
fn kill_with_this_thread(command: &mut Command) {
    let parent = nix::unistd::getpid();
    // SAFETY: between fork and exec only async-signal-safe system calls are made (prctl, getppid),
    // and nothing is allocated: both errors are made from a number.
    unsafe {
        command.pre_exec(move || {
            set_pdeathsig(Signal::SIGKILL)?;
            if nix::unistd::getppid() == parent {
                Ok(())
            } else {
                // The parent died before prctl.
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
        let runner = ProcessRunner { deadline: Deadline::after(limit), progress };
        runner.run(Command::new("sh").args(["-c", script]))
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn standard_output_is_returned_and_standard_error_is_progress() {
        let recorder = Recorder::default();
        let output = shell("echo answer; echo detail >&2", MINUTE, &recorder).unwrap();
        assert_eq!(output, b"answer\n");
        assert_eq!(*recorder.0.lock().unwrap(), ["detail"]);
    }

    #[test]
    fn a_failure_has_the_last_lines() {
        let script = "seq 100; printf 'bad\\033[2J news' >&2; exit 3";
        let error = shell(script, MINUTE, &Recorder::default()).unwrap_err();
        let ImageError::Tool { program, outcome, tail } = &error else { panic!("{error}") };
        assert_eq!((program.as_str(), outcome.as_str()), ("sh", "exit status: 3"));
        assert_eq!(tail.len(), TAIL_LINES);
        // The two outputs are read concurrently, so their order is undefined.
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
    fn a_missing_program_is_named() {
        let runner =
            ProcessRunner { deadline: Deadline::after(MINUTE), progress: &Recorder::default() };
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
