//! What other versions say is understood as far as it can be; what was recorded of a version, as a
//! whole. `recorded/version-N/` is what version N of the protocol says, in both directions, and what
//! it leaves in a directory; it is written once, by `MAYFLY_WRITE_REFERENCE=1`, and then kept.

use std::path::PathBuf;
use std::time::Duration;

use mayfly_protocol::message::{Job, TerminalSize};
use proptest::prelude::*;

use super::*;
use crate::egress::policy::Policies;
use crate::host::size::Size;
use crate::machine::Programs;
use crate::machine::accelerator::Accelerator;
use crate::shepherd::Detached;
use crate::shepherd::event::{Happened, Outcome, Phase};
use crate::shepherd::plan::{Boot, Deadlines, Farewell, Id, Plan};
use crate::shepherd::reference::{NAME, samples};

fn place(version: &str, name: &str) -> PathBuf {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/src/shepherd/recorded");
    [directory, version, name].iter().collect()
}

/// The lines of a recorded file.
fn recorded(version: &str, name: &str) -> Vec<String> {
    let path = place(version, name);
    let text = std::fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

fn plan() -> Plan {
    Plan {
        id: Id::parse(NAME).unwrap(),
        asked: u64::MAX,
        image: "runner@sha256:0123".to_owned(),
        boot: Boot {
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
        programs: Programs {
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            qemu_img: "/usr/bin/qemu-img".into(),
            vsock: "/usr/bin/vhost-device-vsock".into(),
        },
        directory: format!("/microvms/{NAME}").into(),
        private: "/private".into(),
        detached: Some(Detached::default()),
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

fn orders() -> Vec<Order> {
    let size = TerminalSize { rows: 50, columns: 132 };
    vec![
        Order::Prepare(Box::new(plan())),
        Order::Start(Box::new(job())),
        Order::Signal(15),
        Order::Resize(size),
        Order::End,
        Order::Farewell(Farewell { within: Duration::from_secs(60), why: "a drain".to_owned() }),
    ]
}

fn events() -> Vec<Event> {
    let event = |happened| Event {
        time: "2026-01-02T03:04:05.678Z".to_owned(),
        microvm: Id::parse(NAME).unwrap(),
        elapsed_ms: 12.6,
        happened,
    };
    samples().into_iter().map(event).collect()
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8(line).unwrap().trim_end().to_owned()
}

/// All that this version says: to a shepherd, from one.
fn said() -> [Vec<String>; 2] {
    let line = |message: &Message<'_>| text(encode(message).unwrap());
    let hello = |acknowledged| Hello { program: "0.1.0".to_owned(), ..Hello::ours(acknowledged) };
    let mut requests = vec![line(&Message::Hello(&hello(0)))];
    for (number, order) in (1..).zip(&orders()) {
        requests.push(line(&Message::Order { number, order }));
    }
    let mut reports = vec![line(&Message::Hello(&hello(5)))];
    reports.push(line(&Message::Acknowledged(&Acknowledgement { number: 6, refused: None })));
    let refused = Some("this version does not know the order".to_owned());
    reports.push(line(&Message::Acknowledged(&Acknowledgement { number: 7, refused })));
    reports.extend(events().iter().map(|event| line(&Message::Event(event))));
    [requests, reports]
}

/// A JSON value without what a newer version added to `old`.
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

/// Each line of a version, read and written again, still says what it said.
#[test]
fn recorded_transcripts_are_understood_to_the_last_field() {
    let version = format!("version-{VERSION}");
    for (name, lines) in ["to-shepherd.jsonl", "from-shepherd.jsonl"].into_iter().zip(said()) {
        let path = place(&version, name);
        if std::env::var_os("MAYFLY_WRITE_REFERENCE").is_some() && !path.exists() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, lines.join("\n") + "\n").unwrap();
        }
    }
    for version in MIN_VERSION..=VERSION {
        let version = format!("version-{version}");
        let mut lines = recorded(&version, "to-shepherd.jsonl").into_iter();
        assert!(
            matches!(request(lines.next().unwrap().as_bytes()), Ok(Request::Hello(hello)) if hello.check().is_ok())
        );
        for (line, expected) in lines.zip(1_u64..) {
            let Ok(Request::Order(number, order)) = request(line.as_bytes()) else {
                panic!("{line}")
            };
            assert_eq!(number, expected);
            let again = text(encode(&Message::Order { number, order: &order }).unwrap());
            assert_eq!(only(&json(&again), &json(&line)), json(&line));
        }
        let (mut events, mut answers) = (0, 0);
        for line in recorded(&version, "from-shepherd.jsonl") {
            let again = match report(line.as_bytes()).unwrap() {
                Report::Hello(hello) => encode(&Message::Hello(&hello)),
                Report::Acknowledged(answer) => {
                    answers += 1;
                    encode(&Message::Acknowledged(&answer))
                }
                Report::Event(event) => {
                    events += 1;
                    let foreign = matches!(&event.happened, Happened::Unknown(value) if value.get("of_another_version").is_none());
                    assert!(!foreign, "a kind that was known is not any more: {line}");
                    encode(&Message::Event(&event))
                }
                Report::Unknown => panic!("{line}"),
            };
            assert_eq!(only(&json(&text(again.unwrap())), &json(&line)), json(&line));
        }
        assert!(events >= 13 && answers == 2, "{events} events, {answers} acknowledgements");
    }
}

/// What a later version might say: more fields everywhere, more kinds of everything.
#[test]
fn a_later_version_is_understood_as_far_as_this_one_goes() {
    let reports: Vec<Report> = recorded("later", "from-shepherd.jsonl")
        .iter()
        .map(|line| report(line.as_bytes()).unwrap())
        .collect();
    let Report::Hello(hello) = &reports[0] else { panic!("{:?}", reports[0]) };
    assert_eq!((hello.check(), hello.acknowledged), (Ok(()), 4));
    assert!(matches!(&reports[1], Report::Acknowledged(answer) if answer.number == 4));
    assert!(matches!(&reports[2], Report::Unknown));
    let events: Vec<Event> = reports[3..]
        .iter()
        .map(|report| match report {
            Report::Event(event) => event.clone().settle(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(events[0].happened, Happened::Phase(Phase::Booting));
    assert!(
        matches!(&events[1].happened, Happened::Unknown(value) if value["phase"] == "hibernating")
    );
    assert!(
        matches!(&events[2].happened, Happened::Unknown(value) if value["migrated"]["to"] == "b.example.com")
    );
    let Happened::Greeted { agent, .. } = &events[3].happened else { panic!("{:?}", events[3]) };
    assert_eq!(agent, "9.0.0");
    let Happened::Ended(Outcome::Failed(failure)) = &events[4].happened else { panic!() };
    assert_eq!((failure.cause.as_str(), failure.code), ("meteor", 125));
    let statistics = failure.statistics.unwrap();
    assert_eq!((statistics.load_percent, statistics.oom_kills), (3, 0));
    // An end in a form that nobody knows yet is an end.
    let Happened::Ended(Outcome::Failed(failure)) = &events[5].happened else { panic!() };
    assert!(failure.message.contains("evaporated"), "{}", failure.message);
    // What was not understood is kept as it was.
    let again = text(encode(&Message::Event(&events[2])).unwrap());
    assert_eq!(json(&again), json(&recorded("later", "from-shepherd.jsonl")[5]));
}

#[test]
fn a_record_of_another_version_is_read_and_what_is_foreign_in_it_kept() {
    for version in ["before-1", "later"] {
        let directory = tempfile::tempdir().unwrap();
        let lines = recorded(version, "events.jsonl");
        std::fs::write(directory.path().join("events.jsonl"), lines.join("\n") + "\n{\"cut")
            .unwrap();
        let events = crate::shepherd::record::events(directory.path()).unwrap();
        assert_eq!(events.len(), lines.len(), "{version}");
        assert!(matches!(events.last().unwrap().happened, Happened::Ended(_)), "{version}");
        let phases = events.iter().filter(|event| matches!(event.happened, Happened::Phase(_)));
        assert!(phases.count() >= 3, "{version}");
        let foreign = events.iter().filter(|event| matches!(event.happened, Happened::Unknown(_)));
        assert_eq!(foreign.count(), if version == "later" { 2 } else { 0 }, "{version}");
    }
}

#[test]
fn versions_meet_where_their_ranges_do() {
    let hello = |version, min_version| Hello { version, min_version, ..Hello::ours(0) };
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
    let hostile = Hello { program: "\u{1b}[2J".repeat(1000), ..hello(0, 0) };
    let message = hostile.check().unwrap_err().to_string();
    assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message}");
}

#[tokio::test]
async fn a_line_has_a_bound_and_an_end() {
    let mut long = vec![b' '; MAX_LINE];
    long.extend(b"{}\n");
    assert!(matches!(Lines::new(long.as_slice()).next().await, Err(WireError::TooLong)));
    let mut cut = Lines::new(&b"{}\n{\"hello\""[..]);
    assert_eq!(cut.next().await.unwrap(), Some(&b"{}"[..]));
    assert!(matches!(cut.next().await, Err(WireError::Io(_))));
    assert!(matches!(Lines::new(&b""[..]).next().await, Ok(None)));
    let order =
        Order::Start(Box::new(Job { arguments: vec![vec![255; MAX_LINE / 4].into()], ..job() }));
    assert!(matches!(
        encode(&Message::Order { number: 1, order: &order }),
        Err(WireError::TooLong)
    ));
}

#[test]
fn the_longest_job_that_the_guest_takes_fits_into_a_line() {
    let arguments = vec![vec![255; mayfly_protocol::frame::MAX_FRAME - 1000].into()];
    let job = Job { arguments, ..job() };
    crate::shepherd::check_job(&job).unwrap();
    let order = Order::Start(Box::new(job));
    encode(&Message::Order { number: u64::MAX, order: &order }).unwrap();
}

proptest! {
    /// Whatever comes is a message, skipped, or an error; never a panic.
    #[test]
    fn any_line_is_a_message_or_an_error(line in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = (request(&line), report(&line));
    }

    /// A recorded line with any of its bytes changed is, too.
    #[test]
    fn a_damaged_line_is_a_message_or_an_error(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let lines = said().concat();
        let mut line = which.get(&lines).clone().into_bytes();
        let at = at.index(line.len());
        line[at] = byte;
        let _ = (request(&line), report(&line));
    }
}
