//! Archives that the packer never writes: the outcome of each on a host and in a guest.

mod kinds;
mod names;

use std::io::Read;

use tar::EntryType;

use super::*;
use crate::TreeReader;

/// The outcome of unpacking an archive.
#[derive(Debug)]
enum Outcome {
    /// It is rejected for this reason. Only files beside the destination are checked.
    Rejected(&'static str),
    /// It is accepted and unpacked to this.
    Accepted(&'static [&'static str]),
    /// It is accepted, with a note about a skipped entry, and unpacked to this.
    Noted(&'static str, &'static [&'static str]),
}

use Outcome::{Accepted, Noted, Rejected};

/// The name, the archive, and the outcomes on a host and in a guest.
type Row = (&'static str, Vec<u8>, Outcome, Outcome);

/// Returns a row with the same outcome on both sides.
fn both(what: &'static str, archive: Vec<u8>, outcome: fn() -> Outcome) -> Row {
    (what, archive, outcome(), outcome())
}

fn long(kind: EntryType, text: &[u8]) -> Tar {
    Tar::tree().with(kind, b"././@LongLink", b"", text)
}

fn only_header(kind: EntryType, size: u64) -> Vec<u8> {
    Tar::tree().with_header(header(kind, b"x", b"", size), b"").end()
}

#[test]
fn hostile_archives_have_the_right_outcome_on_both_sides() {
    let rows: Vec<Row> =
        [names::names(), names::links(), kinds::kinds(), kinds::sizes(), kinds::shapes()]
            .into_iter()
            .flatten()
            .collect();
    assert!(rows.len() >= 100, "{}", rows.len());
    let mut wrong = Vec::new();
    for (what, archive, on_host, in_guest) in &rows {
        for (side, origin, expected) in [("host", GUEST, on_host), ("guest", HOST, in_guest)] {
            let dir = TestDir::new();
            let result = dir.unpack(archive, origin);
            dir.assert_nothing_beside();
            let right = match (expected, &result) {
                (Rejected(why), Err(error)) => error.to_string().contains(why),
                (Accepted(lines), Ok(notes)) => notes.lines().is_empty() && dir.listed() == *lines,
                (Noted(why, lines), Ok(notes)) => {
                    notes.lines()[0].contains(why) && dir.listed() == *lines
                }
                _ => false,
            };
            if !right {
                let there = dir.listed();
                wrong.push(format!("{what} ({side}): {result:?}, {there:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_long_name_is_rejected_before_it_is_read() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let archive = only_header(kind, 300 << 20);
        let mut input = Counted(archive[..1024].chain(io::repeat(b'n')), 0);
        let mut reader = TreeReader::new(&mut input);
        reader.next_entry().unwrap();
        reader.next_entry().unwrap_err();
        assert_eq!(input.1, 1024, "{kind:?}");
    }
}

#[test]
fn directories_count_towards_the_limit() {
    let dir = TestDir::new();
    let mut tar = Tar::tree();
    for number in 0..5000 {
        tar = tar.directory(format!("{number}").as_bytes());
    }
    let error = dir.unpack(&tar.end(), ArchiveOrigin::Guest { limit: 8 << 20 }).unwrap_err();
    assert!(matches!(error, TreeError::LimitExceeded { what: "bytes", .. }), "{error}");
    let made = fs::read_dir(dir.path("inner")).unwrap().count();
    assert!((2000..=2048).contains(&made), "{made}");
}

#[test]
fn existing_links_and_files_are_replaced_and_never_written_through() {
    for origin in [GUEST, HOST] {
        let dir = TestDir::new();
        let inner = dir.path("inner");
        fs::create_dir_all(inner.join("d")).unwrap();
        fs::write(inner.join("kept"), "kept").unwrap();
        fs::write(inner.join("file"), "before").unwrap();
        std::os::unix::fs::symlink("../victim", inner.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inner.join("above")).unwrap();
        let destination = Destination {
            path: &inner,
            name: matches!(origin, ArchiveOrigin::Guest { .. }).then_some(b"inner"),
        };
        let unpack = |tar: Tar| unpack(tar.end().as_slice(), destination, origin, |_| Ok(()));
        unpack(Tar::tree().file(b"link", b"x").file(b"file", b"y")).unwrap();
        let there = ["above->..", "d/", "file=y", "kept=kept", "link=x"];
        assert_eq!(dir.listed(), there, "{origin:?}");
        unpack(Tar::tree().file(b"d", b"x")).unwrap_err();
        let linked = unpack(Tar::tree().hard_link(b"new", b"kept"));
        assert!(linked.unwrap_err().to_string().contains("a file outside the archive"));
        // Through an existing link: rejected, or (in a guest) resolved in its own root.
        let through = unpack(Tar::tree().file(b"above/victim", b"x"));
        assert_eq!(through.is_ok(), matches!(origin, ArchiveOrigin::Host { .. }), "{through:?}");
        dir.assert_nothing_beside();
    }
}
