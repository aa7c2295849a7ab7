//! Tests of `record`, in a separate file for length.

use std::sync::atomic::Ordering;

use super::*;
use crate::verdict::RefusalCause;

fn identity() -> RecordIdentity {
    RecordIdentity {
        microvm: "vm1".into(),
        policy: "ci".into(),
        guest: Ipv4Addr::new(172, 31, 0, 2),
    }
}

fn subject(host: &str) -> Subject {
    Subject {
        via: Via::Transparent,
        host: host.into(),
        port: 443,
        original: None,
        method: "CONNECT".into(),
        url: None,
    }
}

fn lines(directory: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(directory.join(file)).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn events(directory: &Path) -> Vec<serde_json::Value> {
    lines(directory, "egress.jsonl").iter().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn a_flow_has_a_line_at_its_start_and_one_at_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let recorder =
        EgressRecorder::create(directory.path(), identity(), RecordLimits::default()).unwrap();
    let flow = recorder.start_flow(subject("a.example"), Verdict::Allowed, Some("allow[0]".into()));
    assert_eq!(events(directory.path()).len(), 1);
    assert!(lines(directory.path(), "access.log").is_empty());
    flow.bytes().up.fetch_add(5, Ordering::Relaxed);
    flow.bytes().down.fetch_add(7, Ordering::Relaxed);
    drop(flow);
    let events = events(directory.path());
    assert_eq!((&events[0]["event"], &events[1]["event"]), (&"verdict".into(), &"closed".into()));
    assert_eq!(events[0]["id"], events[1]["id"]);
    assert_eq!((&events[1]["up"], &events[1]["down"]), (&5.into(), &7.into()));
    assert_eq!(lines(directory.path(), "access.log").len(), 1);
    let row = &recorder.report().rows[0];
    assert_eq!((row.connections, row.up, row.down), (1, 5, 7));
}

#[test]
fn unrecorded_lines_are_counted_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let limits = RecordLimits { per_second: 0, burst: 3, bytes: 1 << 20 };
    let recorder = EgressRecorder::create(directory.path(), identity(), limits).unwrap();
    for _ in 0..10 {
        recorder.record_verdict(
            subject("evil.example"),
            &Verdict::Refused(RefusalCause::NoRule),
            None,
        );
    }
    recorder.flush();
    let events = events(directory.path());
    assert_eq!(events.len(), 4);
    assert_eq!((&events[3]["event"], &events[3]["lines"]), (&"unrecorded".into(), &7.into()));
    let report = recorder.report();
    assert_eq!((report.unrecorded, report.rows[0].connections), (7, 10));
    recorder.flush();
    assert_eq!(lines(directory.path(), "egress.jsonl").len(), 4);
}

#[test]
fn a_file_never_exceeds_its_limit() {
    let directory = tempfile::tempdir().unwrap();
    let limits = RecordLimits { bytes: 1000, ..RecordLimits::default() };
    let recorder = EgressRecorder::create(directory.path(), identity(), limits).unwrap();
    for _ in 0..100 {
        recorder.record_verdict(
            subject("evil.example"),
            &Verdict::Refused(RefusalCause::NoRule),
            None,
        );
    }
    recorder.flush();
    for file in ["egress.jsonl", "access.log"] {
        let length = std::fs::metadata(directory.path().join(file)).unwrap().len();
        assert!((500..=2000).contains(&length), "{file}: {length}");
    }
    assert!(recorder.report().unrecorded > 90);
}

#[test]
fn a_flood_of_refusals_leaves_room_for_allowed_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let limits = RecordLimits { per_second: 0, burst: 20, bytes: 20_000 };
    let recorder = EgressRecorder::create(directory.path(), identity(), limits).unwrap();
    for number in 0..5_000 {
        let host = format!("{number}.{}", "x".repeat(8_000));
        let verdict = Verdict::Refused(RefusalCause::HostMismatch("\u{1}".repeat(8_000)));
        recorder.record_verdict(subject(&host), &verdict, None);
    }
    let flow = recorder.start_flow(subject("upload.example"), Verdict::Allowed, None);
    flow.bytes().up.fetch_add(3_000_000, Ordering::Relaxed);
    drop(flow);
    recorder.flush();
    let last = events(directory.path());
    let closed = last.iter().find(|line| line["event"] == "closed").unwrap();
    assert_eq!((&closed["host"], &closed["up"]), (&"upload.example".into(), &3_000_000.into()));
    assert_eq!(last.last().unwrap()["event"], "unrecorded");
    let access = lines(directory.path(), "access.log");
    assert!(access.last().unwrap().contains("TCP_TUNNEL/200 0 CONNECT upload.example:443"));
    assert!(recorder.recent().iter().any(|line| line.contains("upload.example")));
    assert!(recorder.report().unrecorded >= 4_980);
}

#[test]
fn a_flood_of_audited_lookups_hides_no_end_of_traffic() {
    let directory = tempfile::tempdir().unwrap();
    let limits = RecordLimits { per_second: 0, burst: 50, bytes: 100_000 };
    let recorder = EgressRecorder::create(directory.path(), identity(), limits).unwrap();
    let flow = recorder.start_flow(subject("upload.example"), Verdict::Allowed, None);
    for number in 0..6_000 {
        let lookup = Subject { via: Via::Dns, port: 0, ..subject(&format!("{number}.example")) };
        recorder.record_verdict(lookup, &Verdict::WouldRefuse(RefusalCause::NoRule), None);
    }
    // Nor does a flood of beginnings.
    let open: Vec<_> = (0..200)
        .map(|_| recorder.start_flow(subject("other.example"), Verdict::Allowed, None))
        .collect();
    flow.bytes().up.fetch_add(3_000_000, Ordering::Relaxed);
    drop(flow);
    let events = events(directory.path());
    let closed: Vec<_> = events.iter().filter(|line| line["event"] == "closed").collect();
    assert_eq!(closed.len(), 1);
    assert_eq!(
        (&closed[0]["host"], &closed[0]["up"]),
        (&"upload.example".into(), &3_000_000.into())
    );
    let access = lines(directory.path(), "access.log");
    assert!(access.iter().any(|line| line.contains("upload.example:443")));
    drop(open);
}

#[test]
fn recent_lines_are_kept_in_memory() {
    let recorder = EgressRecorder::without_files(identity());
    for number in 0..RECENT + 5 {
        let verdict = Verdict::Refused(RefusalCause::NoRule);
        recorder.record_verdict(subject(&format!("n{number}.example")), &verdict, None);
    }
    let recent = recorder.recent();
    assert_eq!(recent.len(), RECENT);
    assert!(recent[0].contains("\"n5.example\""), "{}", recent[0]);
}

#[test]
fn a_record_that_can_not_be_created_names_its_file() {
    let error = EgressRecorder::create(Path::new("/nowhere"), identity(), RecordLimits::default())
        .unwrap_err();
    assert_eq!(error.to_string(), "can't open the egress record /nowhere/egress.jsonl");
}
