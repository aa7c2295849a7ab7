//! A running command and its output.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::host::Host;
use super::{TIMEOUT, until};

/// A child process whose output is collected while it runs. It is killed when dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    readers: Vec<JoinHandle<()>>,
}

type Collected = Arc<Mutex<Vec<u8>>>;

impl Running {
    /// Starts a command with empty standard input.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Starts a command that reads `input`.
    pub(crate) fn start_with(command: &mut Command, input: impl Into<Stdio>) -> Self {
        Self::start_with_io(command, input, Stdio::piped())
    }

    /// Starts a command that reads `input` and writes to `output`, which is collected if it is a
    /// new pipe.
    pub(crate) fn start_with_io(
        command: &mut Command,
        input: impl Into<Stdio>,
        output: impl Into<Stdio>,
    ) -> Self {
        let command = command.stdin(input).stdout(output).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut readers = Vec::new();
        let stdout = child.stdout.take();
        let stdout = stdout.map(|stdout| collect(stdout, &mut readers)).unwrap_or_default();
        let stderr = collect(child.stderr.take().unwrap(), &mut readers);
        Self { child, stdout, stderr, readers }
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Takes its standard input, which must be a pipe.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Writes its standard input from a thread, then closes it.
    pub(crate) fn feed(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.stdin();
        // The command may exit without reading all its input.
        self.readers.push(thread::spawn(move || drop(stdin.write_all(&bytes))));
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Returns standard output so far.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    /// Returns standard error so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Waits until standard output contains a text.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        self.wait_for_output_within(text, TIMEOUT);
    }

    /// Waits until standard output contains a text, with a time limit.
    pub(crate) fn wait_for_output_within(&mut self, text: &str, within: Duration) {
        self.wait_until(&format!("{text:?} on standard output"), within, |running| {
            running.stdout().contains(text)
        });
    }

    /// Waits until its events show a phase.
    pub(crate) fn wait_for_phase(&mut self, phase: &str) {
        self.wait_until(&format!("the phase {phase}"), TIMEOUT, |running| {
            phases(&events(&running.stderr())).iter().any(|reached| reached == phase)
        });
    }

    /// Waits for a condition that must become true before the process exits.
    fn wait_until(&mut self, what: &str, within: Duration, mut check: impl FnMut(&Self) -> bool) {
        until(what, within, || {
            // The status first: the condition may become true just before the exit.
            let exited = self.child.try_wait().unwrap();
            if check(self) {
                return Some(());
            }
            assert!(exited.is_none(), "the process exited before {what}: {}", self.stderr());
            None
        });
    }

    /// Returns whether the process has exited.
    pub(crate) fn has_exited(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its exit.
    pub(crate) fn finish(mut self, within: Duration) -> CommandOutput {
        let status = self.wait(within);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let stdout = std::mem::take(&mut *self.stdout.lock().unwrap());
        CommandOutput { status, stdout, stderr: self.stderr() }
    }

    fn wait(&mut self, within: Duration) -> ExitStatus {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let stderr = || self.stderr();
            assert!(start.elapsed() < within, "still running after {within:?}: {}", stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The shepherd exits by itself without its front end. A kill fails after the exit.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, readers: &mut Vec<JoinHandle<()>>) -> Collected {
    let collected = Collected::default();
    let shared = Arc::clone(&collected);
    readers.push(thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            shared.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    }));
    collected
}

/// The exit status and output of a command.
pub(crate) struct CommandOutput {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl CommandOutput {
    /// Returns the exit status, or -1 for a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Returns standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Returns the lines of `--json`.
    pub(crate) fn events(&self) -> Vec<Value> {
        events(&self.stderr)
    }

    /// Returns the phases of `--json`, in order.
    pub(crate) fn phases(&self) -> Vec<String> {
        phases(&self.events())
    }

    /// Returns the failure report of `--json`.
    pub(crate) fn failure(&self) -> Value {
        let events = self.events();
        let mut ends = events.iter().filter_map(|event| event.pointer("/happened/ended/failed"));
        ends.next_back().unwrap_or_else(|| panic!("the run did not fail: {self:?}")).clone()
    }

    /// Checks the exit code.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{self:?}");
        self
    }

    /// Checks that standard output is exactly this text.
    #[track_caller]
    pub(crate) fn assert_output(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "{self:?}");
        self
    }

    /// Checks that standard error contains a text.
    #[track_caller]
    pub(crate) fn assert_stderr_has(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} is not in {self:?}");
        self
    }

    /// Checks that the microVM failed with this cause and code, left only a black box on `host`,
    /// and printed its path. Needs `--json`. Returns the black box.
    #[track_caller]
    pub(crate) fn assert_failed(&self, host: &Host, cause: &str, code: i32) -> PathBuf {
        let failure = self.failure();
        assert_eq!(failure["cause"], cause, "{self:?}");
        assert_eq!(failure["code"], code, "{self:?}");
        self.assert_code(code);
        let black_box = PathBuf::from(failure["black_box"].as_str().unwrap());
        self.assert_stderr_has(&format!("evidence: {}", black_box.display()));
        assert_eq!(
            host.microvms(),
            std::slice::from_ref(&black_box),
            "not exactly the black box remains"
        );
        let record = std::fs::read_to_string(black_box.join("events.jsonl")).unwrap();
        let recorded = events(&record);
        assert_eq!(recorded.len(), record.lines().count(), "a line is not an event: {record}");
        assert_eq!(recorded, self.events(), "recorded and printed events differ");
        host.assert_no_process();
        black_box
    }
}

impl fmt::Debug for CommandOutput {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.stdout[..self.stdout.len().min(2000)];
        write!(
            formatter,
            "{}{}\nstdout ({} bytes): {}\nstderr:\n{}",
            self.status,
            self.status.signal().map_or_else(String::new, |signal| format!(" ({signal})")),
            self.stdout.len(),
            String::from_utf8_lossy(shown),
            self.stderr
        )
    }
}

fn events(text: &str) -> Vec<Value> {
    let lines = text.lines().filter(|line| line.starts_with('{'));
    lines.filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn phases(events: &[Value]) -> Vec<String> {
    let phases = events.iter().filter_map(|event| event.pointer("/happened/phase")?.as_str());
    phases.map(str::to_owned).collect()
}
