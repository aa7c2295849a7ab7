//! Paths and links that stay in their tree.

use proptest::prelude::*;

use super::*;
use crate::{TreePath, TreeReader};

#[test]
fn a_link_counts_as_inside_only_if_it_certainly_is() {
    for (name, target, inside) in [
        ("l", "a", true),
        ("l", "./a/b", true),
        ("l", ".", true),
        ("a/l", "..", true),
        ("a/b/l", "../../c", true),
        ("l", "..", false),
        ("a/l", "../..", false),
        ("l", "/a", false),
        ("l", "", false),
        // Inside if `b` is a directory, anywhere if it is a link.
        ("a/l", "b/..", false),
        ("a/l", "../b/../../c", false),
    ] {
        let parsed = TreePath::parse(name.as_bytes()).unwrap();
        assert_eq!(parsed.link_stays_inside(target.as_bytes()), inside, "{name} -> {target}");
    }
}

proptest! {
    #[test]
    fn a_name_never_leaves_its_tree(path in "[./a-c]{0,16}") {
        if let Ok(name) = TreePath::parse(path.as_bytes()) {
            let text = std::str::from_utf8(name.as_bytes()).unwrap();
            prop_assert!(name.is_root() || text.split('/').all(|part| !matches!(part, "" | "." | "..")));
            prop_assert_eq!(TreePath::parse(if name.is_root() { b"." } else { name.as_bytes() }).unwrap(), name);
        }
    }

    /// Whatever links exist, the kernel never follows an accepted one out of the tree.
    #[test]
    fn no_accepted_link_leads_out(
        links in prop::collection::vec(("(a/){0,2}[lm]", "(\\.\\./){0,3}(a/|l/|m/|\\./){0,3}(\\.\\.|[alm])"), 1..6)
    ) {
        let dir = TestDir::new();
        let mut tar = Tar::tree().directory(b"a").directory(b"a/a");
        for (name, target) in &links {
            tar = tar.symlink(name.as_bytes(), target.as_bytes());
        }
        dir.unpack(&tar.end(), GUEST).unwrap();
        let inner = fs::canonicalize(dir.path("inner")).unwrap();
        for (name, _) in &links {
            if let Ok(real) = fs::canonicalize(inner.join(name)) {
                prop_assert!(real.starts_with(&inner), "{name} of {links:?} leads to {real:?}");
            }
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        // A valid beginning and valid checksums let the reader get further.
        for at in (0..bytes.len() / 512 * 512).step_by(1024) {
            let mut header = Header::new_gnu();
            header.as_mut_bytes()[..257].copy_from_slice(&bytes[at..at + 257]);
            header.as_mut_bytes()[345..].copy_from_slice(&bytes[at + 345..at + 512]);
            header.set_cksum();
            bytes[at..at + 512].copy_from_slice(header.as_bytes());
        }
        let dir = TestDir::new();
        for origin in [GUEST, HOST] {
            let _ = dir.unpack(&bytes, origin);
            let _ = dir.unpack(&[&Tar::tree().0[..], &bytes].concat(), origin);
            dir.assert_nothing_beside();
        }
        let mut reader = TreeReader::new(&bytes[..]);
        while let Ok(Some(entry)) = reader.next_entry() {
            prop_assert!(entry.name.as_bytes().len() <= crate::MAX_PATH_LENGTH);
        }
    }
}
