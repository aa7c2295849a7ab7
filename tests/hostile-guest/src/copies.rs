//! Copy-out archives that the agent would never send.

use tar::{EntryType, Header};

/// Returns the archive of a mode.
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
        // Without the end marker.
        _ => return [tree(), file("file")].concat(),
    };
    archive.extend([0; 1024]);
    archive
}

/// Returns a header, and the content if it is a file.
fn entry(kind: EntryType, name: &str, size: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    // Written directly: the library rejects such names.
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
