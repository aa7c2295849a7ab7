//! Tests that run jobs as the current user, over a socket pair instead of vsock.

mod conversation;
mod copies;
mod follow;
mod process;
mod streams;
mod terminal;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use mayfly_protocol::flow::{MAX_CHUNK, ReceiveWindow, WINDOW};
use mayfly_protocol::frame;
use mayfly_protocol::message::{
    Bytes, GuestMessage, HostMessage, InputStream, Job, JobExit, OutputStream, Prepare,
    StartFailure, TerminalSize,
};
use tempfile::TempDir;

use super::{JobContext, ProcessRules};
use crate::channel::Sender;
use crate::error::StepError;
use crate::services::Services;
use crate::session::{MachineOperations, Session, SessionEnd};

/// The time limit for one message.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The host's end of a session that runs in a thread.
struct Host {
    connection: UnixStream,
    session: Option<JoinHandle<SessionEnd>>,
    windows: BTreeMap<OutputStream, ReceiveWindow>,
    home: TempDir,
}

/// The output and status of a job.
#[derive(Default)]
struct JobResult {
    outputs: BTreeMap<OutputStream, Vec<u8>>,
    ends: BTreeMap<OutputStream, Option<String>>,
    credit: u64,
    status: Option<JobExit>,
}

impl JobResult {
    fn stdout(&self) -> String {
        self.text(OutputStream::Stdout)
    }

    fn text(&self, stream: OutputStream) -> String {
        String::from_utf8(self.outputs.get(&stream).cloned().unwrap_or_default()).unwrap()
    }
}

impl Host {
    /// Returns a prepared session.
    fn new() -> Self {
        let mut host = Self::greeted();
        host.send(&prepare());
        assert_eq!(host.receive(), Some(GuestMessage::Prepared));
        host
    }

    /// Returns a session that has sent `Hello`.
    fn greeted() -> Self {
        let home = tempfile::tempdir().unwrap();
        let entry = format!("runner:x:0:0::{}:/bin/sh\n", home.path().display());
        let (passwd, groups) = (home.path().join(".passwd"), home.path().join(".group"));
        fs::write(&passwd, entry).unwrap();
        fs::write(&groups, "").unwrap();
        let context = JobContext {
            passwd,
            groups,
            control_group: None,
            is_init: false,
            rules: ProcessRules::default(),
            services: Services::default(),
        };
        let (connection, guest) = UnixStream::pair().unwrap();
        connection.set_read_timeout(Some(TIMEOUT)).unwrap();
        let sender = Sender::new(guest.try_clone().unwrap());
        let operations = MachineOperations { prepare: |_| Ok(()), set_clock: record_clock };
        let serve = move || Session::new(sender, context, operations).serve(&guest);
        let session = Some(std::thread::spawn(serve));
        let mut host = Self { connection, session, windows: BTreeMap::new(), home };
        assert!(matches!(host.receive(), Some(GuestMessage::Hello(_))));
        host
    }

    fn send(&mut self, message: &HostMessage) {
        frame::write(&self.connection, message).unwrap();
    }

    /// Returns the next message that is not a heartbeat.
    fn receive(&mut self) -> Option<GuestMessage> {
        loop {
            match frame::read(&self.connection).unwrap() {
                Some(GuestMessage::Heartbeat(_)) => {}
                message => return message,
            }
        }
    }

    fn start(&mut self, job: Job) {
        self.send(&HostMessage::Start(job));
    }

    fn input(&mut self, stream: InputStream, bytes: &[u8]) {
        for chunk in bytes.chunks(MAX_CHUNK) {
            self.send(&HostMessage::Input { stream, bytes: chunk.to_vec().into() });
        }
    }

    fn input_end(&mut self, stream: InputStream) {
        self.send(&HostMessage::InputEnd { stream });
    }

    /// Reads until the job has printed `text`.
    fn wait_for(&mut self, result: &mut JobResult, text: &str) {
        while !result.stdout().contains(text) {
            assert!(self.step(result), "{}", result.stdout());
        }
    }

    /// Reads until the job is over.
    fn finish(&mut self, mut result: JobResult) -> JobResult {
        while self.step(&mut result) {}
        result
    }

    fn run(&mut self, job: Job) -> JobResult {
        self.start(job);
        self.finish(JobResult::default())
    }

    /// Receives one message. Returns false after the last.
    fn step(&mut self, result: &mut JobResult) -> bool {
        match self.receive().expect("the guest hung up") {
            GuestMessage::Started => {}
            GuestMessage::Output { stream, bytes } => {
                let window = self.windows.entry(stream).or_default();
                window.receive(bytes.len()).unwrap();
                if let Some(bytes) = window.pass_on(bytes.len()) {
                    frame::write(&self.connection, &HostMessage::Credit { stream, bytes }).unwrap();
                }
                assert!(!result.ends.contains_key(&stream), "output after the end");
                result.outputs.entry(stream).or_default().extend(bytes.iter());
            }
            GuestMessage::OutputEnd { stream, error } => {
                assert!(result.ends.insert(stream, error).is_none(), "a second end");
            }
            GuestMessage::Credit { bytes, .. } => result.credit += u64::from(bytes),
            GuestMessage::Exited(status) => {
                result.status = Some(status);
                return false;
            }
            message => panic!("{message:?}"),
        }
        true
    }

    /// Ends the session.
    fn outcome(&mut self) -> SessionEnd {
        self.session.take().unwrap().join().unwrap()
    }
}

/// The clock settings by all hosts of these tests.
static CLOCKS: Mutex<Vec<u64>> = Mutex::new(Vec::new());

fn record_clock(now: u64) -> Result<(), StepError> {
    let mut clocks = CLOCKS.lock().map_err(|error| StepError::new("note", error.to_string()))?;
    clocks.push(now);
    Ok(())
}

fn prepare() -> HostMessage {
    HostMessage::Prepare(Prepare {
        entropy: Bytes::new(),
        wall_clock: 0,
        hostname: "vm".into(),
        network: None,
        heartbeat_interval: 50,
    })
}

fn bytes(text: &str) -> Bytes {
    text.as_bytes().to_vec().into()
}

fn job(arguments: &[&str]) -> Job {
    Job {
        arguments: arguments.iter().copied().map(bytes).collect(),
        environment: Vec::new(),
        directory: None,
        user: None,
        terminal: None,
        stdin: false,
        copy_in: Vec::new(),
        copy_out: Vec::new(),
        follow: None,
    }
}

fn shell(script: &str) -> Job {
    job(&["sh", "-c", script])
}

fn on_terminal(script: &str) -> Job {
    Job { terminal: Some(TerminalSize { rows: 33, columns: 99 }), stdin: true, ..shell(script) }
}
