//! Types and sizes of entries, and the structure of an archive.
#![expect(clippy::too_many_lines, reason = "a table is as long as it has rows")]

use tar::{EntryType, GnuExtSparseHeader, Header};

use super::*;

/// Returns a sparse file with a size, a map, and a declared content length.
fn sparse(size: u64, map: &[(u64, u64)], held: u64, data: &[u8]) -> Vec<u8> {
    let mut header = header(EntryType::GNUSparse, b"sparse", b"", held);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(size);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(map) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    Tar::tree().with_header(header, data).end()
}

#[test]
fn a_byte_between_holes_counts_as_a_page() {
    let map = [(0, 1), (8192, 1), (16384, 1), (24576, 1)];
    let archive = sparse(1 << 20, &map, 4, b"abcd");
    // The entry, and four pages.
    let unpack =
        |pages: u64| TestDir::new().unpack(&archive, ArchiveOrigin::Guest { limit: pages * 4096 });
    let error = unpack(4).unwrap_err();
    assert!(matches!(error, TreeError::LimitExceeded { what: "bytes", .. }), "{error}");
    unpack(5).unwrap();
}

fn endless_map() -> Vec<u8> {
    let mut header = header(EntryType::GNUSparse, b"sparse", b"", 0);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(1 << 40);
    gnu.set_is_extended(true);
    let mut tar = Tar::tree().with_header(header, b"");
    let mut at = 0;
    for _ in 0..crate::MAX_DATA_RANGES / 21 + 2 {
        let mut block = GnuExtSparseHeader::new();
        for slot in block.sparse_mut() {
            slot.set_offset(at);
            slot.set_length(1);
            at += 4096;
        }
        block.set_is_extended(true);
        tar = tar.with_raw(block.as_bytes());
    }
    tar.end()
}

fn with_mode(kind: EntryType, mode: u32) -> Vec<u8> {
    let mut header = header(kind, b"x", b"", 0);
    header.set_mode(mode);
    Tar::tree().with_header(header, b"").end()
}

fn changed(change: fn(&mut Header)) -> Vec<u8> {
    let mut header = header(EntryType::Regular, b"x", b"", 0);
    header.set_cksum();
    change(&mut header);
    Tar::tree().with_raw(header.as_bytes()).end()
}

fn cut(archive: &[u8], bytes: usize) -> Vec<u8> {
    archive[..archive.len() - bytes].to_vec()
}

pub(super) fn kinds() -> Vec<Row> {
    vec![
        both("a character device", Tar::tree().with(EntryType::Char, b"x", b"", b"").end(), || {
            Noted("is a device", &[])
        }),
        both("a block device", Tar::tree().with(EntryType::Block, b"x", b"", b"").end(), || {
            Noted("is a device", &[])
        }),
        (
            "a pipe",
            Tar::tree().with(EntryType::Fifo, b"x", b"", b"").end(),
            Noted("is a pipe", &[]),
            Accepted(&["x|"]),
        ),
        both("a socket", Tar::tree().with(EntryType::Fifo, b"x", b"socket", b"").end(), || {
            Noted("is a socket", &[])
        }),
        (
            "set-id bits",
            with_mode(EntryType::Regular, 0o6755),
            Accepted(&["x="]),
            Accepted(&["x= 6000"]),
        ),
        (
            "a sticky file",
            with_mode(EntryType::Regular, 0o1644),
            Accepted(&["x="]),
            Accepted(&["x= 1000"]),
        ),
        both("a mode of all ones", with_mode(EntryType::Directory, 0o777), || Accepted(&["x/"])),
        both("a contiguous file", only_header(EntryType::Continuous, 0), || {
            Rejected("has an unknown type")
        }),
        both("a kind that is none", only_header(EntryType::new(b'Z'), 0), || {
            Rejected("has an unknown type")
        }),
        both("a volume's label", only_header(EntryType::new(b'V'), 0), || {
            Rejected("has an unknown type")
        }),
        both("a part of another volume", only_header(EntryType::new(b'M'), 9), || {
            Rejected("has an unknown type")
        }),
        both(
            "a directory with content",
            Tar::tree().with(EntryType::Directory, b"x", b"", b"y").end(),
            || Rejected("has content"),
        ),
        both(
            "a link with content",
            Tar::tree().with(EntryType::Symlink, b"x", b"y", b"y").end(),
            || Rejected("has content"),
        ),
        both(
            "a pipe with content",
            Tar::tree().with(EntryType::Fifo, b"x", b"", b"y").end(),
            || Rejected("has content"),
        ),
    ]
}

pub(super) fn sizes() -> Vec<Row> {
    let damaged = || Rejected("the archive is damaged");
    let extension = || Rejected("uses an unsupported extension");
    let name = || Rejected("more than 4095 bytes in a name");
    vec![
        both("a name of 300 MB", only_header(EntryType::GNULongName, 300 << 20), name),
        both("a link's target of 300 MB", only_header(EntryType::GNULongLink, 300 << 20), name),
        both(
            "a name of 4,097 bytes",
            long(EntryType::GNULongName, &[b'n'; 4097]).file(b"x", b"").end(),
            name,
        ),
        both("a name of 2^63 bytes", only_header(EntryType::GNULongName, 1 << 63), name),
        both(
            "two names",
            long(EntryType::GNULongName, b"a")
                .with(EntryType::GNULongName, b"l", b"", b"b")
                .file(b"x", b"")
                .end(),
            damaged,
        ),
        both("a name without an entry", long(EntryType::GNULongName, b"a").end(), damaged),
        both("a target without an entry", long(EntryType::GNULongLink, b"a").end(), damaged),
        both("an extended header of 300 MB", only_header(EntryType::XHeader, 300 << 20), extension),
        both(
            "an extended header",
            Tar::tree().with(EntryType::XHeader, b"x", b"", b"12 path=../x\n").end(),
            extension,
        ),
        both(
            "a global header",
            Tar::tree().with(EntryType::XGlobalHeader, b"x", b"", b"12 path=../x\n").end(),
            extension,
        ),
        both("a file of 2^62 bytes", only_header(EntryType::Regular, 1 << 62), || {
            Rejected("bytes in a file")
        }),
        both("a file larger than what came", only_header(EntryType::Regular, 1 << 20), || {
            Rejected("the archive is truncated")
        }),
        (
            "a file of more than the limit",
            only_header(EntryType::Regular, LIMIT),
            Rejected("more than 67108864 bytes"),
            Rejected("the archive is truncated"),
        ),
        both("holes of 2^63 bytes", sparse(1 << 63, &[], 0, b""), || Rejected("bytes in a file")),
        both("a file that is one hole", sparse(1 << 40, &[], 0, b""), || {
            Accepted(&["sparse=1099511627776 bytes"])
        }),
        both("data between holes", sparse(9000, &[(4096, 3)], 3, b"abc"), || {
            Accepted(&["sparse=9000 bytes"])
        }),
        both("parts that overlap", sparse(9000, &[(0, 5), (4, 5)], 10, b"0123456789"), damaged),
        both("parts out of order", sparse(9000, &[(8, 4), (0, 4)], 8, b"01234567"), damaged),
        both("a part behind the end", sparse(4, &[(0, 8)], 8, b"01234567"), damaged),
        both("a part that wraps around", sparse(9000, &[(u64::MAX, 2)], 2, b"01"), damaged),
        both("less content than its parts", sparse(9000, &[(0, 8)], 4, b"0123"), damaged),
        both("more content than its parts", sparse(9000, &[(0, 4)], 8, b"01234567"), damaged),
        both("a map without end", endless_map(), || Rejected("holes in a file")),
    ]
}

pub(super) fn shapes() -> Vec<Row> {
    let damaged = || Rejected("the archive is damaged");
    let middle = || Rejected("the archive is truncated");
    let neither = || Rejected("is neither a file nor a directory");
    let whole = Tar::tree().file(b"a", b"content").end();
    let single = Tar::default().file(b"name", b"x");
    vec![
        both("nothing", Vec::new(), || Rejected("received no archive")),
        both("an end only", Tar::default().end(), || Rejected("it is empty")),
        both("no bytes of an archive", vec![1; 2000], damaged),
        both("half a header", whole[..700].to_vec(), middle),
        both("half a content", whole[..1027].to_vec(), middle),
        both("no end", cut(&whole, 1024), middle),
        both("half an end", cut(&whole, 512), middle),
        both(
            "something after half an end",
            Tar::tree().with_raw(&[0; 512]).file(b"a", b"").end(),
            damaged,
        ),
        both("something after the end", [&whole[..], b"more"].concat(), || {
            Accepted(&["a=content"])
        }),
        both("a wrong checksum", changed(|header| header.set_mode(0o777)), damaged),
        both(
            "a header of 1979",
            changed(|header| {
                header.as_mut_bytes()[257..265].fill(0);
                header.set_cksum();
            }),
            damaged,
        ),
        both(
            "a length that is not a number",
            changed(|header| {
                header.as_old_mut().size = *b"not octal!!!";
                header.set_cksum();
            }),
            damaged,
        ),
        both(
            "a time that is not a number",
            changed(|header| {
                header.as_old_mut().mtime = [0xff; 12];
                header.set_cksum();
            }),
            || Accepted(&["x="]),
        ),
        both(
            "a mode that is not a number",
            changed(|header| {
                header.as_old_mut().mode = *b"rwxr-xr-";
                header.set_cksum();
            }),
            || Accepted(&["x="]),
        ),
        both("a link as the root", Tar::default().symlink(b".", b"/etc").end(), neither),
        both("a file as the root", Tar::default().file(b".", b"x").end(), neither),
        both(
            "a link instead of a file",
            Tar::default().symlink(b"name", b"/etc/passwd").end(),
            neither,
        ),
        both(
            "a hard link instead of a file",
            Tar::default().hard_link(b"name", b"victim").end(),
            neither,
        ),
        both(
            "a pipe instead of a file",
            Tar::default().with(EntryType::Fifo, b"name", b"", b"").end(),
            neither,
        ),
        both(
            "a device instead of a file",
            Tar::default().with(EntryType::Char, b"name", b"", b"").end(),
            neither,
        ),
        both("a directory of its own name", Tar::default().directory(b"name").end(), neither),
        both("a single file", single.clone().end(), || Accepted(&["=x"])),
        both("a single file with a path", Tar::default().file(b"a/b/.bashrc", b"x").end(), || {
            Accepted(&["=x"])
        }),
        both("a single file from above", Tar::default().file(b"../escaped", b"x").end(), || {
            Rejected("leads out of the tree")
        }),
        both("two files", single.clone().file(b".bashrc", b"y").end(), || {
            Rejected("follows the single file")
        }),
        both("a file and a tree", single.directory(b".").end(), || {
            Rejected("follows the single file")
        }),
    ]
}
