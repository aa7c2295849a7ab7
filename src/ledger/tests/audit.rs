use super::Bench;
use crate::ledger::audit::{Broken, Head, VerifyError};
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
    Reader::open(&bench.path()).unwrap().verify_audit(None)
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
    let kept = bench.ledger.reader().verify_audit(None).unwrap();
    let kept: Head = kept.to_string().parse().unwrap();
    bench.submit();
    let reader = Reader::open(&bench.path()).unwrap();
    assert_eq!(reader.verify_audit(Some(kept)).unwrap().sequence, 4);
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
    assert_eq!(reader.verify_audit(None).unwrap().sequence, 2);
    let error = reader.verify_audit(Some(kept)).unwrap_err();
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
