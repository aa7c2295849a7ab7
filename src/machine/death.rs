//! How machines end: what QEMU said, how the processes ended, and which of it is the cause.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Child;
use tokio::sync::{oneshot, watch};

use super::console;
use super::qmp::{Events, MachineEvent, ShutdownReason};

/// How long QEMU may take to end once it has said that it will.
const LAST_BREATH: Duration = Duration::from_secs(5);

/// Why a machine runs no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Death {
    /// The guest powered itself off.
    PoweredOff,
    /// The guest rebooted itself, which ends the machine.
    Rebooted,
    /// The guest's kernel panicked; the line of the console that says why, which is the guest's
    /// word.
    KernelPanic(String),
    /// The host's disk had no more room for what the guest wrote.
    HostDiskFull,
    /// The host could not read or write the disk, as QEMU says.
    DiskError(String),
    /// Something on the host paused or reset it, which Mayfly never does.
    Disturbed,
    /// QEMU ended by itself or was ended by the host.
    QemuEnded(String),
    /// The vsock program ended, and with it every way to reach the guest.
    VsockEnded(String),
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => formatter.write_str("the guest powered off"),
            Self::Rebooted => formatter.write_str("the guest rebooted"),
            Self::KernelPanic(line) => write!(formatter, "the guest's kernel panicked: {line}"),
            Self::HostDiskFull => {
                formatter.write_str("the host's disk is full: the guest's write had no room")
            }
            Self::DiskError(reason) => write!(formatter, "the guest's disk failed: {reason}"),
            Self::Disturbed => formatter.write_str("the machine was paused or reset on the host"),
            Self::QemuEnded(status) => write!(formatter, "QEMU ended with {status}"),
            Self::VsockEnded(status) => {
                write!(formatter, "vhost-device-vsock ended with {status}")
            }
        }
    }
}

/// The two children of a machine and what is heard of them.
pub(super) struct Processes {
    pub(super) qemu: Child,
    pub(super) vsock: Child,
    pub(super) events: Events,
    pub(super) console: PathBuf,
}

impl Processes {
    /// Waits for the first thing that ends the machine, or for the wish to end it, publishes what
    /// it was, and sees to it that nothing runs any more.
    pub(super) async fn watch(
        mut self,
        death: watch::Sender<Option<Death>>,
        kill: oneshot::Receiver<()>,
    ) {
        tokio::select! {
            biased;
            _ = kill => {}
            cause = self.cause_of_death() => {
                death.send_replace(Some(cause));
            }
        }
        // A child that has already ended and was waited for can't be killed; nor need it be.
        let _ = self.qemu.start_kill();
        let _ = self.vsock.start_kill();
        let _ = tokio::join!(self.qemu.wait(), self.vsock.wait());
    }

    async fn cause_of_death(&mut self) -> Death {
        tokio::select! {
            biased;
            event = self.events.next() => match event {
                Some(event) => after_event(event, &mut self.qemu, &self.console).await,
                None => Death::QemuEnded(ended(&mut self.qemu).await),
            },
            status = self.qemu.wait() => {
                // Its last words may still be in the socket; they say more than its status.
                match self.events.next().await {
                    Some(event) => after_event(event, &mut self.qemu, &self.console).await,
                    None => Death::QemuEnded(describe(status)),
                }
            }
            status = self.vsock.wait() => Death::VsockEnded(describe(status)),
        }
    }
}

async fn after_event(event: MachineEvent, qemu: &mut Child, console: &Path) -> Death {
    match event {
        MachineEvent::Shutdown(reason) => {
            let status = ended(qemu).await;
            judge(reason, &console::tail(console, 60), status)
        }
        MachineEvent::Panicked => {
            judge(ShutdownReason::Reboot, &console::tail(console, 60), String::new())
        }
        MachineEvent::DiskError { full: true, .. } => Death::HostDiskFull,
        MachineEvent::DiskError { full: false, reason } => Death::DiskError(reason),
        MachineEvent::Reset | MachineEvent::Stopped => Death::Disturbed,
    }
}

/// A panic reaches QEMU as a reboot; only the console tells them apart.
fn judge(reason: ShutdownReason, console: &[String], status: String) -> Death {
    match reason {
        ShutdownReason::PowerOff => Death::PoweredOff,
        ShutdownReason::Host => Death::QemuEnded(status),
        ShutdownReason::Reboot => {
            let panic = console.iter().rev().find_map(|line| {
                line.split_once("Kernel panic - not syncing: ").map(|(_, why)| why.to_owned())
            });
            panic.map_or(Death::Rebooted, Death::KernelPanic)
        }
    }
}

async fn ended(child: &mut Child) -> String {
    match tokio::time::timeout(LAST_BREATH, child.wait()).await {
        Ok(status) => describe(status),
        Err(_) => "no status: it hangs".to_owned(),
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
        let death = judge(ShutdownReason::Reboot, &console, String::new());
        assert_eq!(death, Death::KernelPanic("sysrq triggered crash".to_owned()));
    }

    #[test]
    fn a_power_off_is_one_whatever_the_console_says() {
        let console = lines("Kernel panic - not syncing: made up by the job");
        assert_eq!(judge(ShutdownReason::PowerOff, &console, String::new()), Death::PoweredOff);
        assert_eq!(judge(ShutdownReason::Reboot, &[], String::new()), Death::Rebooted);
    }

    #[test]
    fn an_end_that_the_host_made_is_told_by_its_status() {
        let death = judge(ShutdownReason::Host, &[], "signal: 15 (SIGTERM)".to_owned());
        assert_eq!(death.to_string(), "QEMU ended with signal: 15 (SIGTERM)");
    }
}
