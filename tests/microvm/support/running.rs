//! A `mayfly` under way, and how it ended.

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
use super::{PATIENCE, until};

/// A child whose output is collected while it runs. Killed where it is dropped.
pub(crate) struct Running {
    child: Child,
    stdout: Collected,
    stderr: Collected,
    readers: Vec<JoinHandle<()>>,
}

type Collected = Arc<Mutex<Vec<u8>>>;

impl Running {
    /// Starts a command. Its standard input is empty, unless the command says otherwise.
    pub(crate) fn start(command: &mut Command) -> Self {
        Self::start_with(command, Stdio::null())
    }

    /// Starts a command that reads `input`.
    pub(crate) fn start_with(command: &mut Command, input: impl Into<Stdio>) -> Self {
        Self::start_between(command, input, Stdio::piped())
    }

    /// Starts a command that reads `input` and writes to `output`, which is collected where it is
    /// a new pipe.
    pub(crate) fn start_between(
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

    /// Its process id.
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// Its standard input, where it is a pipe.
    pub(crate) fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Writes all of its standard input from a thread, and closes it.
    pub(crate) fn feed(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.stdin();
        // A command need not read its input.
        self.readers.push(thread::spawn(move || drop(stdin.write_all(&bytes))));
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// What it has written so far.
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.lock().unwrap()).into_owned()
    }

    /// What it has complained of so far.
    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.lock().unwrap()).into_owned()
    }

    /// Waits until its standard output has this text.
    pub(crate) fn wait_for_output(&mut self, text: &str) {
        self.wait_for_output_within(text, PATIENCE);
    }

    /// Waits so long until its standard output has this text.
    pub(crate) fn wait_for_output_within(&mut self, text: &str, within: Duration) {
        self.wait_until(&format!("{text:?} on standard output"), within, |running| {
            running.stdout().contains(text)
        });
    }

    /// Waits until its events tell of this phase.
    pub(crate) fn wait_for_phase(&mut self, phase: &str) {
        self.wait_until(&format!("the phase {phase}"), PATIENCE, |running| {
            phases(&events(&running.stderr())).iter().any(|reached| reached == phase)
        });
    }

    /// Waits for what has to come before it ends.
    fn wait_until(&mut self, what: &str, within: Duration, mut there: impl FnMut(&Self) -> bool) {
        until(what, within, || {
            // In this order: what comes last comes before the end.
            let ended = self.child.try_wait().unwrap();
            if there(self) {
                return Some(());
            }
            assert!(ended.is_none(), "it ended before {what}: {}", self.stderr());
            None
        });
    }

    /// Whether it runs no more.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self, within: Duration) -> Ending {
        let status = self.wait(within);
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        let stdout = std::mem::take(&mut *self.stdout.lock().unwrap());
        Ending { status, stdout, stderr: self.stderr() }
    }

    fn wait(&mut self, within: Duration) -> ExitStatus {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let stderr = || self.stderr();
            assert!(start.elapsed() < within, "not ended within {within:?}: {}", stderr());
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The shepherd ends by itself without its front end. One that has ended needs no killing.
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

/// How a run ended.
pub(crate) struct Ending {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
}

impl Ending {
    /// The exit status, or -1 for a signal.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    /// Standard output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The lines of `--json`.
    pub(crate) fn events(&self) -> Vec<Value> {
        events(&self.stderr)
    }

    /// The phases of `--json`, in order.
    pub(crate) fn phases(&self) -> Vec<String> {
        phases(&self.events())
    }

    /// The report of a failure in `--json`.
    pub(crate) fn failure(&self) -> Value {
        let events = self.events();
        let mut ends = events.iter().filter_map(|event| event.pointer("/happened/ended/failed"));
        ends.next_back().unwrap_or_else(|| panic!("it did not fail: {self:?}")).clone()
    }

    /// Fails unless it ended like this.
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code(), code, "{self:?}");
        self
    }

    /// Fails unless standard output is exactly this.
    #[track_caller]
    pub(crate) fn assert_output(&self, text: &str) -> &Self {
        assert_eq!(self.text(), text, "{self:?}");
        self
    }

    /// Fails unless it complains of this.
    #[track_caller]
    pub(crate) fn assert_says(&self, text: &str) -> &Self {
        assert!(self.stderr.contains(text), "{text:?} is not in {self:?}");
        self
    }

    /// Fails unless the microVM failed for this cause, with the code that goes with it, left a
    /// black box on `host`, and told where. To be used with `--json`. Gives the black box.
    #[track_caller]
    pub(crate) fn assert_failed(&self, host: &Host, cause: &str, code: i32) -> PathBuf {
        let failure = self.failure();
        assert_eq!(failure["cause"], cause, "{self:?}");
        assert_eq!(failure["code"], code, "{self:?}");
        self.assert_code(code);
        let black_box = PathBuf::from(failure["black_box"].as_str().unwrap());
        self.assert_says(&format!("evidence: {}", black_box.display()));
        assert_eq!(
            host.microvms(),
            std::slice::from_ref(&black_box),
            "exactly the black box is left"
        );
        let record = std::fs::read_to_string(black_box.join("events.jsonl")).unwrap();
        let recorded = events(&record);
        assert_eq!(recorded.len(), record.lines().count(), "every line is an event: {record}");
        assert_eq!(recorded, self.events(), "what was recorded is what was told");
        host.assert_no_process();
        black_box
    }
}

impl fmt::Debug for Ending {
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
