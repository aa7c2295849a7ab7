//! Notifications to the service manager, and how it replaces the daemon.

use std::collections::VecDeque;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::daemon::{DRAIN_TIMEOUT, Daemon, JOB_TIMEOUT, local};
use super::support::{TIMEOUT, until};

/// The manager's end of the socket: notifications, line by line.
struct Manager {
    socket: UnixDatagram,
    lines: VecDeque<String>,
}

impl Manager {
    /// Passes the socket to the daemon as systemd does.
    fn attach(daemon: &mut Daemon) -> Self {
        let path = daemon.host.root().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let path: &str = Box::leak(path.to_str().unwrap().to_owned().into_boxed_str());
        daemon.environment.extend([("NOTIFY_SOCKET", path), ("WATCHDOG_USEC", "1500000")]);
        Self { socket, lines: VecDeque::new() }
    }

    /// Waits for a line with a given prefix, skipping others. Returns the rest of it.
    #[track_caller]
    fn wait_for_line(&mut self, beginning: &str) -> String {
        until(&format!("{beginning} for the manager"), TIMEOUT, || {
            while let Some(line) = self.lines.pop_front() {
                if let Some(rest) = line.strip_prefix(beginning) {
                    return Some(rest.to_owned());
                }
            }
            let mut buffer = [0; 4096];
            // The socket may be empty.
            let length = self.socket.recv(&mut buffer).unwrap_or(0);
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            self.lines.extend(text.lines().map(str::to_owned));
            None
        })
    }
}

#[test]
fn a_service_manager_hears_how_the_daemon_is() {
    let mut daemon = Daemon::new();
    daemon.configure(&local("drain = '1h'", "max = 1"));
    let mut manager = Manager::attach(&mut daemon);
    daemon.launch();
    manager.wait_for_line("READY=1");
    let status = manager.wait_for_line("STATUS=");
    assert!(
        status.starts_with("0 jobs running, 0 waiting") && status.contains("test: "),
        "{status}"
    );
    manager.wait_for_line("WATCHDOG=1");
    manager.wait_for_line("WATCHDOG=1");

    daemon.signal(Signal::SIGHUP);
    manager.wait_for_line("RELOADING=1");
    let at: u64 = manager.wait_for_line("MONOTONIC_USEC=").parse().unwrap();
    assert!(at > 0);
    manager.wait_for_line("READY=1");

    let job = daemon.submit("echo begun; sleep 5; echo done");
    daemon.wait_for(&job, &["running"]);
    until("a status with a job", TIMEOUT, || {
        manager.wait_for_line("STATUS=").starts_with("1 jobs run").then_some(())
    });
    daemon.signal(Signal::SIGTERM);
    manager.wait_for_line("STOPPING=1");
    // It requests more time while it waits for the job.
    manager.wait_for_line("EXTEND_TIMEOUT_USEC=");
    manager.wait_for_line("EXTEND_TIMEOUT_USEC=");
    assert!(daemon.wait_for_exit(JOB_TIMEOUT).success(), "{}", daemon.log());
    daemon.host.assert_clean();
}

#[test]
fn a_daemon_that_hands_over_leaves_jobs_and_warm_microvms_to_the_next() {
    let mut daemon = Daemon::serving(&local("", "max = 2\nmin_idle = 1"));
    let first = daemon.submit("echo begun; sleep 10; echo done");
    daemon.wait_for(&first, &["running"]);
    daemon.wait_for_pool("one that is warm", "test", |pool| pool["warm"] == 1);
    let ids = |daemon: &Daemon| {
        let microvms = daemon.ask(&["ps"]);
        let ids = microvms.as_array().unwrap().iter().map(|one| one["id"].to_string());
        ids.collect::<std::collections::BTreeSet<_>>()
    };
    let before = ids(&daemon);
    daemon.signal(Signal::SIGUSR2);
    assert!(daemon.wait_for_exit(DRAIN_TIMEOUT).success(), "{}", daemon.log());
    assert!(!daemon.log().contains("draining"), "{}", daemon.log());

    daemon.serve();
    assert_eq!(ids(&daemon), before);
    let second = daemon.submit("echo begun; echo done");
    for job in [&first, &second] {
        let ended = daemon.wait_for(job, &["finished"]);
        assert_eq!(ended["exit_code"], 0, "{ended:#}");
        daemon.run(&["logs", job]).assert_output("begun\ndone\n");
    }
    daemon.finish();
}
