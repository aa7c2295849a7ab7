//! QEMU: its command line, its control socket, its disk, its confinement, and the end of it.
//!
//! A [`Machine`] is QEMU and the vsock program beside it, both children of the calling process.
//! [`Parts`] are what a machine is made of before QEMU runs; [`Machine::start`] consumes them.
//!
//! Owns the processes and the overlay. Is given the tap, the paths and the sizes; knows nothing of
//! GitHub, of policies, or of what is said on the channel.

pub mod accelerator;
pub mod arguments;
pub mod console;
mod death;
pub mod overlay;
mod qmp;
mod roots;
mod vsock;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::failure::{Code, Failure};
use crate::isolation::calls;
use crate::isolation::confined::Confinement;
use crate::isolation::root::RootError;
use arguments::{Descriptors, Specification};
use console::BoundedLog;
pub use death::Death;
use death::Processes;
use qmp::Control;
pub use qmp::QmpError;
use roots::Housed;
pub use vsock::listen;

/// Bytes that a file of QEMU's may have beyond the disk or memory it stands for: metadata of the
/// overlay, at most 2 % of it, and something to spare.
const METADATA: u64 = 64 << 20;

/// A machine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The overlay could not be made.
    #[error(transparent)]
    Overlay(#[from] overlay::OverlayError),
    /// A program did not start.
    #[error("can't run {0}")]
    NotRun(PathBuf, #[source] io::Error),
    /// What a program is to see could not be put together.
    #[error(transparent)]
    Root(Box<dyn std::error::Error + Send + Sync>),
    /// A socket between us and a child could not be made.
    #[error("can't make a socket to a child process")]
    Socket(#[source] io::Error),
    /// A log could not be begun.
    #[error("can't write {0}")]
    Log(PathBuf, #[source] io::Error),
    /// A part of the image does not open.
    #[error("can't open {0}")]
    Image(PathBuf, #[source] io::Error),
    /// The vsock program ended instead of serving.
    #[error("vhost-device-vsock ended at once with {0}")]
    VsockNotStarted(ExitStatus),
    /// QEMU ended instead of answering.
    #[error("QEMU ended at once with {status}{}", said(.complaint))]
    QemuNotStarted {
        /// How it ended.
        status: ExitStatus,
        /// The last it said.
        complaint: String,
    },
    /// QEMU's control socket failed.
    #[error(transparent)]
    Control(#[from] QmpError),
}

impl From<RootError> for MachineError {
    fn from(error: RootError) -> Self {
        Self::Root(error.into())
    }
}

/// What a program said before it ended, if it said anything.
fn said(complaint: &str) -> String {
    if complaint.is_empty() { String::new() } else { format!(": {complaint}") }
}

impl Failure for MachineError {
    fn code(&self) -> Code {
        match self {
            // Somebody killed it; there is nothing wrong with the program.
            Self::QemuNotStarted { status, .. } if status.signal().is_some() => Code::MachineFailed,
            Self::NotRun(..) | Self::VsockNotStarted(_) | Self::QemuNotStarted { .. } => {
                Code::Unavailable
            }
            Self::Overlay(_) | Self::Log(..) => Code::CannotWrite,
            Self::Image(..) => Code::NotFound,
            Self::Root(_) => Code::Unavailable,
            Self::Socket(_) | Self::Control(_) => Code::MachineFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::QemuNotStarted { status, .. } if status.signal().is_some() => None,
            Self::NotRun(..) | Self::VsockNotStarted(_) | Self::QemuNotStarted { .. } => {
                Some("run mayfly doctor: it checks the programs and their versions".to_owned())
            }
            _ => None,
        }
    }
}

/// The programs that a machine runs on.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Programs {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// `vhost-device-vsock`.
    pub vsock: PathBuf,
}

/// Where a machine's things lie.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    /// For the logs, and the file system of the overlay.
    pub directory: &'a Path,
    /// For the sockets: a directory that no other process sees.
    pub private: &'a Path,
}

/// What a machine is made of, before QEMU runs.
pub struct Parts {
    overlay: File,
    frequency: Option<u64>,
    vsock: vsock::VsockDevice,
    qemu: Housed,
}

impl Parts {
    /// Makes the overlay, starts the vsock program and looks at the clock, all at once.
    pub async fn make(
        programs: &Programs,
        places: Places<'_>,
        machine: &Specification,
    ) -> Result<Self, MachineError> {
        let overlay = overlay::create(&programs.qemu_img, places.directory, machine.disk);
        let overlay = async { overlay.await.map_err(MachineError::from) };
        let vsock = vsock::start(&programs.vsock, places.private);
        let qemu = roots::of_qemu(&programs.qemu, places.private, machine);
        let frequency =
            async { Ok(accelerator::counter_frequency(machine.accelerator.profile()).await) };
        let (overlay, vsock, frequency, qemu) = tokio::try_join!(overlay, vsock, frequency, qemu)?;
        Ok(Self { overlay, frequency, vsock, qemu })
    }
}

/// QEMU and the vsock program. Both die with it; [`Machine::destroy`] waits for that, too.
pub struct Machine {
    _control: Control,
    death: watch::Receiver<Option<Death>>,
    kill: oneshot::Sender<()>,
    // The watch over the children, and the followers of the logs, which end with them.
    tasks: JoinSet<()>,
}

impl Machine {
    /// Runs QEMU, checks over its control socket that the machine is the one that was meant, and
    /// lets the guest run.
    pub async fn start(
        parts: Parts,
        places: Places<'_>,
        machine: &Specification,
        base: &Path,
        tap: BorrowedFd<'_>,
    ) -> Result<Self, MachineError> {
        let Parts { overlay, frequency, vsock, qemu } = parts;
        let base = File::open(base).map_err(|error| MachineError::Image(base.to_owned(), error))?;
        let (control, control_of_qemu) = Socket::pair().map_err(MachineError::Socket)?;
        let (console, console_of_qemu) = Socket::pair().map_err(MachineError::Socket)?;
        let descriptors = Descriptors {
            control: control_of_qemu.as_raw_fd(),
            console: console_of_qemu.as_raw_fd(),
            vsock: vsock.connection.as_raw_fd(),
            tap: tap.as_raw_fd(),
            base: base.as_raw_fd(),
            overlay: overlay.as_raw_fd(),
        };
        let mut qemu = spawn(qemu, machine, frequency, descriptors)?;
        // QEMU has them now; with ours open, the other ends would never see it go.
        drop((control_of_qemu, console_of_qemu, vsock.connection, base, overlay));

        let mut vsock = vsock.child;
        let mut followers = JoinSet::new();
        let console_log = places.directory.join("console.log");
        follow(&mut followers, &console_log, Some(asynchronous(console)?))?;
        follow(&mut followers, &places.directory.join("vsock.log"), vsock.stderr.take())?;
        let complaints = places.directory.join("qemu.log");
        follow(&mut followers, &complaints, qemu.stderr.take())?;

        let (control, events) = match qmp::launch(asynchronous(control)?).await {
            Ok(halves) => halves,
            Err(error) => return Err(explain(error, &mut qemu, followers, &complaints).await),
        };
        let (publish, death) = watch::channel(None);
        let (kill, killed) = oneshot::channel();
        let processes = Processes { qemu, vsock, events, console: console_log };
        followers.spawn(processes.watch(publish, killed));
        Ok(Self { _control: control, death, kill, tasks: followers })
    }

    /// Waits until something ends the machine, and says what. Nothing is lost where the wait is
    /// given up and begun anew.
    pub async fn died(&mut self) -> Death {
        match self.death.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(death)) => death.clone(),
            // The watch ends without a cause only after the wish to end it.
            _ => std::future::pending().await,
        }
    }

    /// Kills what still runs and waits until it is gone and its logs are written.
    pub async fn destroy(mut self) {
        // A watch that is over needs no telling.
        let _ = self.kill.send(());
        while self.tasks.join_next().await.is_some() {}
    }
}

fn spawn(
    qemu: Housed,
    machine: &Specification,
    frequency: Option<u64>,
    descriptors: Descriptors,
) -> Result<Child, MachineError> {
    let Housed { program, root } = qemu;
    let not_run = |error| MachineError::NotRun(program.clone(), error);
    let Descriptors { control, console, vsock, tap, base, overlay } = descriptors;
    let mut command = Command::new(&program);
    command
        .args(arguments::arguments(machine, frequency, descriptors))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Confinement {
        root,
        directory: c"/".to_owned(),
        largest_file: machine.disk.0.max(machine.memory.0) + machine.disk.0 / 50 + METADATA,
        inherited: vec![control, console, vsock, tap, base, overlay],
        calls: calls::qemu,
    }
    .apply(&mut command)
    .map_err(not_run)?;
    command.spawn().map_err(not_run)
}

/// If QEMU has ended, what it said is the cause; else the socket's own error is.
async fn explain(
    error: QmpError,
    qemu: &mut Child,
    mut followers: JoinSet<()>,
    complaints: &Path,
) -> MachineError {
    if !matches!(error, QmpError::NoAnswer(_)) {
        return error.into();
    }
    let Ok(status) = qemu.wait().await else { return error.into() };
    // The console's and QEMU's own log end with QEMU; the third ends when its program is dropped.
    for _ in 0..2 {
        followers.join_next().await;
    }
    let complaint = console::tail(complaints, 1).pop().unwrap_or_default();
    MachineError::QemuNotStarted { status, complaint }
}

fn asynchronous(socket: Socket) -> Result<UnixStream, MachineError> {
    socket.set_nonblocking(true).map_err(MachineError::Socket)?;
    UnixStream::from_std(socket).map_err(MachineError::Socket)
}

fn follow(
    followers: &mut JoinSet<()>,
    path: &Path,
    source: Option<impl AsyncRead + Unpin + Send + 'static>,
) -> Result<(), MachineError> {
    let log =
        BoundedLog::create(path).map_err(|error| MachineError::Log(path.to_owned(), error))?;
    if let Some(source) = source {
        followers.spawn(log.follow(source));
    }
    Ok(())
}
