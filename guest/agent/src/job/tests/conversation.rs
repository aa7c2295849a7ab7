//! Tests of the end of a session.

use super::*;

#[test]
fn messages_out_of_order_end_the_session() {
    let early = HostMessage::Start(job(&["true"]));
    let unknown = HostMessage::InputEnd { stream: InputStream::Stdin };
    let excess = HostMessage::Credit { stream: OutputStream::Stdout, bytes: 1 };
    for (mut host, message) in
        [(Host::greeted(), early), (Host::new(), prepare()), (Host::new(), unknown.clone())]
    {
        host.send(&message);
        assert!(matches!(host.receive(), Some(GuestMessage::Failed { .. })), "{message:?}");
        assert!(matches!(host.outcome(), SessionEnd::Failed(_)));
    }
    for message in [unknown, excess] {
        let mut host = Host::new();
        host.start(job(&["true"]));
        host.finish(JobResult::default());
        host.send(&message);
        assert!(matches!(host.receive(), Some(GuestMessage::Failed { .. })), "{message:?}");
    }
}

#[test]
fn the_clock_can_be_set_once_the_machine_is_prepared() {
    let mut host = Host::new();
    host.send(&HostMessage::SetClock(1));
    host.start(job(&["true"]));
    host.send(&HostMessage::SetClock(2));
    let result = host.finish(JobResult::default());
    assert_eq!(result.status, Some(JobExit::Code(0)));
    host.send(&HostMessage::Shutdown);
    assert!(matches!(host.outcome(), SessionEnd::Shutdown));
    assert_eq!(*CLOCKS.lock().unwrap(), [1, 2]);

    let mut early = Host::greeted();
    early.send(&HostMessage::SetClock(3));
    assert!(matches!(early.outcome(), SessionEnd::Failed(_)));
}

#[test]
fn the_session_ends_when_the_host_hangs_up() {
    let mut host = Host::new();
    host.connection.shutdown(std::net::Shutdown::Both).unwrap();
    assert!(matches!(host.outcome(), SessionEnd::HostDisconnected));
}

#[test]
fn garbage_from_the_host_ends_the_session() {
    let mut host = Host::new();
    host.connection.write_all(&[0, 0, 0, 1, 0xff]).unwrap();
    assert!(matches!(host.outcome(), SessionEnd::Failed(_)));
}

#[test]
fn heartbeats_come_between_other_messages() {
    let host = Host::new();
    let message = frame::read(&host.connection).unwrap();
    let Some(GuestMessage::Heartbeat(statistics)) = message else { panic!("{message:?}") };
    assert!(statistics.memory_total > 0);
}

/// The statistics at the end of a job can explain it.
#[test]
fn the_last_statistics_come_right_before_the_end() {
    let mut host = Host::new();
    host.start(job(&["true"]));
    let mut last_but_one = None;
    loop {
        match frame::read(&host.connection).unwrap() {
            Some(GuestMessage::Exited(_)) => break,
            message => last_but_one = message,
        }
    }
    assert!(matches!(last_but_one, Some(GuestMessage::Heartbeat(_))), "{last_but_one:?}");
}
