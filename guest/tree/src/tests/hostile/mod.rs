//! Archives that no packer writes, on a host and in a guest: the right outcome of each.

mod kinds;
mod names;

use std::io::Read;

use tar::EntryType;

use super::*;
use crate::Reader;

/// What comes of an archive.
#[derive(Debug)]
enum Outcome {
    /// It is refused, for this reason; what is there then is not looked at, but for what is beside.
    Refused(&'static str),
    /// It is taken, and this is there.
    Taken(&'static [&'static str]),
    /// It is taken but for something that is noted, and this is there.
    Noted(&'static str, &'static [&'static str]),
}

use Outcome::{Noted, Refused, Taken};

/// A name, the archive, what comes of it on a host, and in a guest.
type Row = (&'static str, Vec<u8>, Outcome, Outcome);

/// A row that comes out alike on both sides.
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
            let place = Place::new();
            let result = place.unpack(archive, origin);
            place.assert_nothing_beside();
            let right = match (expected, &result) {
                (Refused(why), Err(error)) => error.to_string().contains(why),
                (Taken(lines), Ok(notes)) => notes.lines().is_empty() && place.listed() == *lines,
                (Noted(why, lines), Ok(notes)) => {
                    notes.lines()[0].contains(why) && place.listed() == *lines
                }
                _ => false,
            };
            if !right {
                let there = place.listed();
                wrong.push(format!("{what} ({side}): {result:?}, {there:?}, not {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_long_name_is_refused_before_it_is_read() {
    for kind in [EntryType::GNULongName, EntryType::GNULongLink, EntryType::XHeader] {
        let archive = only_header(kind, 300 << 20);
        let mut input = Counted(archive[..1024].chain(io::repeat(b'n')), 0);
        let mut reader = Reader::new(&mut input);
        reader.next_entry().unwrap();
        reader.next_entry().unwrap_err();
        assert_eq!(input.1, 1024, "{kind:?}");
    }
}

#[test]
fn directories_cost_what_they_take_on_the_disk() {
    let place = Place::new();
    let mut tar = Tar::tree();
    for number in 0..5000 {
        tar = tar.directory(format!("{number}").as_bytes());
    }
    let error = place.unpack(&tar.end(), Origin::Guest { limit: 8 << 20 }).unwrap_err();
    assert!(matches!(error, TreeError::TooMuch { what: "bytes", .. }), "{error}");
    let made = fs::read_dir(place.path("inner")).unwrap().count();
    assert!((2000..=2048).contains(&made), "{made}");
}

#[test]
fn links_and_files_that_were_there_are_replaced_and_never_written_through() {
    for origin in [GUEST, HOST] {
        let place = Place::new();
        let inner = place.path("inner");
        fs::create_dir_all(inner.join("d")).unwrap();
        fs::write(inner.join("kept"), "kept").unwrap();
        fs::write(inner.join("file"), "before").unwrap();
        std::os::unix::fs::symlink("../victim", inner.join("link")).unwrap();
        std::os::unix::fs::symlink("..", inner.join("above")).unwrap();
        let destination = Destination {
            path: &inner,
            name: matches!(origin, Origin::Guest { .. }).then_some(b"inner"),
        };
        let unpack = |tar: Tar| unpack(tar.end().as_slice(), destination, origin, |_| Ok(()));
        unpack(Tar::tree().file(b"link", b"x").file(b"file", b"y")).unwrap();
        let there = ["above->..", "d/", "file=y", "kept=kept", "link=x"];
        assert_eq!(place.listed(), there, "{origin:?}");
        unpack(Tar::tree().file(b"d", b"x")).unwrap_err();
        let linked = unpack(Tar::tree().hard_link(b"new", b"kept"));
        assert!(linked.unwrap_err().to_string().contains("no file of its own tree"));
        // Through a link that was there: nowhere, or (in a guest) where its own root is.
        let through = unpack(Tar::tree().file(b"above/victim", b"x"));
        assert_eq!(through.is_ok(), matches!(origin, Origin::Host { .. }), "{through:?}");
        place.assert_nothing_beside();
    }
}
