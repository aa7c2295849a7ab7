//! Messages that conform to the protocol or violate it.

use super::*;
use mayfly_protocol::flow::WINDOW;
use mayfly_protocol::message::Prepare;
use proptest::prelude::*;

fn hello(protocol: u16) -> GuestMessage {
    GuestMessage::Hello(GuestHello { protocol, agent: "0.1".into(), kernel: "6.12".into() })
}

fn prepare() -> HostMessage {
    HostMessage::Prepare(Prepare {
        entropy: vec![].into(),
        wall_clock: 0,
        hostname: String::new(),
        network: None,
        heartbeat_interval: 1000,
    })
}

fn job() -> Job {
    Job {
        arguments: vec![b"true".to_vec().into()],
        environment: vec![],
        directory: None,
        user: None,
        terminal: None,
        stdin: true,
        copy_in: vec![],
        copy_out: vec![b"/out".to_vec().into()],
        follow: None,
    }
}

fn output(stream: OutputStream, count: usize) -> GuestMessage {
    GuestMessage::Output { stream, bytes: vec![7; count].into() }
}

fn end(stream: OutputStream) -> GuestMessage {
    GuestMessage::OutputEnd { stream, error: None }
}

/// Returns a conversation whose job runs.
fn running() -> Conversation {
    let mut conversation = Conversation::default();
    conversation.receive(hello(mayfly_protocol::VERSION)).unwrap();
    conversation.record_sent(&prepare());
    conversation.receive(GuestMessage::Prepared).unwrap();
    conversation.record_sent(&HostMessage::Start(job()));
    conversation.receive(GuestMessage::Started).unwrap();
    conversation
}

#[test]
fn a_job_runs_from_hello_to_its_end() {
    let mut conversation = running();
    let received = conversation.receive(output(OutputStream::Stdout, 3)).unwrap();
    assert_eq!(received, Received::Output(OutputStream::Stdout, vec![7; 3]));
    for stream in outputs(&job()) {
        conversation.receive(end(stream)).unwrap();
    }
    let received = conversation.receive(GuestMessage::Exited(JobExit::Code(7))).unwrap();
    assert_eq!(received, Received::Exited(JobExit::Code(7)));
    assert!(conversation.receive(GuestMessage::Exited(JobExit::Code(0))).is_err());
}

#[test]
fn another_version_is_reported() {
    let error = Conversation::default().receive(hello(99)).unwrap_err();
    assert!(matches!(error, Violation::Version { theirs: 99, .. }), "{error}");
}

#[test]
fn messages_are_rejected_before_their_stage() {
    for message in [
        GuestMessage::Prepared,
        GuestMessage::Started,
        output(OutputStream::Stdout, 1),
        end(OutputStream::Stdout),
        GuestMessage::Exited(JobExit::Code(0)),
        GuestMessage::Heartbeat(Statistics::default()),
        GuestMessage::Programs { programs: Vec::new(), left_out: 0 },
    ] {
        let error = Conversation::default().receive(message).unwrap_err();
        assert!(
            matches!(error, Violation::OutOfOrder { stage: ConversationStage::Connected, .. }),
            "{error}"
        );
    }
    assert!(running().receive(hello(mayfly_protocol::VERSION)).is_err());
    assert!(running().receive(GuestMessage::Started).is_err());
}

#[test]
fn the_end_of_the_job_comes_after_the_ends_of_its_streams() {
    let error = running().receive(GuestMessage::Exited(JobExit::Code(0))).unwrap_err();
    assert!(matches!(error, Violation::StreamsOpen(_)), "{error}");
}

#[test]
fn a_stream_is_bounded_and_ends_once() {
    let mut conversation = running();
    let chunks = WINDOW as usize / MAX_CHUNK;
    for _ in 0..chunks {
        conversation.receive(output(OutputStream::Stdout, MAX_CHUNK)).unwrap();
    }
    let error = conversation.receive(output(OutputStream::Stdout, 1)).unwrap_err();
    assert!(matches!(error, Violation::Flow { .. }), "{error}");
    conversation.receive(end(OutputStream::Stdout)).unwrap();
    for message in [end(OutputStream::Stdout), output(OutputStream::Stdout, 1)] {
        let error = conversation.receive(message).unwrap_err();
        assert!(matches!(error, Violation::NotOpen { .. }), "{error}");
    }
    assert!(running().receive(output(OutputStream::CopyOut(1), 1)).is_err());
    assert!(running().receive(output(OutputStream::Stdout, 0)).is_err());
    assert!(running().receive(output(OutputStream::Stdout, MAX_CHUNK + 1)).is_err());
}

#[test]
fn programs_are_accepted_while_the_job_runs_and_within_limits() {
    let program = |bytes: usize| Program {
        time: 0,
        process: 2,
        parent: 1,
        user: 0,
        path: vec![b'a'; bytes].into(),
    };
    let message = |programs| GuestMessage::Programs { programs, left_out: 3 };
    let most = vec![program(MAX_PROGRAM_PATH); MAX_PROGRAMS];
    let received = running().receive(message(most.clone())).unwrap();
    assert_eq!(received, Received::Programs(most, 3));
    for programs in [vec![program(1); MAX_PROGRAMS + 1], vec![program(MAX_PROGRAM_PATH + 1)]] {
        let error = running().receive(message(programs)).unwrap_err();
        assert!(matches!(error, Violation::Programs { .. }), "{error}");
    }
}

#[test]
fn text_from_a_guest_is_sanitized() {
    let message = GuestMessage::Failed { step: "\x1b[2J".repeat(1000), error: "a\nb".into() };
    let Received::Failed { step, error } = running().receive(message).unwrap() else {
        panic!("not a failure")
    };
    assert_eq!((step.len(), step.contains('\x1b'), error.as_str()), (MAX_TEXT, false, "ab"));
}

proptest! {
    /// Any sequence of messages is accepted or rejected, and at most a window of output is held.
    #[test]
    fn any_sequence_is_accepted_or_rejected(choices in prop::collection::vec(0_u8..10, 0..60)) {
        let mut conversation = running();
        let mut held = 0;
        for choice in choices {
            let message = match choice {
                0 => hello(mayfly_protocol::VERSION),
                1 => GuestMessage::Prepared,
                2 => GuestMessage::Started,
                3..=6 => output(OutputStream::Stderr, MAX_CHUNK),
                7 => end(OutputStream::Stderr),
                8 => GuestMessage::Credit { stream: InputStream::Stdin, bytes: 1 },
                _ => GuestMessage::Exited(JobExit::Code(0)),
            };
            match conversation.receive(message) {
                Ok(Received::Output(_, bytes)) => held += bytes.len(),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        prop_assert!(held <= WINDOW as usize);
    }
}
