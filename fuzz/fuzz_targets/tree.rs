//! Any bytes as a tree that comes out of a guest: whatever is unpacked of it lies in its destination,
//! and no link there leads out of it.
#![no_main]

use std::fs;
use std::path::Path;

use libfuzzer_sys::fuzz_target;
use mayfly_tree::{Destination, Origin, unpack};

fuzz_target!(|bytes: &[u8]| {
    let Ok(place) = tempfile::Builder::new().prefix("fuzz-tree-").tempdir() else { return };
    let victim = place.path().join("victim");
    fs::write(&victim, "as it was").unwrap();
    let inner = place.path().join("inner");
    for origin in [Origin::Guest { limit: 16 << 20 }, Origin::Host { owner: None }] {
        let destination = Destination { path: &inner, name: Some(b"inner") };
        let _ = unpack(bytes, destination, origin, |_| Ok(()));
        assert_eq!(fs::read(&victim).unwrap(), b"as it was");
        assert!(fs::read_dir(place.path()).unwrap().count() <= 2, "something lies beside");
        if matches!(origin, Origin::Guest { .. }) && inner.is_dir() {
            assert_inside(&inner, &fs::canonicalize(&inner).unwrap());
        }
    }
});

/// Nothing that can be reached from here is elsewhere.
fn assert_inside(directory: &Path, root: &Path) {
    // A guest's directory may be one that can't be read.
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
