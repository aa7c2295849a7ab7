//! The end of a machine: determines why it stopped, from QEMU's events and the exit statuses.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::sync::{oneshot, watch};

use super::console;
use super::qmp::{Events, MachineEvent, ShutdownReason};

/// How long QEMU may take to exit after it announced its shutdown.
const EXIT_GRACE: Duration = Duration::from_secs(5);

/// The reason why a machine stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest rebooted itself, which ends the machine.
    Rebooted,
    /// The guest's kernel panicked, with the reason from the console, which is the guest's claim.
    KernelPanic(String),
    /// The host's disk had no space for what the guest wrote.
    HostDiskFull,
    /// The host could not read or write the disk, with the reason from QEMU.
    DiskError(String),
    /// Another process on the host paused or reset the machine, which Mayfly never does.
    Disturbed,
    /// QEMU exited by itself or was killed.
    #[serde(rename = "qemu_ended")]
    QemuExited(String),
    /// The vsock program exited, so the guest can't be reached any more.
    #[serde(rename = "vsock_ended")]
    VsockExited(String),
}

impl fmt::Display for StopReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => formatter.write_str("the guest powered off"),
            Self::Rebooted => formatter.write_str("the guest rebooted"),
            Self::KernelPanic(line) => write!(formatter, "the guest's kernel panicked: {line}"),
            Self::HostDiskFull => {
                formatter.write_str("the host's disk is full: the guest could not write")
            }
            Self::DiskError(reason) => write!(formatter, "the guest's disk failed: {reason}"),
            Self::Disturbed => formatter.write_str("the machine was paused or reset on the host"),
            Self::QemuExited(status) => write!(formatter, "QEMU exited with {status}"),
            Self::VsockExited(status) => {
                write!(formatter, "vhost-device-vsock exited with {status}")
            }
        }
    }
}

/// The two child processes of a machine, with QEMU's events and the console's log.
pub(super) struct Processes {
    pub(super) qemu: Child,
    pub(super) vsock: Child,
    pub(super) events: Events,
    pub(super) console: PathBuf,
}

impl Processes {
    /// Waits until the machine stops or is to be killed, publishes the reason, and ensures that no
    /// process remains.
    pub(super) async fn watch(
        mut self,
        reason: watch::Sender<Option<StopReason>>,
        kill: oneshot::Receiver<()>,
    ) {
        tokio::select! {
            biased;
            _ = kill => {}
            stop_reason = self.wait_for_stop() => {
                reason.send_replace(Some(stop_reason));
            }
        }
        // Killing fails only for a child that has exited already.
        let _ = self.qemu.start_kill();
        let _ = self.vsock.start_kill();
        let _ = tokio::join!(self.qemu.wait(), self.vsock.wait());
    }

    async fn wait_for_stop(&mut self) -> StopReason {
        tokio::select! {
            biased;
            event = self.events.next() => match event {
                Some(event) => after_event(event, &mut self.qemu, &self.console).await,
                None => StopReason::QemuExited(wait_status(&mut self.qemu).await),
            },
            status = self.qemu.wait() => {
                // Its last event may still be in the socket and is more precise than its status.
                match self.events.next().await {
                    Some(event) => after_event(event, &mut self.qemu, &self.console).await,
                    None => StopReason::QemuExited(describe(status)),
                }
            }
            status = self.vsock.wait() => StopReason::VsockExited(describe(status)),
        }
    }
}

async fn after_event(event: MachineEvent, qemu: &mut Child, console: &Path) -> StopReason {
    match event {
        MachineEvent::Shutdown(reason) => {
            let status = wait_status(qemu).await;
            classify_shutdown(reason, &console::tail(console, 60), status)
        }
        MachineEvent::Panicked => {
            classify_shutdown(ShutdownReason::Reboot, &console::tail(console, 60), String::new())
        }
        MachineEvent::DiskError { full: true, .. } => StopReason::HostDiskFull,
        MachineEvent::DiskError { full: false, reason } => StopReason::DiskError(reason),
        MachineEvent::Reset | MachineEvent::Stopped => StopReason::Disturbed,
    }
}

/// Classifies a shutdown. QEMU reports a panic as a reboot; only the console shows the difference.
fn classify_shutdown(reason: ShutdownReason, console: &[String], status: String) -> StopReason {
    match reason {
        ShutdownReason::PowerOff => StopReason::PoweredOff,
        ShutdownReason::Host => StopReason::QemuExited(status),
        ShutdownReason::Reboot => {
            let panic = console.iter().rev().find_map(|line| {
                line.split_once("Kernel panic - not syncing: ").map(|(_, why)| why.to_owned())
            });
            panic.map_or(StopReason::Rebooted, StopReason::KernelPanic)
        }
    }
}

async fn wait_status(child: &mut Child) -> String {
    match tokio::time::timeout(EXIT_GRACE, child.wait()).await {
        Ok(status) => describe(status),
        Err(_) => "an unknown status (its process did not end in time)".to_owned(),
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    status.map_or_else(|error| error.to_string(), |status| status.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_reboot_with_a_panic_on_the_console_is_a_panic() {
        let console =
            lines("[ 3.1] Kernel panic - not syncing: sysrq triggered crash\n[ 3.2] Call Trace:");
        let reason = classify_shutdown(ShutdownReason::Reboot, &console, String::new());
        assert_eq!(reason, StopReason::KernelPanic("sysrq triggered crash".to_owned()));
    }

    #[test]
    fn a_power_off_is_one_regardless_of_the_console() {
        let console = lines("Kernel panic - not syncing: made up by the job");
        assert_eq!(
            classify_shutdown(ShutdownReason::PowerOff, &console, String::new()),
            StopReason::PoweredOff
        );
        assert_eq!(
            classify_shutdown(ShutdownReason::Reboot, &[], String::new()),
            StopReason::Rebooted
        );
    }

    #[test]
    fn a_shutdown_by_the_host_is_reported_with_its_status() {
        let reason =
            classify_shutdown(ShutdownReason::Host, &[], "signal: 15 (SIGTERM)".to_owned());
        assert_eq!(reason.to_string(), "QEMU exited with signal: 15 (SIGTERM)");
    }
}
