//! QEMU's control socket (QMP, the QEMU Machine Protocol), through the `qapi` crate.
//!
//! [`launch`] checks and starts the machine; afterwards, [`Events`] reports what happens to it.
//! QEMU is a trusted child, but its reports about the guest are the guest's claims.

use std::io;

use futures_util::StreamExt;
use qapi::futures::{QapiEvents, QapiService, QmpStreamTokio};
use qapi::{Enum as _, qmp};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// An error on the control socket.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The greeting or the negotiation failed: QEMU exited, or the program is not QEMU.
    #[error("no response from QEMU on its control socket")]
    NoResponse(#[source] io::Error),
    /// A command was refused or its response was lost.
    #[error("QEMU refused the command {0}")]
    Refused(&'static str, #[source] qapi::ExecuteError),
    /// The machine does not match its command line.
    #[error("QEMU created a different machine than specified: {0}")]
    Unexpected(String),
}

/// The write half of the socket. Kept open although unused, because QEMU treats a half-closed
/// socket as closed.
pub(super) struct Control {
    _service: QapiService<QmpStreamTokio<OwnedWriteHalf>>,
}

/// The event stream of the socket.
pub(super) struct Events {
    stream: QapiEvents<QmpStreamTokio<OwnedReadHalf>>,
}

/// A relevant event of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MachineEvent {
    /// The machine shut down and QEMU exits.
    Shutdown(ShutdownReason),
    /// The guest's kernel reported a panic to a device.
    Panicked,
    /// The machine was reset and continues. Never happens with `-no-reboot`.
    Reset,
    /// The machine was paused, which Mayfly never does while it runs.
    Stopped,
    /// A disk operation failed on the host.
    DiskError {
        /// The host's file system was full.
        full: bool,
        /// The reason that QEMU reports.
        reason: String,
    },
}

/// The initiator of a shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ShutdownReason {
    /// The guest powered off.
    PowerOff,
    /// The guest rebooted; a kernel panic also reboots.
    Reboot,
    /// The host: a signal to QEMU, a command or an error.
    Host,
}

/// Negotiates with QEMU, checks that the machine waits for its first instruction and has exactly
/// the expected disk, and starts the guest.
///
/// Responses arrive with the events, so commands are only sent here, before anything reads events.
pub(super) async fn launch(socket: UnixStream) -> Result<(Control, Events), QmpError> {
    let refused = |what| move |error| QmpError::Refused(what, error);
    let (read, write) = socket.into_split();
    let negotiation =
        QmpStreamTokio::open_split(read, write).await.map_err(QmpError::NoResponse)?;
    let mut stream = negotiation.negotiate().await.map_err(QmpError::NoResponse)?;
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
    /// Returns the next relevant event, or `None` once QEMU has closed the socket.
    pub(super) async fn next(&mut self) -> Option<MachineEvent> {
        loop {
            // Unknown events come from a newer QEMU and are skipped.
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
