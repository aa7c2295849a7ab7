use std::path::PathBuf;
use std::time::Duration;

use super::{Bench, nowhere};
use crate::ledger::audit::{Broken, Head, VerifyError};
use crate::ledger::closing::{self, Kept};
use crate::ledger::segments::{self, SEGMENT};
use crate::ledger::{LedgerError, Reader};

/// A ledger of ten entries, tampered with as someone who may write the file can.
fn tampered(sql: &str) -> Result<Head, VerifyError> {
    let mut bench = Bench::new();
    for _ in 0..10 {
        bench.submit();
    }
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    connection
        .execute_batch("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_cut;")
        .unwrap();
    connection.execute_batch(sql).unwrap();
    Reader::open(&bench.path()).unwrap().verify_audit(&nowhere(), None)
}

fn broken(sql: &str) -> Broken {
    match tampered(sql) {
        Err(VerifyError::Broken(broken)) => broken,
        other => panic!("{sql}: {other:?}"),
    }
}

#[test]
fn an_untouched_chain_holds() {
    assert_eq!(tampered("").unwrap().sequence, 10);
}

#[test]
fn a_change_of_any_field_is_found_at_its_entry() {
    for change in [
        "time = time + 1",
        "actor = 'someone'",
        "action = 'job.finished'",
        "subject = '4711'",
        "detail = '{}'",
        "hash = zeroblob(32)",
        // The same bytes in a row, cut elsewhere.
        "actor = actor || substr(action, 1, 1), action = substr(action, 2)",
    ] {
        let found = broken(&format!("UPDATE audit SET {change} WHERE sequence = 4"));
        assert_eq!(found, Broken::Changed(4), "{change}");
    }
    let found = broken("UPDATE audit SET previous = zeroblob(32) WHERE sequence = 4");
    assert_eq!(found, Broken::Unlinked(4));
}

#[test]
fn a_missing_entry_is_found_wherever_it_was() {
    assert_eq!(broken("DELETE FROM audit WHERE sequence = 1"), Broken::Missing(1));
    assert_eq!(broken("DELETE FROM audit WHERE sequence = 5"), Broken::Missing(5));
    assert_eq!(
        broken(
            "DELETE FROM audit WHERE sequence = 5;
                UPDATE audit SET sequence = sequence - 1 WHERE sequence > 5"
        ),
        Broken::Unlinked(5)
    );
    assert_eq!(broken("DELETE FROM audit WHERE sequence > 8"), Broken::Cut { found: 8, head: 10 });
    assert_eq!(broken("DELETE FROM audit"), Broken::Cut { found: 0, head: 10 });
    assert_eq!(
        broken("DELETE FROM meta WHERE key = 'audit_head'"),
        Broken::Cut { found: 10, head: 0 }
    );
}

#[test]
fn another_order_is_found() {
    let swap = "UPDATE audit SET sequence = -1 WHERE sequence = 3;
        UPDATE audit SET sequence = 3 WHERE sequence = 4;
        UPDATE audit SET sequence = 4 WHERE sequence = -1;";
    assert_eq!(broken(swap), Broken::Unlinked(3));
}

#[test]
fn an_inserted_entry_is_found() {
    let insert = "INSERT INTO audit SELECT 11, time, actor, action, subject, detail, previous, hash
        FROM audit WHERE sequence = 10";
    assert_eq!(broken(insert), Broken::Unlinked(11));
}

#[test]
fn a_head_that_was_kept_elsewhere_finds_what_the_ledger_can_not() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.submit();
    }
    let kept = bench.ledger.reader().verify_audit(&nowhere(), None).unwrap();
    let kept: Head = kept.to_string().parse().unwrap();
    bench.submit();
    let reader = Reader::open(&bench.path()).unwrap();
    assert_eq!(reader.verify_audit(&nowhere(), Some(kept)).unwrap().sequence, 4);
    // The end and the head, both cut back: a whole chain, but not the one that was.
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    connection
        .execute_batch(
            "DROP TRIGGER audit_is_not_cut;
             DELETE FROM audit WHERE sequence > 2;
             UPDATE meta SET value = (SELECT '2:' || lower(hex(hash)) FROM audit
                 WHERE sequence = 2) WHERE key = 'audit_head';",
        )
        .unwrap();
    assert_eq!(reader.verify_audit(&nowhere(), None).unwrap().sequence, 2);
    let error = reader.verify_audit(&nowhere(), Some(kept)).unwrap_err();
    assert!(matches!(error, VerifyError::Broken(Broken::Rewritten(head)) if head == kept));
}

#[test]
fn the_log_itself_refuses_changes() {
    let mut bench = Bench::new();
    bench.submit();
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    for sql in ["DELETE FROM audit", "UPDATE audit SET actor = 'me'"] {
        assert!(connection.execute_batch(sql).is_err(), "{sql}");
    }
}

#[test]
fn entries_are_exported_in_their_order() {
    let mut bench = Bench::new();
    let ids = [bench.submit(), bench.submit(), bench.submit()];
    let mut subjects = Vec::new();
    bench
        .ledger
        .reader()
        .audit_lines::<LedgerError>(1, |line| {
            assert!(serde_json::from_str::<serde_json::Value>(&line.detail).is_ok());
            subjects.push(line.subject.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(subjects, [ids[1].to_string(), ids[2].to_string()]);
}

/// A ledger with so many entries, and the directory of its segments.
fn long(entries: u64) -> (Bench, PathBuf) {
    let mut bench = Bench::new();
    let directory = bench.directory.path().join("audit");
    append(&mut bench, entries);
    (bench, directory)
}

fn append(bench: &mut Bench, entries: u64) {
    bench
        .ledger
        .change("test", |change| {
            let detail = serde_json::json!({ "what": "\"ü\\\u{0}\n" });
            (0..entries).try_for_each(|number| change.audit("test", &number.to_string(), &detail))
        })
        .unwrap();
}

fn numbers(bench: &Bench, directory: &std::path::Path, after: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    bench
        .ledger
        .reader()
        .audit_history::<VerifyError>(directory, after, |line| {
            numbers.push(line.sequence);
            Ok(())
        })
        .unwrap();
    numbers
}

const ALL: Kept = Kept { bytes: u64::MAX, age: Duration::MAX };

#[test]
fn a_chain_holds_through_closed_segments_and_after_old_ones_went() {
    let (mut bench, directory) = long(3 * SEGMENT + 10);
    let before = bench.ledger.reader().verify_audit(&directory, None).unwrap();
    assert!(bench.close_segment(&directory, 3 * SEGMENT).unwrap().is_none());
    for closed in 1..=3 {
        let head = bench.close_segment(&directory, 0).unwrap().unwrap();
        assert_eq!(head.sequence, closed * SEGMENT);
    }
    assert!(bench.close_segment(&directory, 0).unwrap().is_none());
    let end = bench.ledger.reader().verify_audit(&directory, Some(before)).unwrap();
    assert_eq!(end.sequence, 3 * SEGMENT + 13);
    let all: Vec<_> = (1..=end.sequence).collect();
    for after in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, end.sequence] {
        assert_eq!(numbers(&bench, &directory, after), all[usize::try_from(after).unwrap()..]);
    }

    assert!(bench.prune_segments(&directory, ALL).unwrap().is_none());
    let one = std::fs::metadata(directory.join("audit-000000008193.jsonl")).unwrap().len();
    let pruned = bench.prune_segments(&directory, Kept { bytes: one, ..ALL }).unwrap();
    assert_eq!(pruned.unwrap().sequence, 2 * SEGMENT);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    let reader = bench.ledger.reader();
    assert_eq!(reader.verify_audit(&directory, Some(end)).unwrap().sequence, end.sequence + 1);
    assert!(reader.verify_audit(&directory, pruned).is_ok());
    let old = Head { sequence: 5, ..end };
    let error = reader.verify_audit(&directory, Some(old)).unwrap_err();
    assert!(matches!(error, VerifyError::Forgotten(..)), "{error}");
    assert_eq!(numbers(&bench, &directory, 0)[0], 2 * SEGMENT + 1);

    // All of it by its age; the next entry follows all the same.
    let none = Kept { age: Duration::ZERO, ..ALL };
    std::thread::sleep(Duration::from_millis(10));
    assert!(bench.prune_segments(&directory, none).unwrap().is_some());
    bench.submit();
    let end = bench.ledger.reader().verify_audit(&directory, None).unwrap();
    assert_eq!(end.sequence, 3 * SEGMENT + 16);
}

#[test]
fn what_is_done_to_a_closed_segment_is_found() {
    let (mut bench, directory) = long(2 * SEGMENT);
    bench.close_segment(&directory, 0).unwrap().unwrap();
    bench.close_segment(&directory, 0).unwrap().unwrap();
    let path = directory.join("audit-000000004097.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let without = |gone: usize| {
        let left = lines.iter().enumerate().filter(|(number, _)| *number != gone);
        left.flat_map(|(_, line)| [*line, "\n"]).collect::<String>()
    };
    for (text, found) in [
        (whole.replacen("daemon", "nobody", 1), Broken::Changed(SEGMENT + 1)),
        (without(3), Broken::Missing(SEGMENT + 4)),
        (without(4095), Broken::Missing(2 * SEGMENT)),
        (String::new(), Broken::Missing(SEGMENT + 1)),
        (whole[..whole.len() - 1].to_owned(), Broken::Garbled(path.clone())),
        (whole.clone() + "{}\n", Broken::Garbled(path.clone())),
        (whole.replacen('{', "{\"more\":1,", 1), Broken::Garbled(path.clone())),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = bench.ledger.reader().verify_audit(&directory, None).unwrap_err();
        assert!(matches!(&error, VerifyError::Broken(broken) if *broken == found), "{error}");
        // What does not hold stays where it is, for those who look into it.
        let none = Kept { age: Duration::ZERO, ..ALL };
        assert!(bench.prune_segments(&directory, none).is_err());
        assert!(path.exists());
    }
    std::fs::remove_file(&path).unwrap();
    let error = bench.ledger.reader().verify_audit(&directory, None).unwrap_err();
    assert!(matches!(error, VerifyError::Broken(Broken::NoSegment(_))), "{error}");
}

#[test]
fn an_export_is_whole_by_itself_and_goes_on_where_it_was() {
    let (mut bench, directory) = long(2 * SEGMENT + 5);
    let to = bench.directory.path().join("elsewhere");
    bench.close_segment(&directory, 0).unwrap().unwrap();
    let first = bench.ledger.reader().export_audit(&directory, &to).unwrap();
    assert_eq!(segments::verify_exported(&to, None).unwrap(), first);
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&to).unwrap().map(|one| one.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names().len(), 3);

    bench.close_segment(&directory, 0).unwrap().unwrap();
    append(&mut bench, SEGMENT);
    bench.prune_segments(&directory, Kept { bytes: 0, ..ALL }).unwrap();
    let second = bench.ledger.reader().export_audit(&directory, &to).unwrap();
    assert_eq!(segments::verify_exported(&to, Some(first)).unwrap(), second);
    assert_eq!(bench.ledger.reader().verify_audit(&directory, None).unwrap(), second);
    assert_eq!(names().len(), 4);

    let wrong = Head { sequence: 7, ..first };
    let error = segments::verify_exported(&to, Some(wrong)).unwrap_err();
    assert!(matches!(error, VerifyError::Broken(Broken::Rewritten(_))), "{error}");
    std::fs::remove_file(to.join("audit-000000004097.jsonl")).unwrap();
    let error = segments::verify_exported(&to, None).unwrap_err();
    assert!(matches!(error, VerifyError::Broken(Broken::NoSegment(_))), "{error}");
}

#[test]
fn only_what_was_closed_can_be_removed_from_the_ledger() {
    let (mut bench, directory) = long(SEGMENT + 1);
    bench.close_segment(&directory, 0).unwrap().unwrap();
    let connection = rusqlite::Connection::open(bench.path()).unwrap();
    assert!(connection.execute_batch("DELETE FROM audit").is_err());
    assert_eq!(bench.ledger.reader().audit_end().unwrap(), SEGMENT + 2);
}

#[test]
fn a_segment_that_can_not_be_written_leaves_all_in_the_ledger() {
    let (mut bench, directory) = long(SEGMENT);
    std::fs::write(&directory, "no directory").unwrap();
    assert!(bench.close_segment(&directory, 0).is_err());
    assert_eq!(bench.ledger.reader().verify_audit(&nowhere(), None).unwrap().sequence, SEGMENT);
    std::fs::remove_file(&directory).unwrap();
    // One that a crash left before the ledger knew is written again.
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("audit-000000000001.jsonl"), "half").unwrap();
    bench.close_segment(&directory, 0).unwrap().unwrap();
    assert!(bench.ledger.reader().verify_audit(&directory, None).is_ok());
}

#[test]
fn files_of_forgotten_segments_go_also_after_a_crash_between_two_of_them() {
    let (mut bench, directory) = long(3 * SEGMENT);
    for _ in 0..3 {
        bench.close_segment(&directory, 0).unwrap().unwrap();
    }
    let reader = Reader::open(&bench.path()).unwrap();
    let old = reader.old_segments(&directory, Kept { bytes: 0, ..ALL }).unwrap().unwrap();
    bench.ledger.forget_segments(old).unwrap().unwrap();
    // The crash came after the second had gone.
    std::fs::remove_file(directory.join("audit-000000004097.jsonl")).unwrap();
    std::fs::write(directory.join("audit-notes.txt"), "a stranger's").unwrap();
    closing::remove_forgotten(&reader, &directory).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["audit-notes.txt"]);
    assert!(bench.ledger.forget_segments(old).unwrap().is_none(), "it is done once");
}

#[test]
fn what_was_written_beside_the_loop_is_closed_once() {
    let (mut bench, directory) = long(2 * SEGMENT);
    let reader = Reader::open(&bench.path()).unwrap();
    let written = reader.write_segment(&directory, 0).unwrap().unwrap();
    // The ledger goes on meanwhile.
    bench.submit();
    assert_eq!(bench.ledger.close_segment(written).unwrap().unwrap().sequence, SEGMENT);
    assert!(bench.ledger.close_segment(written).unwrap().is_none());
    bench.ledger.reader().verify_audit(&directory, None).unwrap();
}
