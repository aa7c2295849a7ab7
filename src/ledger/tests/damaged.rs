//! A ledger that is gone, truncated, damaged or locked: what is reported, and what is kept.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::TestLedger;
use crate::{Ledger, LedgerError, LedgerReader};
use mayfly_failure::{Code, Failure};

/// Returns a ledger with some jobs, all checkpointed into one file.
fn ledger() -> (tempfile::TempDir, PathBuf) {
    let mut test = TestLedger::new();
    for _ in 0..200 {
        test.submit();
    }
    let path = test.path();
    let TestLedger { directory, ledger } = test;
    drop(ledger);
    assert!(!directory.path().join("ledger-wal").exists());
    (directory, path)
}

fn assert_damaged(error: &LedgerError, what: &str) {
    assert!(matches!(error, LedgerError::Damaged { .. }), "{what}: {error:?}");
    assert_eq!(error.code(), Code::BadData, "{what}");
    assert!(error.hint().is_some_and(|hint| hint.contains("-wal")), "{what}");
}

#[test]
fn a_truncated_or_damaged_ledger_is_reported_and_not_changed() {
    for (what, reader_sees_it) in [
        ("50 bytes", true),
        ("99 bytes", true),
        ("one page", false),
        ("half", false),
        ("rubbish", true),
        ("a page of rubbish", false),
    ] {
        let (_directory, path) = ledger();
        let mut bytes = fs::read(&path).unwrap();
        let length = bytes.len();
        match what {
            "50 bytes" => bytes.truncate(50),
            "99 bytes" => bytes.truncate(99),
            "one page" => bytes.truncate(4096),
            "half" => bytes.truncate(length / 2 / 4096 * 4096),
            "rubbish" => bytes.fill(b'x'),
            _ => bytes[length - 4096..].fill(b'x'),
        }
        fs::write(&path, &bytes).unwrap();
        assert_damaged(&Ledger::open(&path).unwrap_err(), what);
        if reader_sees_it {
            assert_damaged(&LedgerReader::open(&path).unwrap_err(), what);
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "{what}: it was changed");
    }
}

#[test]
fn a_missing_or_empty_ledger_is_replaced_and_reported_as_lost() {
    let (directory, path) = ledger();
    assert!(!Ledger::open(&path).unwrap().is_lost());
    fs::write(&path, "").unwrap();
    assert_damaged(&LedgerReader::open(&path).unwrap_err(), "zero bytes");
    assert!(Ledger::open(&path).unwrap().is_lost());
    fs::remove_file(&path).unwrap();
    assert!(Ledger::open(&path).unwrap().is_lost());
    assert!(!Ledger::open(&path).unwrap().is_lost());
    assert!(!Ledger::open(&directory.path().join("another")).unwrap().is_lost());
}

#[test]
fn opening_waits_for_another_process_with_the_lock() {
    let mut test = TestLedger::new();
    let other = rusqlite::Connection::open(test.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let release = std::thread::spawn(move || {
        // Longer than the busy timeout.
        std::thread::sleep(Duration::from_secs(7));
        other.execute_batch("ROLLBACK").unwrap();
    });
    test.submit();
    release.join().unwrap();
    test.ledger.reader().verify_audit(&super::no_segments(), None).unwrap();
}

#[test]
fn a_ledger_in_a_read_only_directory_can_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    if nix::unistd::geteuid().is_root() {
        // Root can write everywhere except on read-only mounts: test the function directly.
        let (_directory, path) = ledger();
        let connection = crate::open::immutable(&path).unwrap();
        let jobs: u64 =
            connection.query_row("SELECT count(*) FROM jobs", [], |row| row.get(0)).unwrap();
        assert_eq!(jobs, 200);
        return;
    }
    let (directory, path) = ledger();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o500)).unwrap();
    let found = LedgerReader::open(&path)
        .map(|reader| reader.verify_audit(&super::no_segments(), None).unwrap().sequence);
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(found.unwrap(), 200);
}
