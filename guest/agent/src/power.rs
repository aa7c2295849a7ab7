//! The ends of the machine.
//!
//! The host tells them apart by what QEMU reports: a power-off is an end that was asked for, a
//! reset (which `-no-reboot` makes an end, too) is one that went wrong.

use std::error::Error;
use std::io::Write;

use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal};

use crate::error::{During, StepError, chain};

/// How the machine ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// In order: the host or the job asked for it, or the host is gone.
    PowerOff,
    /// By a reset: the agent could not do its work.
    Reset,
}

/// Ends the machine at once.
///
/// Nothing is written back first: the disk is as short-lived as the machine, and what the host
/// wanted from it was sent before.
pub fn end(ending: Ending) -> ! {
    let mode = match ending {
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Reset => RebootMode::RB_AUTOBOOT,
    };
    // Where the machine can't power off, a reset ends it as well.
    let _refused = reboot(mode);
    let _refused = reboot(RebootMode::RB_AUTOBOOT);
    // The kernel panics when PID 1 ends, which is the last way out.
    std::process::abort()
}

/// Writes one line on the console and waits until it has left the machine.
pub fn say(error: &dyn Error) {
    let mut console = std::io::stderr();
    let line = format!("mayfly-guest: {}\n", chain(error));
    // There is no one else to tell.
    let _unheard = console.write_all(line.as_bytes());
    let _unheard = nix::sys::termios::tcdrain(&console);
}

/// The signals by which programs ask an init for the machine's end: those of `poweroff`, `halt`
/// and `reboot` as busybox and sysvinit send them, and the kernel's own.
fn requests() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGPWR]
        .into_iter()
        .collect()
}

/// Powers off when a program inside asks PID 1 to. To be called before any other thread is made,
/// so that all of them leave these signals to this one.
pub fn obey_requests() -> Result<(), StepError> {
    let requests = requests();
    requests.thread_block().during(|| "block signals")?;
    let wait = move || {
        // It fails for an invalid set only.
        let _signal = requests.wait();
        end(Ending::PowerOff)
    };
    // This thread lasts as long as the machine, so nobody joins it.
    std::thread::Builder::new()
        .name("power".into())
        .spawn(wait)
        .map(drop)
        .during(|| "start the thread that waits for signals")
}
