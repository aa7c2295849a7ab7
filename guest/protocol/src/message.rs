//! The messages themselves.
//!
//! Paths, arguments, variables and output are bytes, not text: Linux promises no encoding.

use std::fmt;

use serde::{Deserialize, Serialize};
pub use serde_bytes::ByteBuf as Bytes;

/// How Mayfly's own value of `no_proxy` begins: the agent adds the names of the guest's hosts file
/// to such a value, and leaves one that a job has set itself as it is.
pub const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// What the guest says to the host. Every field of it is a claim of hostile code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// The first message: the agent is up and the root file system is mounted.
    Hello(Hello),
    /// `Prepare` was carried out; a job can start.
    Prepared,
    /// The job's process runs.
    Started,
    /// Bytes of an output stream, at most [`crate::flow::MAX_CHUNK`].
    Output {
        /// The stream they belong to.
        stream: OutputStream,
        /// The bytes.
        bytes: Bytes,
    },
    /// Nothing more comes on an output stream. Comes once for each.
    OutputEnd {
        /// The stream that ended.
        stream: OutputStream,
        /// Why it ended early, where it did (a path to copy out that is not there).
        error: Option<String>,
    },
    /// The job has taken `bytes` of an input stream.
    Credit {
        /// The stream.
        stream: InputStream,
        /// Bytes that may be sent again.
        bytes: u32,
    },
    /// The agent is alive; how the machine fares.
    Heartbeat(Statistics),
    /// The job is over and all its output was sent.
    Exited(JobStatus),
    /// The agent can't do what it was asked; the microVM is of no more use.
    Failed {
        /// What it was doing, e.g. `mount the root file system`.
        step: String,
        /// Why it failed.
        error: String,
    },
    /// Programs that were executed since the last such message, at most [`MAX_PROGRAMS`], in order.
    /// Comes between the host's `Start` and `Exited`, where the image's settings ask for it.
    Programs {
        /// The programs.
        programs: Vec<Program>,
        /// How many more there were at the least.
        left_out: u32,
    },
}

/// Programs that one message tells of.
pub const MAX_PROGRAMS: usize = 512;

/// Bytes of a program's path that are told.
pub const MAX_PROGRAM_PATH: usize = 512;

/// A program that was executed. Its arguments are not told: they may hold secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// When, by the guest's clock: nanoseconds since the Unix epoch.
    pub time: u64,
    /// Its process.
    pub process: u32,
    /// That process's parent; 0 where it was gone before it could be looked at.
    pub parent: u32,
    /// The user that it runs as.
    pub user: u32,
    /// Its file, at most [`MAX_PROGRAM_PATH`] bytes; empty where it was gone before it could be
    /// looked at.
    pub path: Bytes,
}

/// What the host says to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Makes the machine usable. Comes once, after [`GuestMessage::Hello`].
    Prepare(Prepare),
    /// Starts the one job. Comes once, after [`GuestMessage::Prepared`].
    Start(Job),
    /// Bytes of an input stream, at most [`crate::flow::MAX_CHUNK`].
    Input {
        /// The stream they belong to.
        stream: InputStream,
        /// The bytes.
        bytes: Bytes,
    },
    /// Nothing more comes on an input stream.
    InputEnd {
        /// The stream that ended.
        stream: InputStream,
    },
    /// The host's reader has taken `bytes` of an output stream.
    Credit {
        /// The stream.
        stream: OutputStream,
        /// Bytes that may be sent again.
        bytes: u32,
    },
    /// Sends a signal, by its Linux number, to the job (to its foreground process group where it
    /// has a terminal).
    Signal(i32),
    /// The window that the job's terminal is shown in has another size now.
    Resize(TerminalSize),
    /// Power off in an orderly way.
    Shutdown,
    /// Sets the clock again, to nanoseconds since the Unix epoch: a microVM that waited for its job
    /// has not seen the steps of the host's clock, nor the time that the host was suspended. May
    /// come at any time after [`GuestMessage::Prepared`].
    SetClock(u64),
}

/// The guest's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the agent. Stays the first field in every version.
    pub protocol: u16,
    /// Version of the agent, for people.
    pub agent: String,
    /// Release of the running kernel (`uname -r`).
    pub kernel: String,
}

/// What a booted machine needs before it can run a job.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// Fresh random bytes from the host for the kernel's pool, credited in full.
    pub entropy: Bytes,
    /// The host's clock: nanoseconds since the Unix epoch.
    pub wall_clock: u64,
    /// Host name of the microVM.
    pub hostname: String,
    /// How `eth0` is set up; none leaves it down.
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
    /// Largest packet, in bytes.
    pub mtu: u16,
}

/// The one job of a microVM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program, looked up in the job's `PATH`, and its arguments. Never empty.
    pub arguments: Vec<Bytes>,
    /// Variables beside those of the login environment; later ones win. May hold secrets.
    pub environment: Vec<(Bytes, Bytes)>,
    /// Where the job starts; the user's home directory if none is given.
    pub directory: Option<Bytes>,
    /// The user, by name or number; `runner` if none is given.
    pub user: Option<String>,
    /// A terminal of this size for all three standard streams, instead of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input is connected; else the job reads its end at once.
    pub stdin: bool,
    /// Where each copied-in tree is unpacked before the job starts; the n-th is the stream
    /// [`InputStream::CopyIn`]`(n)`, an archive as the crate `mayfly-tree` describes it. The job
    /// starts once the end of each was seen. What is in a directory goes into the path; a file takes
    /// its place, or goes into it under the archive's name if it is a directory or ends with `/`. A
    /// path that is not absolute starts in `directory`.
    pub copy_in: Vec<Bytes>,
    /// What is packed after the job ended; the n-th is the stream [`OutputStream::CopyOut`]`(n)`,
    /// an archive of the same kind.
    pub copy_out: Vec<Bytes>,
    /// A directory; what the job's user writes into the files there comes with the job's standard
    /// error while the job runs, line by line. It need not be there yet. None with a terminal.
    #[serde(default)]
    pub follow: Option<Bytes>,
}

/// Streams from the guest to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OutputStream {
    /// The job's standard output, or its terminal.
    Stdout,
    /// The job's standard error. Ends at once where the job has a terminal.
    Stderr,
    /// A tree that is copied out, as a tar archive.
    CopyOut(u16),
}

/// Streams from the host to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum InputStream {
    /// The job's standard input.
    Stdin,
    /// A tree that is copied in, as a tar archive.
    CopyIn(u16),
}

/// Size of a terminal's window, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// How the guest fares. Sizes are in bytes, counted since boot where they count events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Load average of the last minute, times 100.
    pub load_percent: u32,
    /// Memory of the machine.
    pub memory_total: u64,
    /// Memory that could be had without swapping.
    pub memory_available: u64,
    /// Size of the root file system.
    pub disk_total: u64,
    /// Room that is left on it for an ordinary user.
    pub disk_available: u64,
    /// Processes that the kernel killed for want of memory.
    pub oom_kills: u64,
}

/// How the job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobStatus {
    /// It exited with this status.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
    /// It never ran.
    NotStarted(NotStarted),
}

/// Why a job never ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotStarted {
    /// There is no such program.
    CommandNotFound,
    /// The program can't be executed; the text says why.
    CommandNotExecutable(String),
    /// There is no such user in the image.
    UserNotFound(String),
    /// The directory to start in can't be entered; the text says why.
    DirectoryNotEntered(String),
    /// The n-th tree could not be unpacked; the text says why.
    CopyInFailed(u16, String),
    /// Something else that the guest's system refused.
    Other(String),
}

/// Shown without the entropy.
impl fmt::Debug for Prepare {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Prepare")
            .field("hostname", &self.hostname)
            .field("network", &self.network)
            .finish_non_exhaustive()
    }
}

/// Shown without arguments and variables, which may hold secrets.
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
