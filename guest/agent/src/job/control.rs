//! Controls a running job: signals and window sizes from the host.
//!
//! Both may arrive before the process exists, and are applied once it does.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mayfly_protocol::message::TerminalSize;
use nix::unistd::{Pid, tcgetpgrp};

use super::spawn::{Process, StreamEnds};
use super::terminal;

/// The most signals that are queued for a job that has not started.
const MAX_QUEUED_SIGNALS: usize = 64;

/// A handle to a job's process.
pub(crate) struct Control {
    state: Mutex<State>,
}

enum State {
    Waiting { signals: Vec<i32>, size: Option<TerminalSize> },
    Running { leader: Pid, terminal: Option<File> },
    Over,
}

impl Control {
    /// Returns a handle to a job that has not started, with the size of its terminal, if it has
    /// one.
    pub(crate) fn new(size: Option<TerminalSize>) -> Self {
        Self { state: Mutex::new(State::Waiting { signals: Vec::new(), size }) }
    }

    pub(crate) fn signal(&self, number: i32) {
        match &mut *self.lock() {
            State::Waiting { signals, .. } if signals.len() < MAX_QUEUED_SIGNALS => {
                signals.push(number);
            }
            State::Running { leader, terminal } => send(number, *leader, terminal.as_ref()),
            State::Waiting { .. } | State::Over => {}
        }
    }

    pub(crate) fn resize(&self, to: TerminalSize) {
        match &mut *self.lock() {
            State::Waiting { size, .. } => *size = Some(to),
            State::Running { terminal: Some(terminal), .. } => {
                // Fails for a terminal that is being closed.
                let _closed = terminal::resize(terminal, to);
            }
            State::Running { .. } | State::Over => {}
        }
    }

    /// Attaches the started process, and applies the queued signals and window size.
    pub(crate) fn attach(&self, process: &Process) {
        let terminal = match &process.ends {
            StreamEnds::Terminal(master) => master.try_clone().ok(),
            StreamEnds::Pipes { .. } => None,
        };
        let mut state = self.lock();
        if let State::Waiting { signals, size } = &*state {
            if let (Some(master), Some(size)) = (&terminal, size) {
                let _closed = terminal::resize(master, *size);
            }
            for number in signals {
                send(*number, process.pid, terminal.as_ref());
            }
        }
        *state = State::Running { leader: process.pid, terminal };
    }

    /// Detaches the process before it is reaped, because its ID may be reused after that.
    pub(crate) fn detach(&self) {
        *self.lock() = State::Over;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a signal to the terminal's foreground group, or else to the leader's group. SIGKILL always
/// goes to the leader's group, because the job ends with its leader.
fn send(number: i32, leader: Pid, terminal: Option<&File>) {
    let terminal = terminal.filter(|_| number != libc::SIGKILL);
    let foreground = terminal.and_then(|terminal| tcgetpgrp(terminal.as_fd()).ok());
    let group = foreground.filter(|group| group.as_raw() > 1).unwrap_or(leader);
    // SAFETY: sends a signal and touches no memory. It fails for an invalid signal number or a
    // group that has just ended; both are harmless.
    unsafe { libc::kill(-group.as_raw(), number) };
}
