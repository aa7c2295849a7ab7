//! The messages of both sides.
//!
//! Paths, arguments, variables and output are bytes, not text: Linux promises no encoding.

use std::fmt;

use serde::{Deserialize, Serialize};
pub use serde_bytes::ByteBuf as Bytes;

/// The beginning of Mayfly's own value of `no_proxy`. The agent appends the names of the guest's
/// hosts file to such a value, and leaves a value that the job itself has set unchanged.
pub const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// A message from the guest to the host. The host trusts no field of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// The first message: the agent is up and the root file system is mounted.
    Hello(GuestHello),
    /// `Prepare` has succeeded; a job can start.
    Prepared,
    /// The job's process is running.
    Started,
    /// Bytes of an output stream, at most [`crate::flow::MAX_CHUNK`].
    Output {
        /// The stream they belong to.
        stream: OutputStream,
        /// The bytes.
        bytes: Bytes,
    },
    /// The end of an output stream. Sent once per stream.
    OutputEnd {
        /// The stream that ended.
        stream: OutputStream,
        /// The reason, if the stream ended early (e.g. a path to copy out does not exist).
        error: Option<String>,
    },
    /// The job has read `bytes` of an input stream.
    Credit {
        /// The stream.
        stream: InputStream,
        /// Bytes that the host may send in addition.
        bytes: u32,
    },
    /// The agent is alive. Carries the statistics of the machine.
    Heartbeat(Statistics),
    /// The job has ended and all its output was sent.
    Exited(JobExit),
    /// The agent failed; the microVM can't be used any more.
    Failed {
        /// The step that failed, e.g. `mount the root file system`.
        step: String,
        /// The error.
        error: String,
    },
    /// The programs executed since the last such message, at most [`MAX_PROGRAMS`], in order. Sent
    /// between the host's `Start` and `Exited`, if the image's settings enable it.
    Programs {
        /// The programs.
        programs: Vec<Program>,
        /// A lower bound of the number of programs omitted.
        left_out: u32,
    },
}

/// The most programs in one message.
pub const MAX_PROGRAMS: usize = 512;

/// The most bytes of a program's path in a message.
pub const MAX_PROGRAM_PATH: usize = 512;

/// A program that was executed, without its arguments: they may contain secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The time of execution, by the guest's clock: nanoseconds since the Unix epoch.
    pub time: u64,
    /// The process ID.
    pub process: u32,
    /// The ID of the parent process; 0 if the process ended before the agent could read it.
    pub parent: u32,
    /// The user ID that it runs as.
    pub user: u32,
    /// The path of its file, at most [`MAX_PROGRAM_PATH`] bytes; empty if the process ended before
    /// the agent could read it.
    pub path: Bytes,
}

/// A message from the host to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Prepares the machine for a job. Sent once, after [`GuestMessage::Hello`].
    Prepare(Prepare),
    /// Starts the one job. Sent once, after [`GuestMessage::Prepared`].
    Start(Job),
    /// Bytes of an input stream, at most [`crate::flow::MAX_CHUNK`].
    Input {
        /// The stream they belong to.
        stream: InputStream,
        /// The bytes.
        bytes: Bytes,
    },
    /// The end of an input stream.
    InputEnd {
        /// The stream that ended.
        stream: InputStream,
    },
    /// The host has consumed `bytes` of an output stream.
    Credit {
        /// The stream.
        stream: OutputStream,
        /// Bytes that the guest may send in addition.
        bytes: u32,
    },
    /// Sends a signal, by its Linux number, to the job (to the foreground process group if it has a
    /// terminal).
    Signal(i32),
    /// The size of the job's terminal window has changed.
    Resize(TerminalSize),
    /// Powers the machine off.
    Shutdown,
    /// Sets the clock again, to nanoseconds since the Unix epoch: a microVM that waited for its job
    /// has missed steps of the host's clock and the time that the host was suspended. May come at
    /// any time after [`GuestMessage::Prepared`].
    SetClock(u64),
}

/// The guest's first message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// [`crate::VERSION`] of the agent. Remains the first field in every version.
    pub protocol: u16,
    /// Version of the agent, for display.
    pub agent: String,
    /// Release of the running kernel (`uname -r`).
    pub kernel: String,
}

/// The configuration that a booted machine needs before it can run a job.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Random bytes from the host for the kernel's entropy pool, credited in full.
    pub entropy: Bytes,
    /// The host's clock: nanoseconds since the Unix epoch.
    pub wall_clock: u64,
    /// Host name of the microVM.
    pub hostname: String,
    /// The configuration of `eth0`; if none, it stays down.
    pub network: Option<Network>,
    /// Time between heartbeats, in milliseconds.
    pub heartbeat_interval: u32,
}

/// Static IPv4 addressing of `eth0`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The guest's address.
    pub address: [u8; 4],
    /// Length of the network's prefix, in bits.
    pub prefix: u8,
    /// The gateway, which is also the name server.
    pub gateway: [u8; 4],
    /// The MTU, in bytes.
    pub mtu: u16,
}

/// The one job of a microVM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program, searched in the job's `PATH`, and its arguments. Never empty.
    pub arguments: Vec<Bytes>,
    /// Variables in addition to the login environment; later ones win. May contain secrets.
    pub environment: Vec<(Bytes, Bytes)>,
    /// The working directory; the user's home directory if none.
    pub directory: Option<Bytes>,
    /// The user, by name or number; `runner` if none.
    pub user: Option<String>,
    /// The size of the terminal for all three standard streams; pipes if none.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input is connected. If not, the job reads end of file.
    pub stdin: bool,
    /// The destination of each copied-in tree, unpacked before the job starts. The n-th tree is the
    /// stream [`InputStream::CopyIn`]`(n)`, an archive in the format of the crate `mayfly-tree`.
    /// The job starts once every archive has ended. The contents of a directory are unpacked into
    /// the path. A file is written to the path itself, or below it under the archive's name if the
    /// path is a directory or ends with `/`. A relative path starts at `directory`.
    pub copy_in: Vec<Bytes>,
    /// The paths that are packed after the job has ended. The n-th is the stream
    /// [`OutputStream::CopyOut`]`(n)`, an archive in the same format.
    pub copy_out: Vec<Bytes>,
    /// A directory to follow: lines that the job's user writes to files there are sent with the
    /// job's standard error while the job runs. It need not exist yet. Ignored with a terminal.
    #[serde(default)]
    pub follow: Option<Bytes>,
}

/// A stream from the guest to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputStream {
    /// The job's standard output, or its terminal.
    Stdout,
    /// The job's standard error. Ends at once if the job has a terminal.
    Stderr,
    /// A tree that is copied out, as a tar archive.
    CopyOut(u16),
}

/// A stream from the host to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputStream {
    /// The job's standard input.
    Stdin,
    /// A tree that is copied in, as a tar archive.
    CopyIn(u16),
}

impl fmt::Display for OutputStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => formatter.write_str("stdout"),
            Self::Stderr => formatter.write_str("stderr"),
            Self::CopyOut(number) => write!(formatter, "copied tree {number}"),
        }
    }
}

impl fmt::Display for InputStream {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdin => formatter.write_str("stdin"),
            Self::CopyIn(number) => write!(formatter, "tree {number} to copy"),
        }
    }
}

/// The size of a terminal window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Statistics of the guest's machine. Sizes are in bytes; events are counted since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Load average over the last minute, times 100.
    pub load_percent: u32,
    /// Total memory.
    pub memory_total: u64,
    /// Memory available without swapping.
    pub memory_available: u64,
    /// Size of the root file system.
    pub disk_total: u64,
    /// Space available on it to an ordinary user.
    pub disk_available: u64,
    /// Processes killed by the kernel's OOM killer.
    pub oom_kills: u64,
}

/// The exit status of the job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobExit {
    /// It exited with this status.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
    /// It never ran.
    NotStarted(StartFailure),
}

/// The reason why a job did not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailure {
    /// The program does not exist.
    CommandNotFound,
    /// The program can't be executed, with the error.
    CommandNotExecutable(String),
    /// The image has no such user.
    UserNotFound(String),
    /// The working directory can't be entered, with the error.
    DirectoryNotEntered(String),
    /// The n-th tree could not be unpacked, with the error.
    CopyInFailed(u16, String),
    /// Another system call failed, with the error.
    Other(String),
}

/// Omits the entropy.
impl fmt::Debug for Prepare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Prepare")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// Omits the arguments and the variables, which may contain secrets.
impl fmt::Debug for Job {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Job")
            .field("arguments", &self.arguments.len())
            .field("user", &self.user)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}
