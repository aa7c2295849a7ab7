//! Compatibility with other versions: recorded transcripts are understood completely, later
//! versions as far as possible. `recorded/version-N/` has all messages of version N in both
//! directions, and its files in a directory. It is written once, with `MAYFLY_WRITE_REFERENCE=1`,
//! and never changed.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_protocol::message::{Job, TerminalSize};
use proptest::prelude::*;

use super::*;
use crate::DetachedLimits;
use crate::event::{EventKind, JobOutcome, Phase};
use crate::plan::{BootFiles, Deadlines, InterruptRequest, MicrovmId, MicrovmPlan};
use crate::reference::{NAME, samples};
use mayfly_egress::policy::Policies;
use mayfly_host::size::Size;
use mayfly_machine::MachinePrograms;
use mayfly_machine::accelerator::Accelerator;

fn recorded_path(version: &str, name: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/recorded");
    [directory, version, name].iter().collect()
}

/// Reads the lines of a recorded file.
fn recorded(version: &str, name: &str) -> Vec<String> {
    let path = recorded_path(version, name);
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

fn plan() -> MicrovmPlan {
    MicrovmPlan {
        id: MicrovmId::parse(NAME).unwrap(),
        requested_at: u64::MAX,
        image: "runner@sha256:0123".to_owned(),
        boot: BootFiles {
            directory: "/images/runner".into(),
            kernel: "/images/runner/kernel".into(),
            initramfs: "/images/runner/initramfs".into(),
            rootfs: "/images/runner/rootfs".into(),
            arguments: "quiet".to_owned(),
        },
        accelerator: Accelerator::Tcg,
        processors: 2,
        memory: Size::gibibytes(2),
        disk: Size::gibibytes(20),
        egress: Policies::read(None).unwrap().get("github").unwrap().clone(),
        egress_record: "/egress.jsonl".into(),
        deadlines: Deadlines::default(),
        programs: MachinePrograms {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            qemu_img: "/usr/bin/qemu-img".into(),
            vsock: "/usr/bin/vhost-device-vsock".into(),
        },
        directory: format!("/microvms/{NAME}").into(),
        private: "/private".into(),
        detached: Some(DetachedLimits::default()),
    }
}

fn job() -> Job {
    Job {
        arguments: vec![b"sh".to_vec().into(), vec![0xff, 0, b'\n'].into()],
        environment: vec![(b"A".to_vec().into(), b"b c".to_vec().into())],
        directory: Some(b"/home".to_vec().into()),
        user: Some("runner".to_owned()),
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        stdin: true,
        copy_in: vec![b"in".to_vec().into()],
        copy_out: vec![b"out".to_vec().into()],
        follow: Some(b"pages".to_vec().into()),
    }
}

fn commands() -> Vec<ShepherdCommand> {
    let size = TerminalSize { rows: 50, columns: 132 };
    vec![
        ShepherdCommand::Prepare(Box::new(plan())),
        ShepherdCommand::Start(Box::new(job())),
        ShepherdCommand::Signal(15),
        ShepherdCommand::Resize(size),
        ShepherdCommand::End,
        ShepherdCommand::Interrupt(InterruptRequest {
            grace: Duration::from_secs(60),
            reason: "a drain".to_owned(),
        }),
    ]
}

fn events() -> Vec<Event> {
    let event = |kind| Event {
        time: "2026-01-02T03:04:05.678Z".to_owned(),
        microvm: MicrovmId::parse(NAME).unwrap(),
        elapsed_ms: 12.6,
        kind,
    };
    samples().into_iter().map(event).collect()
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// Returns all messages of this version: to a shepherd, from a shepherd.
fn transcripts() -> [Vec<String>; 2] {
    let line = |message: &Message<'_>| text(encode(message).unwrap());
    let hello =
        |acknowledged| WireHello { program: "0.1.0".to_owned(), ..WireHello::ours(acknowledged) };
    let mut requests = vec![line(&Message::Hello(&hello(0)))];
    for (number, command) in (1..).zip(&commands()) {
        requests.push(line(&Message::Command { number, command }));
    }
    let mut reports = vec![line(&Message::Hello(&hello(5)))];
    reports.push(line(&Message::Acknowledged(&Acknowledgement { number: 6, refused: None })));
    let refused = Some("this version does not know the command".to_owned());
    reports.push(line(&Message::Acknowledged(&Acknowledgement { number: 7, refused })));
    reports.extend(events().iter().map(|event| line(&Message::Event(event))));
    [requests, reports]
}

/// Removes from a JSON value what a newer version added to `old`.
fn only(new: &serde_json::Value, old: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            let both = old.iter().filter_map(|(key, old)| Some((key, only(new.get(key)?, old))));
            Value::Object(both.map(|(key, value)| (key.clone(), value)).collect())
        }
        (Value::Array(new), Value::Array(old)) if new.len() == old.len() => {
            Value::Array(new.iter().zip(old).map(|(new, old)| only(new, old)).collect())
        }
        _ => new.clone(),
    }
}

fn json(line: &str) -> serde_json::Value {
    serde_json::from_str(line).unwrap()
}

/// Each recorded line keeps its content when it is parsed and encoded again.
#[test]
fn recorded_transcripts_are_understood_completely() {
    let version = format!("version-{VERSION}");
    for (name, lines) in ["to-shepherd.jsonl", "from-shepherd.jsonl"].into_iter().zip(transcripts())
    {
        let path = recorded_path(&version, name);
        if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, lines.join("\n") + "\n").unwrap();
        }
    }
    for version in MIN_VERSION..=VERSION {
        let version = format!("version-{version}");
        let mut lines = recorded(&version, "to-shepherd.jsonl").into_iter();
        assert!(
            matches!(parse_request(lines.next().unwrap().as_bytes()), Ok(ShepherdRequest::Hello(hello)) if hello.check().is_ok())
        );
        for (line, expected) in lines.zip(1_u64..) {
            let Ok(ShepherdRequest::Command(number, command)) = parse_request(line.as_bytes())
            else {
                panic!("{line}")
            };
            assert_eq!(number, expected);
            let again = text(encode(&Message::Command { number, command: &command }).unwrap());
            assert_eq!(only(&json(&again), &json(&line)), json(&line));
        }
        let (mut events, mut answers) = (0, 0);
        for line in recorded(&version, "from-shepherd.jsonl") {
            let again = match parse_report(line.as_bytes()).unwrap() {
                ShepherdReport::Hello(hello) => encode(&Message::Hello(&hello)),
                ShepherdReport::Acknowledged(answer) => {
                    answers += 1;
                    encode(&Message::Acknowledged(&answer))
                }
                ShepherdReport::Event(event) => {
                    events += 1;
                    let foreign = matches!(
                        &event.kind,
                        EventKind::Unknown(value) if value.get("of_another_version").is_none()
                    );
                    assert!(!foreign, "a known kind is not understood any more: {line}");
                    encode(&Message::Event(&event))
                }
                ShepherdReport::Unknown => panic!("{line}"),
            };
            assert_eq!(only(&json(&text(again.unwrap())), &json(&line)), json(&line));
        }
        assert!(events >= 13 && answers == 2, "{events} events, {answers} acknowledgements");
    }
}

/// A later version might add fields everywhere, and kinds of messages and events.
#[test]
fn a_later_version_is_understood_as_far_as_this_one_goes() {
    let reports: Vec<ShepherdReport> = recorded("later", "from-shepherd.jsonl")
        .iter()
        .map(|line| parse_report(line.as_bytes()).unwrap())
        .collect();
    let ShepherdReport::Hello(hello) = &reports[0] else { panic!("{:?}", reports[0]) };
    assert_eq!((hello.check(), hello.acknowledged), (Ok(()), 4));
    assert!(matches!(&reports[1], ShepherdReport::Acknowledged(answer) if answer.number == 4));
    assert!(matches!(&reports[2], ShepherdReport::Unknown));
    let events: Vec<Event> = reports[3..]
        .iter()
        .map(|report| match report {
            ShepherdReport::Event(event) => event.clone().normalize(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(events[0].kind, EventKind::Phase(Phase::Booting));
    assert!(
        matches!(&events[1].kind, EventKind::Unknown(value) if value["phase"] == "hibernating")
    );
    assert!(
        matches!(&events[2].kind, EventKind::Unknown(value) if value["migrated"]["to"] == "b.example.com")
    );
    let EventKind::Greeted { agent, .. } = &events[3].kind else { panic!("{:?}", events[3]) };
    assert_eq!(agent, "9.0.0");
    let EventKind::Ended(JobOutcome::Failed(failure)) = &events[4].kind else { panic!() };
    assert_eq!((failure.cause.as_str(), failure.code), ("meteor", 125));
    let statistics = failure.statistics.unwrap();
    assert_eq!((statistics.load_percent, statistics.oom_kills), (3, 0));
    // An end in an unknown format is still an end.
    let EventKind::Ended(JobOutcome::Failed(failure)) = &events[5].kind else { panic!() };
    assert!(failure.message.contains("evaporated"), "{}", failure.message);
    // An unknown event is kept as it is.
    let again = text(encode(&Message::Event(&events[2])).unwrap());
    assert_eq!(json(&again), json(&recorded("later", "from-shepherd.jsonl")[5]));
}

#[test]
fn a_record_of_another_version_is_read_and_unknown_events_are_kept() {
    for version in ["before-1", "later"] {
        let directory = tempfile::tempdir().unwrap();
        let lines = recorded(version, "events.jsonl");
        std::fs::write(directory.path().join("events.jsonl"), lines.join("\n") + "\n{\"cut")
            .unwrap();
        let events = crate::record::read_events(directory.path()).unwrap();
        assert_eq!(events.len(), lines.len(), "{version}");
        assert!(matches!(events.last().unwrap().kind, EventKind::Ended(_)), "{version}");
        let phases = events.iter().filter(|event| matches!(event.kind, EventKind::Phase(_)));
        assert!(phases.count() >= 3, "{version}");
        let foreign = events.iter().filter(|event| matches!(event.kind, EventKind::Unknown(_)));
        assert_eq!(foreign.count(), if version == "later" { 2 } else { 0 }, "{version}");
    }
}

#[test]
fn versions_are_compatible_if_their_ranges_overlap() {
    let hello = |version, min_version| WireHello { version, min_version, ..WireHello::ours(0) };
    for (version, min_version, understood) in [
        (VERSION, MIN_VERSION, true),
        (VERSION + 5, VERSION, true),
        (VERSION + 5, VERSION + 1, false),
        (MIN_VERSION - 1, 0, false),
        (u32::MAX, 0, true),
        (u32::MAX, u32::MAX, false),
    ] {
        let checked = hello(version, min_version).check();
        assert_eq!(checked.is_ok(), understood, "{version}, {min_version}: {checked:?}");
    }
    let hostile = WireHello { program: "\u{1b}[2J".repeat(1000), ..hello(0, 0) };
    let message = hostile.check().unwrap_err().to_string();
    assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message}");
}

#[tokio::test]
async fn a_line_is_bounded_and_must_be_complete() {
    let mut long = vec![b' '; MAX_LINE];
    long.extend(b"{}\n");
    assert!(matches!(Lines::new(long.as_slice()).next_line().await, Err(WireError::TooLong)));
    let mut cut = Lines::new(&b"{}\n{\"hello\""[..]);
    assert_eq!(cut.next_line().await.unwrap(), Some(&b"{}"[..]));
    assert!(matches!(cut.next_line().await, Err(WireError::Io(_))));
    assert!(matches!(Lines::new(&b""[..]).next_line().await, Ok(None)));
    let command = ShepherdCommand::Start(Box::new(Job {
        arguments: vec![vec![255; MAX_LINE / 4].into()],
        ..job()
    }));
    assert!(matches!(
        encode(&Message::Command { number: 1, command: &command }),
        Err(WireError::TooLong)
    ));
}

#[test]
fn the_longest_job_for_a_guest_fits_into_a_line() {
    let arguments = vec![vec![255; mayfly_protocol::frame::MAX_FRAME - 1000].into()];
    let job = Job { arguments, ..job() };
    crate::check_job(&job).unwrap();
    let command = ShepherdCommand::Start(Box::new(job));
    encode(&Message::Command { number: u64::MAX, command: &command }).unwrap();
}

proptest! {
    /// Any line is a message, skipped, or an error; never a panic.
    #[test]
    fn any_line_is_a_message_or_an_error(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (parse_request(&line), parse_report(&line));
    }

    /// So is a valid line with any byte changed.
    #[test]
    fn a_damaged_line_is_a_message_or_an_error(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let lines = transcripts().concat();
        let mut line = which.get(&lines).clone().into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        let _ = (parse_request(&line), parse_report(&line));
    }
}
