//! Names and links that try to leave the tree.
#![expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]

use tar::EntryType;

use super::*;

pub(super) fn names() -> Vec<Row> {
    let deep = [&b"d/".repeat(crate::MAX_DEPTH + 1)[..], b"x"].concat();
    let out = || Rejected("leads out of the tree");
    vec![
        both("up", Tar::tree().file(b"../escaped", b"x").end(), out),
        both("up after going down", Tar::tree().file(b"a/../../escaped", b"x").end(), out),
        both("up, and down again", Tar::tree().file(b"a/../x", b"x").end(), out),
        both("up, a directory", Tar::tree().directory(b"..").end(), out),
        both("up, a directory below", Tar::tree().directory(b"../escaped").end(), out),
        both("up, a link", Tar::tree().symlink(b"../escaped", b"victim").end(), out),
        both(
            "up, by a long name",
            long(EntryType::GNULongName, b"../escaped").file(b"x", b"x").end(),
            out,
        ),
        both("absolute", Tar::tree().file(b"/escaped", b"x").end(), || {
            Rejected("is an absolute path")
        }),
        both("two slashes", Tar::tree().file(b"//escaped", b"x").end(), || {
            Rejected("is an absolute path")
        }),
        both("no name", Tar::tree().file(b"", b"x").end(), || Rejected("has no name")),
        both("the root again", Tar::tree().directory(b".").end(), || Rejected("is a duplicate")),
        both("the root again, as a link", Tar::tree().symlink(b"./", b"x").end(), || {
            Rejected("is a duplicate")
        }),
        both("the root again, as a file", Tar::tree().file(b"./.", b"x").end(), || {
            Rejected("is a duplicate")
        }),
        both(
            "dots and slashes within",
            Tar::tree().directory(b"a/").file(b"./a//./b", b"x").end(),
            || Accepted(&["a/", "a/b=x"]),
        ),
        both(
            "a zero in a name",
            long(EntryType::GNULongName, b"a\0b").file(b"x", b"").end(),
            || Rejected("has a NUL byte in its name"),
        ),
        both(
            "a component too long",
            long(EntryType::GNULongName, &[b'n'; 256]).file(b"x", b"").end(),
            || Rejected("has a name that is too long"),
        ),
        both(
            "as long as can be",
            long(EntryType::GNULongName, &[b'n'; 255]).file(b"x", b"y").end(),
            || Accepted(&["nnnnnnnn…=y"]),
        ),
        both("too deep", long(EntryType::GNULongName, &deep).file(b"x", b"").end(), || {
            Rejected("is nested too deeply")
        }),
        both("any bytes", Tar::tree().file(b"\xff\x01\n", b"x").end(), || {
            Accepted(&["\\xff\\x01\\n=x"])
        }),
        both("an escape sequence, refused", Tar::tree().file(b"../\x1b[2J", b"x").end(), || {
            Rejected("\"../\\u{1b}[2J\" leads out")
        }),
        both("two cases", Tar::tree().file(b"a", b"x").file(b"A", b"y").end(), || {
            Accepted(&["A=y", "a=x"])
        }),
        both("the same twice", Tar::tree().file(b"a", b"x").file(b"a", b"y").end(), || {
            Accepted(&["a=y"])
        }),
        both("a directory twice", Tar::tree().directory(b"a").directory(b"a").end(), || {
            Accepted(&["a/"])
        }),
        both("in no directory", Tar::tree().file(b"a/b", b"x").end(), || {
            Rejected("can't create \"a/b\"")
        }),
        both("in a file", Tar::tree().file(b"a", b"x").file(b"a/b", b"x").end(), || {
            Rejected("can't create \"a/b\"")
        }),
        both(
            "a directory where a file is",
            Tar::tree().file(b"a", b"x").directory(b"a").end(),
            || Rejected("exists and is not a directory"),
        ),
        both(
            "a file where a directory is",
            Tar::tree().directory(b"a").file(b"a", b"x").end(),
            || Rejected("exists and is a directory"),
        ),
        both(
            "a link where a directory is",
            Tar::tree().directory(b"a").symlink(b"a", b"b").end(),
            || Rejected("exists and is a directory"),
        ),
        both(
            "a link where a directory with something is",
            Tar::tree().directory(b"a").file(b"a/x", b"").symlink(b"a", b"b").end(),
            || Rejected("exists and is a directory"),
        ),
    ]
}

pub(super) fn links() -> Vec<Row> {
    let leads_out = "is a link that leads out of the tree";
    let no_file = || Rejected("is a hard link to a file outside the archive");
    let out = || Rejected("is a link that leads out of the tree");
    vec![
        (
            "through a link to above",
            Tar::tree().symlink(b"l", b"..").file(b"l/escaped", b"x").end(),
            Rejected("can't create \"l/escaped\""),
            // As in `/`: `..` of the root is the root.
            Accepted(&["escaped=x", "l->.."]),
        ),
        (
            "through an absolute link",
            Tar::tree().symlink(b"l", b"/etc").file(b"l/escaped", b"x").end(),
            Rejected("can't create \"l/escaped\""),
            Rejected("can't create \"l/escaped\""),
        ),
        (
            "through a link inside",
            Tar::tree().directory(b"a").symlink(b"l", b"a").file(b"l/b", b"x").end(),
            Rejected("can't create \"l/b\""),
            Accepted(&["a/", "a/b=x", "l->a"]),
        ),
        (
            "a file in the place of a link",
            Tar::tree().symlink(b"l", b"../victim").file(b"l", b"x").end(),
            Noted(leads_out, &["l=x"]),
            Accepted(&["l=x"]),
        ),
        both("a link inside", Tar::tree().directory(b"a").symlink(b"a/l", b"../b").end(), || {
            Accepted(&["a/", "a/l->../b"])
        }),
        (
            "an absolute link",
            Tar::tree().symlink(b"l", b"/etc/shadow").end(),
            Noted(leads_out, &[]),
            Accepted(&["l->/etc/shadow"]),
        ),
        (
            "a link to above",
            Tar::tree().directory(b"a").symlink(b"a/l", b"../../victim").end(),
            Noted(leads_out, &["a/"]),
            Accepted(&["a/", "a/l->../../victim"]),
        ),
        (
            "a link that climbs behind another",
            Tar::tree()
                .directory(b"a")
                .symlink(b"a/l", b".")
                .symlink(b"m", b"a/l/../../victim")
                .end(),
            Noted(leads_out, &["a/", "a/l->."]),
            Accepted(&["a/", "a/l->.", "m->a/l/../../victim"]),
        ),
        both("a link to nothing", Tar::tree().symlink(b"l", b"").end(), || {
            Rejected("is a link without a target")
        }),
        both("a hard link to above", Tar::tree().hard_link(b"h", b"../victim").end(), out),
        both("an absolute hard link", Tar::tree().hard_link(b"h", b"/etc/passwd").end(), out),
        both("a hard link to nothing", Tar::tree().hard_link(b"h", b"x").end(), no_file),
        both(
            "a hard link to itself",
            Tar::tree().file(b"h", b"x").hard_link(b"h", b"h").end(),
            no_file,
        ),
        both(
            "a hard link to a directory",
            Tar::tree().directory(b"a").hard_link(b"h", b"a").end(),
            no_file,
        ),
        both("a hard link to the root", Tar::tree().hard_link(b"h", b".").end(), no_file),
        both(
            "a hard link to a link",
            Tar::tree().file(b"f", b"").symlink(b"l", b"f").hard_link(b"h", b"l").end(),
            no_file,
        ),
        both("a hard link", Tar::tree().file(b"f", b"x").hard_link(b"h", b"f").end(), || {
            Accepted(&["f=x", "h=x"])
        }),
        both(
            "writing to a hard link",
            Tar::tree().file(b"f", b"x").hard_link(b"h", b"f").file(b"h", b"y").end(),
            || Accepted(&["f=x", "h=y"]),
        ),
        both(
            "a hard link with content",
            Tar::tree().file(b"f", b"").with(EntryType::Link, b"h", b"f", b"x").end(),
            || Rejected("has content"),
        ),
    ]
}
