//! Destinations: chosen by the user, never by the archive.

use super::*;

/// The existing entries, the destination's path, the requested name, whether a directory comes, and
/// the resulting path (none if it is rejected).
type Row = (&'static str, &'static str, &'static str, bool, Option<&'static str>);

const ROWS: [Row; 22] = [
    // A single file.
    ("", "out", "file", false, Some("out")),
    ("", "new/out", "file", false, Some("new/out")),
    ("", "new/", "file", false, Some("new/file")),
    ("out/", "out", "file", false, Some("out/file")),
    ("out/", "out/", "file", false, Some("out/file")),
    ("out/.bashrc", "out", "file", false, Some("out/file")),
    ("out/.bashrc", "out/.", "file", false, Some("out/file")),
    ("out/file", "out", "file", false, Some("out/file")),
    ("out", "out", "file", false, Some("out")),
    ("out/file/x", "out", "file", false, None),
    // A source without a name can't become a file in a directory.
    ("out/", "out", "..", false, None),
    ("out/", "out", "", false, None),
    ("", "out", "..", false, Some("out")),
    // A directory.
    ("", "out", "tree", true, Some("out/.bashrc")),
    ("", "out/", "tree", true, Some("out/.bashrc")),
    ("out/", "out", "tree", true, Some("out/.bashrc")),
    ("tree/kept", "tree", "tree", true, Some("tree/.bashrc")),
    ("tree/.bashrc", "tree/", "tree", true, Some("tree/.bashrc")),
    ("out/kept", "out", "tree", true, Some("out/tree/.bashrc")),
    ("out/.bashrc", "out", "file", true, Some("out/file/.bashrc")),
    ("out/kept", "out", "..", true, None),
    ("out", "out", "tree", true, None),
];

#[test]
fn the_name_on_the_host_is_the_requested_one() {
    for row @ (before, path, name, is_directory, expected) in ROWS {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let there = root.join(before);
        if before.ends_with('/') {
            fs::create_dir_all(&there).unwrap();
        } else if !before.is_empty() {
            fs::create_dir_all(there.parent().unwrap()).unwrap();
            fs::write(&there, "before").unwrap();
        }
        // Whatever name the guest sends.
        let tar = if is_directory {
            Tar::tree().file(b".bashrc", b"new")
        } else {
            Tar::default().file(b".bashrc", b"new")
        };
        let path = format!("{}/{path}", root.display());
        let destination = Destination { path: Path::new(&path), name: Some(name.as_bytes()) };
        let result = unpack(tar.end().as_slice(), destination, GUEST, |_| Ok(()));
        match expected {
            Some(expected) => {
                result.unwrap();
                assert_eq!(fs::read_to_string(root.join(expected)).unwrap(), "new", "{row:?}");
            }
            None => drop(result.unwrap_err()),
        }
        if !before.is_empty() && !before.ends_with('/') && expected != Some(before) {
            assert_eq!(fs::read_to_string(there).unwrap(), "before", "{row:?}");
        }
    }
}

#[test]
fn a_link_as_destination_is_not_replaced_by_a_guests_file() {
    let dir = TestDir::new();
    std::os::unix::fs::symlink("victim", dir.path("inner")).unwrap();
    let tar = Tar::default().file(b"x", b"y").end();
    let error = dir.unpack(&tar, GUEST).unwrap_err().to_string();
    assert!(error.contains("is a link"), "{error}");
    let destination = Destination { path: Path::new("/dev/null"), name: Some(b"x") };
    let error = unpack(tar.as_slice(), destination, GUEST, |_| Ok(())).unwrap_err().to_string();
    assert_eq!(error, "\"/dev/null\" is neither a file nor a directory");
}

#[test]
fn in_a_guest_a_file_goes_into_a_directory_under_its_own_name() {
    for (path, expected) in [("d", "d/name"), ("d/", "d/name"), ("new/", "new/name"), ("x", "x")] {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("d")).unwrap();
        let tar = Tar::default().file(b"name", b"new").end();
        let path = format!("{}/{path}", directory.path().display());
        let destination = Destination { path: Path::new(&path), name: None };
        unpack(tar.as_slice(), destination, HOST, |_| Ok(())).unwrap();
        let read = fs::read_to_string(directory.path().join(expected));
        assert_eq!(read.unwrap(), "new", "{path}");
    }
}

#[test]
fn in_a_guest_directories_that_are_links_stay() {
    // Such as `/bin` of a merged `/usr`, relative and absolute.
    for target in ["usr/bin", "/usr/bin"] {
        let dir = TestDir::new();
        let inner = dir.path("inner");
        fs::create_dir_all(inner.join("usr/bin")).unwrap();
        std::os::unix::fs::symlink(target, inner.join("bin")).unwrap();
        let tar = Tar::tree().directory(b"bin").file(b"bin/tool", b"x").end();
        dir.unpack(&tar, HOST).unwrap();
        assert!(inner.join("bin").is_symlink());
        assert_eq!(fs::read_to_string(inner.join("usr/bin/tool")).unwrap(), "x");
        let destination = Destination { path: &inner, name: Some(b"inner") };
        let on_host = unpack(tar.as_slice(), destination, GUEST, |_| Ok(()));
        let error = on_host.unwrap_err().to_string();
        assert_eq!(error, "\"bin\" exists and is not a directory");
    }
}
