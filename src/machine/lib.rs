//! QEMU: its command line, its control socket, its disk, its confinement and its exit.
//!
//! A [`Machine`] is QEMU and the vsock program, both children of the calling process.
//! [`MachineParts`] exist before QEMU runs; [`Machine::start`] consumes them.
//!
//! Owns the processes and the overlay. Gets the tap, the paths and the sizes from the caller. Does
//! not depend on GitHub, policies or the channel's content.

pub mod accelerator;
pub mod arguments;
pub mod console;
mod overlay;
mod qmp;
mod roots;
mod stop;
mod vsock;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream as Socket;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use tokio::io::AsyncRead;
use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use arguments::{MachineSpec, QemuDescriptors};
use console::BoundedLog;
use mayfly_failure::{Code, Failure};
use mayfly_isolation::confinement::Confinement;
use mayfly_isolation::root::RootError;
use mayfly_isolation::syscalls;
use qmp::Control;
pub use qmp::QmpError;
use roots::RootedProgram;
use stop::Processes;
pub use stop::StopReason;
pub use vsock::listen;

/// Extra size, in bytes, of QEMU's largest file beyond the disk or memory: metadata of the overlay,
/// which is at most 2 % of it, and a reserve.
const METADATA: u64 = 64 << 20;

/// An error of creating or starting a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The overlay could not be created.
    #[error(transparent)]
    Overlay(#[from] overlay::OverlayError),
    /// A program did not start.
    #[error("can't run {0}")]
    Start(PathBuf, #[source] io::Error),
    /// The root of a program could not be created.
    #[error(transparent)]
    Root(Box<dyn std::error::Error + Send + Sync>),
    /// A socket to a child process could not be created.
    #[error("can't create a socket to a child process")]
    Socket(#[source] io::Error),
    /// A log could not be created.
    #[error("can't write {0}")]
    Log(PathBuf, #[source] io::Error),
    /// A file of the image can't be opened.
    #[error("can't open {0}")]
    Image(PathBuf, #[source] io::Error),
    /// The vsock program exited during its start.
    #[error("vhost-device-vsock exited at startup with {0}")]
    VsockNotStarted(ExitStatus),
    /// QEMU exited during its start.
    #[error("QEMU exited at startup with {status}{}", with_message(.message))]
    QemuNotStarted {
        /// Its exit status.
        status: ExitStatus,
        /// The last line of its error output.
        message: String,
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

/// Formats the last message of a program as a suffix. Empty if there was none.
fn with_message(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Failure for MachineError {
    fn code(&self) -> Code {
        match self {
            // It was killed; the program itself is fine.
            Self::QemuNotStarted { status, .. } if status.signal().is_some() => Code::MachineFailed,
            Self::Start(..) | Self::VsockNotStarted(_) | Self::QemuNotStarted { .. } => {
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
            Self::Start(..) | Self::VsockNotStarted(_) | Self::QemuNotStarted { .. } => {
                Some("run mayfly doctor: it checks the programs and their versions".to_owned())
            }
            _ => None,
        }
    }
}

/// The programs that run a machine.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct MachinePrograms {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// `vhost-device-vsock`.
    pub vsock: PathBuf,
}

/// The directories of a machine.
#[derive(Debug, Clone, Copy)]
pub struct MachinePaths<'a> {
    /// The directory of the logs, on the file system of the overlay.
    pub directory: &'a Path,
    /// The directory of the sockets, which no other process sees.
    pub private: &'a Path,
}

/// The parts of a machine that exist before QEMU runs.
pub struct MachineParts {
    overlay: File,
    frequency: Option<u64>,
    vsock: vsock::VsockDevice,
    qemu: RootedProgram,
}

impl MachineParts {
    /// Creates the overlay, starts the vsock program and measures the clock, concurrently.
    pub async fn create(
        programs: &MachinePrograms,
        paths: MachinePaths<'_>,
        machine: &MachineSpec,
    ) -> Result<Self, MachineError> {
        let overlay = overlay::create(&programs.qemu_img, paths.directory, machine.disk);
        let overlay = async { overlay.await.map_err(MachineError::from) };
        let vsock = vsock::start(&programs.vsock, paths.private);
        let qemu = roots::for_qemu(&programs.qemu, paths.private, machine);
        let frequency =
            async { Ok(accelerator::tsc_frequency(machine.accelerator.profile()).await) };
        let (overlay, vsock, frequency, qemu) = tokio::try_join!(overlay, vsock, frequency, qemu)?;
        Ok(Self { overlay, frequency, vsock, qemu })
    }
}

/// QEMU and the vsock program. Both are killed on drop; [`Machine::destroy`] also waits for them.
pub struct Machine {
    _control: Control,
    stop_reason: watch::Receiver<Option<StopReason>>,
    kill: oneshot::Sender<()>,
    // Watches the children and follows the logs; all end with the children.
    tasks: JoinSet<()>,
}

impl Machine {
    /// Runs QEMU, checks over its control socket that the machine matches its specification, and
    /// starts the guest.
    pub async fn start(
        parts: MachineParts,
        paths: MachinePaths<'_>,
        machine: &MachineSpec,
        base: &Path,
        tap: BorrowedFd<'_>,
    ) -> Result<Self, MachineError> {
        let MachineParts { overlay, frequency, vsock, qemu } = parts;
        let base = File::open(base).map_err(|error| MachineError::Image(base.to_owned(), error))?;
        let (control, control_of_qemu) = Socket::pair().map_err(MachineError::Socket)?;
        let (console, console_of_qemu) = Socket::pair().map_err(MachineError::Socket)?;
        let descriptors = QemuDescriptors {
            control: control_of_qemu.as_raw_fd(),
            console: console_of_qemu.as_raw_fd(),
            vsock: vsock.connection.as_raw_fd(),
            tap: tap.as_raw_fd(),
            base: base.as_raw_fd(),
            overlay: overlay.as_raw_fd(),
        };
        let mut qemu = spawn(qemu, machine, frequency, descriptors)?;
        // QEMU has these now. Kept open here, the other ends would never see QEMU exit.
        drop((control_of_qemu, console_of_qemu, vsock.connection, base, overlay));

        let mut vsock = vsock.child;
        let mut followers = JoinSet::new();
        let console_log = paths.directory.join("console.log");
        follow(&mut followers, &console_log, Some(asynchronous(console)?))?;
        follow(&mut followers, &paths.directory.join("vsock.log"), vsock.stderr.take())?;
        let qemu_log = paths.directory.join("qemu.log");
        follow(&mut followers, &qemu_log, qemu.stderr.take())?;

        let (control, events) = match qmp::launch(asynchronous(control)?).await {
            Ok(halves) => halves,
            Err(error) => {
                return Err(explain_control_error(error, &mut qemu, followers, &qemu_log).await);
            }
        };
        let (publish, stop_reason) = watch::channel(None);
        let (kill, killed) = oneshot::channel();
        let processes = Processes { qemu, vsock, events, console: console_log };
        followers.spawn(processes.watch(publish, killed));
        Ok(Self { _control: control, stop_reason, kill, tasks: followers })
    }

    /// Waits until the machine stops and returns the reason. Cancel-safe.
    pub async fn stopped(&mut self) -> StopReason {
        match self.stop_reason.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(stop_reason)) => stop_reason.clone(),
            // Without a reason, the watch only ends after a kill request.
            _ => std::future::pending().await,
        }
    }

    /// Kills the remaining processes and waits until they have exited and their logs are written.
    pub async fn destroy(mut self) {
        // The send fails if the watch has ended already.
        let _ = self.kill.send(());
        while self.tasks.join_next().await.is_some() {}
    }
}

fn spawn(
    qemu: RootedProgram,
    machine: &MachineSpec,
    frequency: Option<u64>,
    descriptors: QemuDescriptors,
) -> Result<Child, MachineError> {
    let QemuDescriptors { control, console, vsock, tap, base, overlay } = descriptors;
    qemu.spawn(arguments::arguments(machine, frequency, descriptors), |root| Confinement {
        root,
        directory: c"/".to_owned(),
        largest_file: machine.disk.0.max(machine.memory.0) + machine.disk.0 / 50 + METADATA,
        inherited: vec![control, console, vsock, tap, base, overlay],
        syscalls: syscalls::qemu,
    })
}

/// If QEMU has exited, its last message is the cause; otherwise the control socket's error is.
async fn explain_control_error(
    error: QmpError,
    qemu: &mut Child,
    mut followers: JoinSet<()>,
    qemu_log: &Path,
) -> MachineError {
    if !matches!(error, QmpError::NoResponse(_)) {
        return error.into();
    }
    let Ok(status) = qemu.wait().await else { return error.into() };
    // The logs of console and QEMU end with QEMU; the third ends when its program is dropped.
    for _ in 0..2 {
        followers.join_next().await;
    }
    let message = console::tail(qemu_log, 1).pop().unwrap_or_default();
    MachineError::QemuNotStarted { status, message }
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
