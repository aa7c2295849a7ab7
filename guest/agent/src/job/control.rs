//! What the host may do to a running job: signals and window sizes.
//!
//! Both may come before there is a process; they wait for it then.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use mayfly_protocol::message::TerminalSize;
use nix::unistd::{Pid, tcgetpgrp};

use super::spawn::{Ends, Process};
use super::terminal;

/// Signals that are kept for a job that is not there yet.
const MOST_WAITING: usize = 64;

/// The handle on a job's process.
pub(crate) struct Control {
    state: Mutex<State>,
}

enum State {
    Waiting { signals: Vec<i32>, size: Option<TerminalSize> },
    Running { leader: Pid, terminal: Option<File> },
    Over,
}

impl Control {
    /// For a job whose window, where it has one, has this size.
    pub(crate) fn new(size: Option<TerminalSize>) -> Self {
        Self { state: Mutex::new(State::Waiting { signals: Vec::new(), size }) }
    }

    pub(crate) fn signal(&self, number: i32) {
        match &mut *self.lock() {
            State::Waiting { signals, .. } if signals.len() < MOST_WAITING => signals.push(number),
            State::Running { leader, terminal } => send(number, *leader, terminal.as_ref()),
            State::Waiting { .. } | State::Over => {}
        }
    }

    pub(crate) fn resize(&self, to: TerminalSize) {
        match &mut *self.lock() {
            State::Waiting { size, .. } => *size = Some(to),
            State::Running { terminal: Some(terminal), .. } => {
                // It fails for a terminal that is being closed.
                let _closed = terminal::resize(terminal, to);
            }
            State::Running { .. } | State::Over => {}
        }
    }

    /// The process is there: what has waited reaches it.
    pub(crate) fn attach(&self, process: &Process) {
        let terminal = match &process.ends {
            Ends::Terminal(master) => master.try_clone().ok(),
            Ends::Pipes { .. } => None,
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

    /// The process has ended and is about to be reaped: its number may be another's then.
    pub(crate) fn detach(&self) {
        *self.lock() = State::Over;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends a signal to the terminal's foreground group, or else to the leader's own. One that kills is
/// for the job as a whole, which ends with its leader.
fn send(number: i32, leader: Pid, terminal: Option<&File>) {
    let terminal = terminal.filter(|_| number != libc::SIGKILL);
    let foreground = terminal.and_then(|terminal| tcgetpgrp(terminal.as_fd()).ok());
    let group = foreground.filter(|group| group.as_raw() > 1).unwrap_or(leader);
    // SAFETY: sends a signal and touches no memory. It fails for a number that is no signal and
    // for a group that has just ended, and the host means neither.
    unsafe { libc::kill(-group.as_raw(), number) };
}
