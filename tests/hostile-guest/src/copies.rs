//! Archives that an agent never sends as what is copied out.

use tar::{EntryType, Header};

/// The one of a mode.
pub(crate) fn archive(mode: &str) -> Vec<u8> {
    let tree = || entry(EntryType::Directory, ".", 0);
    let file = |name| entry(EntryType::Regular, name, 5);
    let mut archive = match mode {
        "copy-names" => file(".bashrc"),
        "copy-tree" => [tree(), file(".bashrc")].concat(),
        "copy-escapes" => [tree(), file("../../escaped")].concat(),
        "copy-long-name" => {
            [tree(), entry(EntryType::GNULongName, "././@LongLink", 300 << 20)].concat()
        }
        // Without its end.
        _ => return [tree(), file("file")].concat(),
    };
    archive.extend([0; 1024]);
    archive
}

/// A header, with content where it is a file's.
fn entry(kind: EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    // Written by hand: the library refuses to.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o6777);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    if kind == EntryType::Regular {
        bytes.extend(b"owned");
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}
