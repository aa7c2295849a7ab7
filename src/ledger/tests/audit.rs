use std::path::PathBuf;
use std::time::Duration;

use super::{TestLedger, no_segments};
use crate::audit::{AuditHead, ChainError, VerifyError};
use crate::segment_lifecycle::{self, SegmentRetention};
use crate::segments::{self, SEGMENT};
use crate::{LedgerError, LedgerReader};

/// Verifies a ledger of ten entries after `sql` tampered with it, as someone with write access can.
fn verify_tampered(sql: &str) -> Result<AuditHead, VerifyError> {
    let mut test = TestLedger::new();
    for _ in 0..10 {
        test.submit();
    }
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    connection
        .execute_batch("DROP TRIGGER audit_is_not_changed; DROP TRIGGER audit_is_not_cut;")
        .unwrap();
    connection.execute_batch(sql).unwrap();
    LedgerReader::open(&test.path()).unwrap().verify_audit(&no_segments(), None)
}

fn chain_error(sql: &str) -> ChainError {
    match verify_tampered(sql) {
        Err(VerifyError::Chain(chain_error)) => chain_error,
        other => panic!("{sql}: {other:?}"),
    }
}

#[test]
fn an_unchanged_chain_is_valid() {
    assert_eq!(verify_tampered("").unwrap().sequence, 10);
}

#[test]
fn a_change_of_any_field_is_detected_at_its_entry() {
    for change in [
        "time = time + 1",
        "actor = 'someone'",
        "action = 'job.finished'",
        "subject = '4711'",
        "detail = '{}'",
        "hash = zeroblob(32)",
        // The same bytes in total, split differently.
        "actor = actor || substr(action, 1, 1), action = substr(action, 2)",
    ] {
        let found = chain_error(&format!("UPDATE audit SET {change} WHERE sequence = 4"));
        assert_eq!(found, ChainError::Changed(4), "{change}");
    }
    let found = chain_error("UPDATE audit SET previous = zeroblob(32) WHERE sequence = 4");
    assert_eq!(found, ChainError::Unlinked(4));
}

#[test]
fn a_missing_entry_is_detected_anywhere() {
    assert_eq!(chain_error("DELETE FROM audit WHERE sequence = 1"), ChainError::Missing(1));
    assert_eq!(chain_error("DELETE FROM audit WHERE sequence = 5"), ChainError::Missing(5));
    assert_eq!(
        chain_error(
            "DELETE FROM audit WHERE sequence = 5;
                UPDATE audit SET sequence = sequence - 1 WHERE sequence > 5"
        ),
        ChainError::Unlinked(5)
    );
    assert_eq!(
        chain_error("DELETE FROM audit WHERE sequence > 8"),
        ChainError::Truncated { found: 8, head: 10 }
    );
    assert_eq!(chain_error("DELETE FROM audit"), ChainError::Truncated { found: 0, head: 10 });
    assert_eq!(
        chain_error("DELETE FROM meta WHERE key = 'audit_head'"),
        ChainError::Truncated { found: 10, head: 0 }
    );
}

#[test]
fn reordering_is_detected() {
    let swap = "UPDATE audit SET sequence = -1 WHERE sequence = 3;
        UPDATE audit SET sequence = 3 WHERE sequence = 4;
        UPDATE audit SET sequence = 4 WHERE sequence = -1;";
    assert_eq!(chain_error(swap), ChainError::Unlinked(3));
}

#[test]
fn an_inserted_entry_is_detected() {
    let insert = "INSERT INTO audit SELECT 11, time, actor, action, subject, detail, previous, hash
        FROM audit WHERE sequence = 10";
    assert_eq!(chain_error(insert), ChainError::Unlinked(11));
}

#[test]
fn a_head_kept_elsewhere_detects_what_the_ledger_alone_can_not() {
    let mut test = TestLedger::new();
    for _ in 0..3 {
        test.submit();
    }
    let kept = test.ledger.reader().verify_audit(&no_segments(), None).unwrap();
    let kept: AuditHead = kept.to_string().parse().unwrap();
    test.submit();
    let reader = LedgerReader::open(&test.path()).unwrap();
    assert_eq!(reader.verify_audit(&no_segments(), Some(kept)).unwrap().sequence, 4);
    // The end and the head are both cut back: a valid chain, but not the original.
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    connection
        .execute_batch(
            "DROP TRIGGER audit_is_not_cut;
             DELETE FROM audit WHERE sequence > 2;
             UPDATE meta SET value = (SELECT '2:' || lower(hex(hash)) FROM audit
                 WHERE sequence = 2) WHERE key = 'audit_head';",
        )
        .unwrap();
    assert_eq!(reader.verify_audit(&no_segments(), None).unwrap().sequence, 2);
    let error = reader.verify_audit(&no_segments(), Some(kept)).unwrap_err();
    assert!(matches!(error, VerifyError::Chain(ChainError::Rewritten(head)) if head == kept));
}

#[test]
fn the_table_rejects_changes() {
    let mut test = TestLedger::new();
    test.submit();
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    for sql in ["DELETE FROM audit", "UPDATE audit SET actor = 'me'"] {
        assert!(connection.execute_batch(sql).is_err(), "{sql}");
    }
}

#[test]
fn entries_are_exported_in_order() {
    let mut test = TestLedger::new();
    let ids = [test.submit(), test.submit(), test.submit()];
    let mut subjects = Vec::new();
    test.ledger
        .reader()
        .audit_entries::<LedgerError>(1, |line| {
            assert!(serde_json::from_str::<serde_json::Value>(&line.detail).is_ok());
            subjects.push(line.subject.clone());
            Ok(())
        })
        .unwrap();
    assert_eq!(subjects, [ids[1].to_string(), ids[2].to_string()]);
}

/// Creates a ledger with this many entries. Returns it and the directory of its segments.
fn with_entries(entries: u64) -> (TestLedger, PathBuf) {
    let mut test = TestLedger::new();
    let directory = test.directory.path().join("audit");
    append(&mut test, entries);
    (test, directory)
}

fn append(test: &mut TestLedger, entries: u64) {
    test.ledger
        .change("test", |change| {
            let detail = serde_json::json!({ "what": "\"ü\\\u{0}\n" });
            (0..entries).try_for_each(|number| change.audit("test", &number.to_string(), &detail))
        })
        .unwrap();
}

fn numbers(test: &TestLedger, directory: &std::path::Path, after: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    test.ledger
        .reader()
        .audit_history::<VerifyError>(directory, after, |line| {
            numbers.push(line.sequence);
            Ok(())
        })
        .unwrap();
    numbers
}

const ALL: SegmentRetention = SegmentRetention { bytes: u64::MAX, age: Duration::MAX };

#[test]
fn a_chain_is_valid_across_closed_segments_and_after_pruning() {
    let (mut test, directory) = with_entries(3 * SEGMENT + 10);
    let before = test.ledger.reader().verify_audit(&directory, None).unwrap();
    assert!(test.close_segment(&directory, 3 * SEGMENT).unwrap().is_none());
    for closed in 1..=3 {
        let head = test.close_segment(&directory, 0).unwrap().unwrap();
        assert_eq!(head.sequence, closed * SEGMENT);
    }
    assert!(test.close_segment(&directory, 0).unwrap().is_none());
    let end = test.ledger.reader().verify_audit(&directory, Some(before)).unwrap();
    assert_eq!(end.sequence, 3 * SEGMENT + 13);
    let all: Vec<_> = (1..=end.sequence).collect();
    for after in [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, end.sequence] {
        assert_eq!(numbers(&test, &directory, after), all[usize::try_from(after).unwrap()..]);
    }

    assert!(test.prune_segments(&directory, ALL).unwrap().is_none());
    let one = std::fs::metadata(directory.join("audit-000000008193.jsonl")).unwrap().len();
    let pruned = test.prune_segments(&directory, SegmentRetention { bytes: one, ..ALL }).unwrap();
    assert_eq!(pruned.unwrap().sequence, 2 * SEGMENT);
    assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
    let reader = test.ledger.reader();
    assert_eq!(reader.verify_audit(&directory, Some(end)).unwrap().sequence, end.sequence + 1);
    assert!(reader.verify_audit(&directory, pruned).is_ok());
    let old = AuditHead { sequence: 5, ..end };
    let error = reader.verify_audit(&directory, Some(old)).unwrap_err();
    assert!(matches!(error, VerifyError::Pruned(..)), "{error}");
    assert_eq!(numbers(&test, &directory, 0)[0], 2 * SEGMENT + 1);

    // Prunes all by age; the next entry still follows.
    let none = SegmentRetention { age: Duration::ZERO, ..ALL };
    std::thread::sleep(Duration::from_millis(10));
    assert!(test.prune_segments(&directory, none).unwrap().is_some());
    test.submit();
    let end = test.ledger.reader().verify_audit(&directory, None).unwrap();
    assert_eq!(end.sequence, 3 * SEGMENT + 16);
}

#[test]
fn changes_of_a_closed_segment_are_detected() {
    let (mut test, directory) = with_entries(2 * SEGMENT);
    test.close_segment(&directory, 0).unwrap().unwrap();
    test.close_segment(&directory, 0).unwrap().unwrap();
    let path = directory.join("audit-000000004097.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = whole.lines().collect();
    let without = |gone: usize| {
        let left = lines.iter().enumerate().filter(|(number, _)| *number != gone);
        left.flat_map(|(_, line)| [*line, "\n"]).collect::<String>()
    };
    for (text, found) in [
        (whole.replacen("daemon", "nobody", 1), ChainError::Changed(SEGMENT + 1)),
        (without(3), ChainError::Missing(SEGMENT + 4)),
        (without(4095), ChainError::Missing(2 * SEGMENT)),
        (String::new(), ChainError::Missing(SEGMENT + 1)),
        (whole[..whole.len() - 1].to_owned(), ChainError::DamagedSegment(path.clone())),
        (whole.clone() + "{}\n", ChainError::DamagedSegment(path.clone())),
        (whole.replacen('{', "{\"more\":1,", 1), ChainError::DamagedSegment(path.clone())),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = test.ledger.reader().verify_audit(&directory, None).unwrap_err();
        assert!(
            matches!(&error, VerifyError::Chain(chain_error) if *chain_error == found),
            "{error}"
        );
        // A damaged segment is not removed, so that it can be examined.
        let none = SegmentRetention { age: Duration::ZERO, ..ALL };
        assert!(test.prune_segments(&directory, none).is_err());
        assert!(path.exists());
    }
    std::fs::remove_file(&path).unwrap();
    let error = test.ledger.reader().verify_audit(&directory, None).unwrap_err();
    assert!(matches!(error, VerifyError::Chain(ChainError::MissingSegment(_))), "{error}");
}

#[test]
fn an_export_is_complete_and_can_be_continued() {
    let (mut test, directory) = with_entries(2 * SEGMENT + 5);
    let to = test.directory.path().join("elsewhere");
    test.close_segment(&directory, 0).unwrap().unwrap();
    let first = test.ledger.reader().export_audit(&directory, &to).unwrap();
    assert_eq!(segments::verify_exported(&to, None).unwrap(), first);
    let names = || {
        let mut names: Vec<_> =
            std::fs::read_dir(&to).unwrap().map(|one| one.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names().len(), 3);

    test.close_segment(&directory, 0).unwrap().unwrap();
    append(&mut test, SEGMENT);
    test.prune_segments(&directory, SegmentRetention { bytes: 0, ..ALL }).unwrap();
    let second = test.ledger.reader().export_audit(&directory, &to).unwrap();
    assert_eq!(segments::verify_exported(&to, Some(first)).unwrap(), second);
    assert_eq!(test.ledger.reader().verify_audit(&directory, None).unwrap(), second);
    assert_eq!(names().len(), 4);

    let wrong = AuditHead { sequence: 7, ..first };
    let error = segments::verify_exported(&to, Some(wrong)).unwrap_err();
    assert!(matches!(error, VerifyError::Chain(ChainError::Rewritten(_))), "{error}");
    std::fs::remove_file(to.join("audit-000000004097.jsonl")).unwrap();
    let error = segments::verify_exported(&to, None).unwrap_err();
    assert!(matches!(error, VerifyError::Chain(ChainError::MissingSegment(_))), "{error}");
}

#[test]
fn only_closed_entries_can_be_removed_from_the_ledger() {
    let (mut test, directory) = with_entries(SEGMENT + 1);
    test.close_segment(&directory, 0).unwrap().unwrap();
    let connection = rusqlite::Connection::open(test.path()).unwrap();
    assert!(connection.execute_batch("DELETE FROM audit").is_err());
    assert_eq!(test.ledger.reader().audit_end().unwrap(), SEGMENT + 2);
}

#[test]
fn a_failed_segment_write_leaves_all_entries_in_the_ledger() {
    let (mut test, directory) = with_entries(SEGMENT);
    std::fs::write(&directory, "no directory").unwrap();
    assert!(test.close_segment(&directory, 0).is_err());
    assert_eq!(test.ledger.reader().verify_audit(&no_segments(), None).unwrap().sequence, SEGMENT);
    std::fs::remove_file(&directory).unwrap();
    // A file that a crash left behind is written again.
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("audit-000000000001.jsonl"), "half").unwrap();
    test.close_segment(&directory, 0).unwrap().unwrap();
    assert!(test.ledger.reader().verify_audit(&directory, None).is_ok());
}

#[test]
fn files_of_pruned_segments_are_removed_also_after_a_crash_in_between() {
    let (mut test, directory) = with_entries(3 * SEGMENT);
    for _ in 0..3 {
        test.close_segment(&directory, 0).unwrap().unwrap();
    }
    let reader = LedgerReader::open(&test.path()).unwrap();
    let old =
        reader.old_segments(&directory, SegmentRetention { bytes: 0, ..ALL }).unwrap().unwrap();
    test.ledger.prune_segments(old).unwrap().unwrap();
    // The crash came after the second file was removed.
    std::fs::remove_file(directory.join("audit-000000004097.jsonl")).unwrap();
    std::fs::write(directory.join("audit-notes.txt"), "a stranger's").unwrap();
    segment_lifecycle::remove_pruned_files(&reader, &directory).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(&directory).unwrap().map(|one| one.unwrap().file_name()).collect();
    assert_eq!(left, ["audit-notes.txt"]);
    assert!(test.ledger.prune_segments(old).unwrap().is_none(), "it is pruned once");
}

#[test]
fn a_segment_written_outside_the_loop_is_closed_once() {
    let (mut test, directory) = with_entries(2 * SEGMENT);
    let reader = LedgerReader::open(&test.path()).unwrap();
    let written = reader.write_segment(&directory, 0).unwrap().unwrap();
    // The ledger changes meanwhile.
    test.submit();
    assert_eq!(test.ledger.close_segment(written).unwrap().unwrap().sequence, SEGMENT);
    assert!(test.ledger.close_segment(written).unwrap().is_none());
    test.ledger.reader().verify_audit(&directory, None).unwrap();
}
