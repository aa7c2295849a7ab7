//! What the service manager is told (`sd_notify(3)`): that the daemon serves, reads its settings or
//! ends, what it is at, and that its loop still answers. Without a manager nobody is told anything.
//!
//! Only the loop tells: where it hangs, the manager hears nothing, and starts another daemon. It never
//! waits for the manager: a socket holds few datagrams (`net.unix.max_dgram_qlen`, often 10), and a
//! manager that is itself busy must not stop jobs. What does not fit is said at the next pulse.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

use super::error::DaemonError;
use super::running::Daemon;
use crate::api::types::{PoolView, Status};

/// How often the manager hears of the daemon, at the least.
const PULSE: Duration = Duration::from_secs(5);
/// A daemon that drains asks for this much more time with each pulse, in microseconds.
const LONGER: u32 = 60_000_000;
/// How many pools are told of; the line is for a person.
const POOLS: usize = 8;
/// The most datagrams that are kept for a manager that is busy: the oldest go first.
const UNSAID: usize = 16;

/// The service manager, if there is one.
pub(super) struct Manager {
    /// What it last heard that the daemon is at.
    status: String,
    /// Whether it knows that the daemon ends.
    ending: bool,
    /// A socket that does not wait, and the manager's address; none without a manager.
    to: Option<(UnixDatagram, SocketAddr)>,
    /// What it is yet to be told, in order.
    unsaid: VecDeque<String>,
    /// Whether it could not be told something.
    deaf: bool,
}

impl Manager {
    pub(super) fn new() -> Self {
        let to = std::env::var_os("NOTIFY_SOCKET").map(|address| socket_to(&address)).transpose();
        Self::told_at(to.unwrap_or_else(|error| {
            tracing::warn!("the service manager can't be told anything: {error}");
            None
        }))
    }

    fn told_at(to: Option<(UnixDatagram, SocketAddr)>) -> Self {
        Self { status: String::new(), ending: false, to, unsaid: VecDeque::new(), deaf: false }
    }

    /// When [`Manager::pulse`] is to be called: several times within what the manager waits for.
    pub(super) fn pulses() -> tokio::time::Interval {
        let mut pulses = tokio::time::interval(every(sd_notify::watchdog_enabled()));
        pulses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pulses
    }

    /// The daemon serves.
    pub(super) fn serving(&mut self, daemon: &Daemon) {
        self.status = status(&daemon.look().status(), &daemon.look().pools());
        let text = self.status.clone();
        self.tell(&[NotifyState::Ready, NotifyState::Status(&text)]);
    }

    /// The loop answers.
    pub(super) fn pulse(&mut self, daemon: &Daemon) {
        self.say();
        if !self.unsaid.is_empty() {
            // Signs of life don't queue up, least of all before what counts.
            return;
        }
        let text = status(&daemon.look().status(), &daemon.look().pools());
        let mut news = vec![NotifyState::Watchdog];
        if text != self.status {
            news.push(NotifyState::Status(&text));
        }
        if self.ending {
            news.push(NotifyState::ExtendTimeoutUsec(LONGER));
        }
        self.tell(&news);
        self.status = text;
    }

    /// Settings are read: tells before and after.
    pub(super) fn while_reading<T>(
        &mut self,
        daemon: &mut Daemon,
        read: impl FnOnce(&mut Daemon) -> Result<T, DaemonError>,
    ) -> Result<T, DaemonError> {
        // A reload that does not say when it began is none; there is always a clock.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.tell(&[NotifyState::Reloading, now]);
        }
        let result = read(daemon)?;
        self.serving(daemon);
        // What ends goes on ending.
        self.ending = false;
        Ok(result)
    }

    /// The daemon approaches its end; told once.
    pub(super) fn ending(&mut self) {
        if !std::mem::replace(&mut self.ending, true) {
            self.tell(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(LONGER)]);
        }
    }

    fn tell(&mut self, news: &[NotifyState<'_>]) {
        let text = news.iter().fold(String::new(), |text, state| text + &format!("{state}\n"));
        self.unsaid.push_back(text);
        if self.unsaid.len() > UNSAID {
            self.unsaid.pop_front();
        }
        self.say();
    }

    /// Says what is yet to be said, as far as the manager takes it now.
    fn say(&mut self) {
        let Some((socket, address)) = &self.to else { return self.unsaid.clear() };
        while let Some(text) = self.unsaid.front() {
            // To the address each time: a manager that was started again is another socket there.
            match socket.send_to_addr(text.as_bytes(), address) {
                Ok(_) => self.deaf = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if !std::mem::replace(&mut self.deaf, true) {
                        tracing::warn!("the service manager can't be told anything: {error}");
                    }
                }
            }
            self.unsaid.pop_front();
        }
    }
}

/// A socket for the address in `NOTIFY_SOCKET`: a path, or an abstract name after an `@`.
fn socket_to(address: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Between two pulses, where the manager takes the daemon for dead after a silence of `watchdog`.
fn every(watchdog: Option<Duration>) -> Duration {
    let third = watchdog.map_or(PULSE, |watchdog| watchdog / 3);
    third.clamp(Duration::from_millis(1), PULSE)
}

/// The daemon on one line.
fn status(status: &Status, pools: &[PoolView]) -> String {
    let draining = if status.draining { "draining: " } else { "" };
    let mut text = format!(
        "{draining}{} jobs run, {} wait, {} microVMs",
        status.running, status.waiting, status.microvms
    );
    for pool in pools.iter().take(POOLS) {
        let busy = pool.registered + pool.busy;
        // Writing to a text does not fail.
        let _ = write!(
            text,
            "; {}: {} booting, {} warm, {busy} busy of {}",
            pool.name, pool.booting, pool.warm, pool.max
        );
    }
    if pools.len() > POOLS {
        text.push_str("; …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulses_come_well_within_what_the_manager_waits() {
        let seconds = Duration::from_secs;
        assert_eq!(every(None), PULSE);
        assert_eq!(every(Some(seconds(60))), PULSE);
        assert_eq!(every(Some(seconds(6))), seconds(2));
        assert_eq!(every(Some(Duration::ZERO)), Duration::from_millis(1));
    }

    #[test]
    fn a_manager_that_is_busy_keeps_nobody_waiting_and_hears_what_counts_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let mut told = Manager::told_at(Some(socket_to(path.as_os_str()).unwrap()));
        let pulse = [NotifyState::Watchdog];
        while told.unsaid.is_empty() {
            told.tell(&pulse);
        }
        for _ in 0..2 * UNSAID {
            told.tell(&[NotifyState::Reloading]);
            told.tell(&[NotifyState::Ready]);
        }
        assert_eq!(told.unsaid.len(), UNSAID);

        let mut heard = String::new();
        for _ in 0..3 * UNSAID {
            let mut buffer = [0; 64];
            while let Ok(length) = manager.recv(&mut buffer) {
                heard.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
            told.say();
        }
        assert!(told.unsaid.is_empty());
        assert!(heard.ends_with("RELOADING=1\nREADY=1\n"), "{heard}");
    }

    #[test]
    fn a_manager_that_is_gone_is_tried_again_and_one_with_an_abstract_name_is_found() {
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let to = socket_to(OsStr::new(&format!("@{name}"))).unwrap();
        let mut told = Manager::told_at(Some(to));
        told.tell(&[NotifyState::Ready]);
        assert!(told.deaf && told.unsaid.is_empty());
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        told.tell(&[NotifyState::Stopping]);
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1\n");
        assert!(!told.deaf);
    }

    #[test]
    fn the_status_is_one_line_however_many_pools_there_are() {
        let pool = PoolView {
            name: "small".to_owned(),
            labels: Vec::new(),
            image: "base".to_owned(),
            trigger: "none".to_owned(),
            min_idle: 1,
            max: 4,
            booting: 1,
            warm: 2,
            registered: 1,
            busy: 1,
            ending: 0,
            waiting: 3,
            blocker: None,
        };
        let daemon = Status {
            version: String::new(),
            pid: 1,
            started: crate::api::types::Time::now(),
            draining: true,
            settings: None,
            github: None,
            waiting: 3,
            running: 2,
            microvms: 5,
        };
        assert_eq!(
            status(&daemon, std::slice::from_ref(&pool)),
            "draining: 2 jobs run, 3 wait, 5 microVMs; small: 1 booting, 2 warm, 2 busy of 4"
        );
        let many = status(&daemon, &vec![pool; 1000]);
        assert!(many.len() < 1000 && !many.contains('\n') && many.ends_with('…'), "{many}");
    }
}
