//! Notifications to the service manager (`sd_notify(3)`): the daemon serves, reloads its settings
//! or stops, its status, and that its loop is alive. Without a service manager nothing is sent.
//!
//! Only the loop sends: if it hangs, the manager gets no notifications and restarts the daemon. It
//! never waits for the manager: a socket holds few datagrams (`net.unix.max_dgram_qlen`, often 10),
//! and a busy manager must not block jobs. Whatever does not fit is sent with the next one.

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
use super::event_loop::Daemon;
use mayfly_api::types::{DaemonStatus, PoolView};

/// The longest time between two notifications of the watchdog.
const MAX_WATCHDOG_PERIOD: Duration = Duration::from_secs(5);
/// The additional time that a draining daemon requests with each notification, in microseconds.
const EXTENSION_USEC: u32 = 60_000_000;
/// The maximum number of pools in the status line, which is for people.
const MAX_POOLS: usize = 8;
/// The maximum number of datagrams that wait for a busy manager. The oldest are dropped.
const MAX_PENDING: usize = 16;

/// The connection to the service manager, if any.
pub(super) struct ServiceManager {
    /// The last status that was sent.
    last_status: String,
    /// Whether it was notified that the daemon stops.
    is_ending: bool,
    /// A nonblocking socket and the manager's address; `None` without a manager.
    target: Option<(UnixDatagram, SocketAddr)>,
    /// Datagrams that wait, in order.
    pending: VecDeque<String>,
    /// Whether the last send failed.
    is_send_failing: bool,
}

impl ServiceManager {
    pub(super) fn new() -> Self {
        let target =
            std::env::var_os("NOTIFY_SOCKET").map(|address| socket_to(&address)).transpose();
        Self::with_target(target.unwrap_or_else(|error| {
            tracing::warn!("can't notify the service manager: {error}");
            None
        }))
    }

    fn with_target(target: Option<(UnixDatagram, SocketAddr)>) -> Self {
        Self {
            last_status: String::new(),
            is_ending: false,
            target,
            pending: VecDeque::new(),
            is_send_failing: false,
        }
    }

    /// Returns the interval for [`ServiceManager::notify_watchdog`]: several times within the
    /// manager's watchdog timeout.
    pub(super) fn watchdog_interval() -> tokio::time::Interval {
        let period = watchdog_period(sd_notify::watchdog_enabled());
        let mut interval = tokio::time::interval(period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        interval
    }

    /// Notifies the manager that the daemon serves.
    pub(super) fn notify_ready(&mut self, daemon: &Daemon) {
        self.last_status = status(&daemon.view().status(), &daemon.view().pools());
        let text = self.last_status.clone();
        self.enqueue(&[NotifyState::Ready, NotifyState::Status(&text)]);
    }

    /// Notifies the manager that the loop is alive.
    pub(super) fn notify_watchdog(&mut self, daemon: &Daemon) {
        self.flush();
        if !self.pending.is_empty() {
            // Watchdog notifications must not delay the waiting ones.
            return;
        }
        let text = status(&daemon.view().status(), &daemon.view().pools());
        let mut states = vec![NotifyState::Watchdog];
        if text != self.last_status {
            states.push(NotifyState::Status(&text));
        }
        if self.is_ending {
            states.push(NotifyState::ExtendTimeoutUsec(EXTENSION_USEC));
        }
        self.enqueue(&states);
        self.last_status = text;
    }

    /// Reloads settings, with a notification before and after.
    pub(super) fn reload_with<T>(
        &mut self,
        daemon: &mut Daemon,
        read: impl FnOnce(&mut Daemon) -> Result<T, DaemonError>,
    ) -> Result<T, DaemonError> {
        // The protocol requires the start time of a reload. The clock never fails.
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.enqueue(&[NotifyState::Reloading, now]);
        }
        let result = read(daemon)?;
        self.notify_ready(daemon);
        // Notify again if the daemon is stopping.
        self.is_ending = false;
        Ok(result)
    }

    /// Notifies the manager once that the daemon stops.
    pub(super) fn notify_stopping(&mut self) {
        if !std::mem::replace(&mut self.is_ending, true) {
            self.enqueue(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(EXTENSION_USEC)]);
        }
    }

    fn enqueue(&mut self, states: &[NotifyState<'_>]) {
        let text = states.iter().fold(String::new(), |text, state| text + &format!("{state}\n"));
        self.pending.push_back(text);
        if self.pending.len() > MAX_PENDING {
            self.pending.pop_front();
        }
        self.flush();
    }

    /// Sends waiting datagrams until the manager's socket is full.
    fn flush(&mut self) {
        let Some((socket, address)) = &self.target else { return self.pending.clear() };
        while let Some(text) = self.pending.front() {
            // Send to the address each time, because a restarted manager has a new socket there.
            match socket.send_to_addr(text.as_bytes(), address) {
                Ok(_) => self.is_send_failing = false,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    if !std::mem::replace(&mut self.is_send_failing, true) {
                        tracing::warn!("can't notify the service manager: {error}");
                    }
                }
            }
            self.pending.pop_front();
        }
    }
}

/// Opens a socket for the address in `NOTIFY_SOCKET`: a path, or an abstract name after an `@`.
fn socket_to(address: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

/// Returns the time between two notifications for a watchdog timeout.
fn watchdog_period(timeout: Option<Duration>) -> Duration {
    let third = timeout.map_or(MAX_WATCHDOG_PERIOD, |timeout| timeout / 3);
    third.clamp(Duration::from_millis(1), MAX_WATCHDOG_PERIOD)
}

/// Formats the daemon's status as one line.
fn status(status: &DaemonStatus, pools: &[PoolView]) -> String {
    let draining = if status.draining { "draining: " } else { "" };
    let mut text = format!(
        "{draining}{} jobs running, {} waiting, {} microVMs",
        status.running, status.waiting, status.microvms
    );
    for pool in pools.iter().take(MAX_POOLS) {
        let busy = pool.registered + pool.busy;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "; {}: {} booting, {} warm, {busy} busy of {}",
            pool.name, pool.booting, pool.warm, pool.max
        );
    }
    if pools.len() > MAX_POOLS {
        text.push_str("; …");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifications_come_well_within_the_watchdog_timeout() {
        let seconds = Duration::from_secs;
        assert_eq!(watchdog_period(None), MAX_WATCHDOG_PERIOD);
        assert_eq!(watchdog_period(Some(seconds(60))), MAX_WATCHDOG_PERIOD);
        assert_eq!(watchdog_period(Some(seconds(6))), seconds(2));
        assert_eq!(watchdog_period(Some(Duration::ZERO)), Duration::from_millis(1));
    }

    #[test]
    fn a_busy_manager_blocks_nothing_and_gets_the_newest_notifications_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let mut manager = ServiceManager::with_target(Some(socket_to(path.as_os_str()).unwrap()));
        let notification = [NotifyState::Watchdog];
        while manager.pending.is_empty() {
            manager.enqueue(&notification);
        }
        for _ in 0..2 * MAX_PENDING {
            manager.enqueue(&[NotifyState::Reloading]);
            manager.enqueue(&[NotifyState::Ready]);
        }
        assert_eq!(manager.pending.len(), MAX_PENDING);

        let mut received = String::new();
        for _ in 0..3 * MAX_PENDING {
            let mut buffer = [0; 64];
            while let Ok(length) = socket.recv(&mut buffer) {
                received.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
            manager.flush();
        }
        assert!(manager.pending.is_empty());
        assert!(received.ends_with("RELOADING=1\nREADY=1\n"), "{received}");
    }

    #[test]
    fn a_missing_manager_is_retried_and_an_abstract_address_works() {
        let name = format!("mayfly-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let target = socket_to(OsStr::new(&format!("@{name}"))).unwrap();
        let mut manager = ServiceManager::with_target(Some(target));
        manager.enqueue(&[NotifyState::Ready]);
        assert!(manager.is_send_failing && manager.pending.is_empty());
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        manager.enqueue(&[NotifyState::Stopping]);
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"STOPPING=1\n");
        assert!(!manager.is_send_failing);
    }

    #[test]
    fn the_status_is_one_line_with_any_number_of_pools() {
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
        let daemon = DaemonStatus {
            version: String::new(),
            pid: 1,
            started: mayfly_api::types::Time::now(),
            draining: true,
            settings: None,
            github: None,
            waiting: 3,
            running: 2,
            microvms: 5,
        };
        assert_eq!(
            status(&daemon, std::slice::from_ref(&pool)),
            "draining: 2 jobs running, 3 waiting, 5 microVMs; small: 1 booting, 2 warm, 2 busy of 4"
        );
        let many = status(&daemon, &vec![pool; 1000]);
        assert!(many.len() < 1000 && !many.contains('\n') && many.ends_with('…'), "{many}");
    }
}
