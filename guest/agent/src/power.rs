//! Power-off and reset of the machine.
//!
//! The host distinguishes them by QEMU's report: a power-off was requested, and a reset (at which
//! QEMU exits, too, because of `-no-reboot`) is a failure.

use std::error::Error;
use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};

use crate::error::{Context, StepError, chain};

/// The way in which the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndMode {
    /// A power-off: the host or the job requested it, or the host has disconnected.
    PowerOff,
    /// A reset: the agent failed.
    Reset,
}

/// Ends the machine at once.
///
/// Does not sync the disk: it is as short-lived as the machine, and the host already has what it
/// requested.
pub fn end(mode: EndMode) -> ! {
    let mode = match mode {
        EndMode::PowerOff => RebootMode::RB_POWER_OFF,
        EndMode::Reset => RebootMode::RB_AUTOBOOT,
    };
    // If the machine can't power off, a reset ends it as well.
    let _refused = reboot(mode);
    let _refused = reboot(RebootMode::RB_AUTOBOOT);
    // The kernel panics when PID 1 ends, which is the last resort.
    std::process::abort()
}

/// Writes an error as one line to the console, and waits until it has left the machine.
pub fn log_error(error: &dyn Error) {
    let mut console = std::io::stderr();
    let line = format!("mayfly-guest: {}\n", chain(error));
    // A failure can't be reported anywhere else.
    let _unreported = console.write_all(line.as_bytes());
    let _unreported = nix::sys::termios::tcdrain(&console);
}

/// Returns the signals that request a shutdown from init: those that `poweroff`, `halt`, and
/// `reboot` of busybox and sysvinit send, and the kernel's own.
fn shutdown_signals() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
        .into_iter()
        .collect()
}

/// Powers the machine off when a program in it requests that from PID 1. Must be called before any
/// other thread starts, so that all threads inherit the blocked signals.
pub fn handle_shutdown_signals() -> Result<(), StepError> {
    let signals = shutdown_signals();
    signals.thread_block().context(|| "block signals")?;
    let wait = move || {
        // Fails only for an invalid set.
        let _signal = signals.wait();
        end(EndMode::PowerOff)
    };
    // Runs as long as the machine, so it is never joined.
    std::thread::Builder::new()
        .name("power".into())
        .spawn(wait)
        .map(drop)
        .context(|| "start the thread that waits for signals")
}
