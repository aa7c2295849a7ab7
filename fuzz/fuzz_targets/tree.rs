//! Unpacks arbitrary bytes as a tree from a guest: everything is written to its destination, and no
//! link in it leads out.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mayfly_tree::{ArchiveOrigin, Destination, unpack};

fuzz_target!(|bytes: &[u8]| {
    let Ok(outer) = tempfile::Builder::new().prefix("fuzz-tree-").tempdir() else { return };
    let victim = outer.path().join("victim");
    fs::write(&victim, "as it was").unwrap();
    let inner = outer.path().join("inner");
    for origin in [ArchiveOrigin::Guest { limit: 16 << 20 }, ArchiveOrigin::Host { owner: None }] {
        let destination = Destination { path: &inner, name: Some(b"inner") };
        let _ = unpack(bytes, destination, origin, |_| Ok(()));
        assert_eq!(fs::read(&victim).unwrap(), b"as it was");
        assert!(fs::read_dir(outer.path()).unwrap().count() <= 2, "a file beside the destination");
        if matches!(origin, ArchiveOrigin::Guest { .. }) && inner.is_dir() {
            assert_inside(&inner, &fs::canonicalize(&inner).unwrap());
        }
    }
});

/// Asserts that no path in `directory` leads out of `root`.
fn assert_inside(directory: &Path, root: &Path) {
    // A guest's directory may be unreadable.
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if let Ok(real) = fs::canonicalize(&path) {
            assert!(real.starts_with(root), "{path:?} leads to {real:?}");
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            assert_inside(&path, root);
        }
    }
}
