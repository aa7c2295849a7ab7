//! QEMU's control socket (QMP, the QEMU Machine Protocol), through the `qapi` crate.
//!
//! [`launch`] has the machine checked and started; from then on [`Events`] says what happens to it.
//! QEMU is our own child, but what it reports of its guest is the guest's word.

use std::io;

use futures_util::StreamExt;
use qapi::futures::{QapiEvents, QapiService, QmpStreamTokio};
use qapi::{Enum as _, qmp};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// What goes wrong on the control socket.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The greeting or the negotiation failed: QEMU ended, or is none.
    #[error("QEMU did not answer on its control socket")]
    NoAnswer(#[source] io::Error),
    /// A command was refused or its answer was lost.
    #[error("QEMU refused {0}")]
    Refused(&'static str, #[source] qapi::ExecuteError),
    /// The machine is not what its command line said.
    #[error("QEMU made another machine than it was told: {0}")]
    Unexpected(String),
}

/// The commanding half. Nothing more is commanded, but QEMU takes a half-closed socket for a
/// closed one.
pub(super) struct Control {
    _service: QapiService<QmpStreamTokio<OwnedWriteHalf>>,
}

/// Gives events, in order.
pub(super) struct Events {
    stream: QapiEvents<QmpStreamTokio<OwnedReadHalf>>,
}

/// What happened to a machine, of what matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MachineEvent {
    /// It is over: QEMU ends.
    Shutdown(ShutdownReason),
    /// The guest's kernel reported its panic to a device.
    Panicked,
    /// It was reset and goes on. Never happens under `-no-reboot`.
    Reset,
    /// It is paused; nothing here pauses a machine that runs.
    Stopped,
    /// A disk operation failed on the host.
    DiskError {
        /// The host's file system was full.
        full: bool,
        /// What QEMU says.
        reason: String,
    },
}

/// Who ended a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShutdownReason {
    /// The guest powered off.
    PowerOff,
    /// The guest rebooted, which a kernel panic does, too.
    Reboot,
    /// The host: a signal to QEMU, a command, an error.
    Host,
}

/// Speaks first words with QEMU, checks that the machine waits for its first instruction and has
/// the one disk it should, and lets the guest run.
///
/// Answers reach whoever reads events, so commands are given only here, before anyone else does.
pub(super) async fn launch(socket: UnixStream) -> Result<(Control, Events), QmpError> {
    let refused = |what| move |error| QmpError::Refused(what, error);
    let (read, write) = socket.into_split();
    let negotiation = QmpStreamTokio::open_split(read, write).await.map_err(QmpError::NoAnswer)?;
    let mut stream = negotiation.negotiate().await.map_err(QmpError::NoAnswer)?;
    let status = stream.execute(qmp::query_status {}).await;
    let status = status.map_err(refused("query-status"))?;
    if status.status != qmp::RunState::prelaunch {
        return Err(QmpError::Unexpected(format!("its state is {}", status.status.name())));
    }
    let disks = stream.execute(qmp::query_block {}).await.map_err(refused("query-block"))?;
    let nodes: Vec<_> = disks.iter().filter_map(|disk| disk.inserted.as_ref()).collect();
    match nodes.as_slice() {
        [root] if root.drv == "qcow2" && root.backing_file_depth == 1 && !root.ro => {}
        _ => return Err(QmpError::Unexpected(format!("it has {} disks", nodes.len()))),
    }
    stream.execute(qmp::cont {}).await.map_err(refused("cont"))?;
    let (service, stream) = stream.into_parts();
    Ok((Control { _service: service }, Events { stream }))
}

impl Events {
    /// The next event that matters; `None` once QEMU has closed the socket.
    pub(super) async fn next(&mut self) -> Option<MachineEvent> {
        loop {
            // What can't be understood is of a newer QEMU and was not asked for.
            let Ok(event) = self.stream.next().await? else { continue };
            if let Some(event) = translate(event) {
                return Some(event);
            }
        }
    }
}

fn translate(event: qmp::Event) -> Option<MachineEvent> {
    use qmp::ShutdownCause;
    match event {
        qmp::Event::SHUTDOWN { data, .. } => Some(MachineEvent::Shutdown(match data.reason {
            ShutdownCause::guest_shutdown => ShutdownReason::PowerOff,
            ShutdownCause::guest_reset => ShutdownReason::Reboot,
            ShutdownCause::guest_panic => return Some(MachineEvent::Panicked),
            _ => ShutdownReason::Host,
        })),
        qmp::Event::GUEST_PANICKED { .. } => Some(MachineEvent::Panicked),
        qmp::Event::RESET { .. } => Some(MachineEvent::Reset),
        qmp::Event::STOP { .. } => Some(MachineEvent::Stopped),
        qmp::Event::BLOCK_IO_ERROR { data, .. } => Some(MachineEvent::DiskError {
            full: data.nospace.unwrap_or(false),
            reason: data.reason,
        }),
        _ => None,
    }
}
