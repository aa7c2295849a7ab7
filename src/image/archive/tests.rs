//! Archives of images with small parts, intact and damaged in every directory.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::statvfs;
use proptest::prelude::*;

use super::*;
use crate::error::ImageError;
use crate::signature::{SIGNATURE, SecretKey, SignatureError, Trust};
use crate::store::tests::Fixture;
use crate::store::{Image, MANIFEST, Store};

const SPDX: &str = "sbom.spdx.json";
const CYCLONEDX: &str = "sbom.cdx.json";

fn export(store: &Store, image: &Image) -> Result<Vec<u8>, ImageError> {
    let mut archive = Vec::new();
    store.export(image, &mut archive, Path::new("archive"), &mut |_, _| {})?;
    Ok(archive)
}

fn import(store: &Store, archive: &[u8], trust: &Trust) -> Result<Image, ImageError> {
    store.import(archive, Path::new("archive"), trust, &mut |_, _| {})
}

fn refusal(store: &Store, archive: &[u8]) -> ArchiveError {
    match import(store, archive, &Trust::default()).unwrap_err() {
        ImageError::Archive { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

fn compressed(tar: &[u8]) -> Vec<u8> {
    zstd::encode_all(tar, 1).unwrap()
}

fn uncompressed(archive: &[u8]) -> Vec<u8> {
    zstd::decode_all(archive).unwrap()
}

/// Returns an image in its own store, and its archive without compression.
fn tar_of(signed: bool) -> (Fixture, Image, Vec<u8>) {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "text of a part", 1);
    if signed {
        fixture.store.sign(&image, &key()).unwrap();
    }
    let tar = uncompressed(&export(&fixture.store, &image).unwrap());
    (fixture, image, tar)
}

fn key() -> SecretKey {
    let pair = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
    let file = pair.sk.to_box(None).unwrap().to_string();
    SecretKey::unlock(&file.into(), None).unwrap()
}

/// Returns whether a store has no image and no remains of an import.
fn is_empty(store: &Store) -> bool {
    let entries = fs::read_dir(store.path()).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name()).all(|name| name == ".lock")
}

#[test]
fn an_image_is_imported_unchanged_with_its_signature() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let image = here.publish("base", "one", 1);
    let key = key();
    here.store.sign(&image, &key).unwrap();
    let archive = export(&here.store, &image).unwrap();
    assert_eq!(archive, export(&here.store, &image).unwrap(), "the same every time");
    let mut moved = Vec::new();
    let trust = Trust::new(vec![key.public().unwrap()]);
    let imported = there
        .store
        .import(&*archive, Path::new("archive"), &trust, &mut |done, of| moved.push((done, of)))
        .unwrap();
    assert_eq!(moved.last(), Some(&(15, 15)));
    assert_eq!(imported.digest, image.digest);
    assert_eq!(there.find("base").unwrap().manifest, image.manifest);
    there.store.verify(&imported).unwrap();
    assert!(there.store.check_signature(&imported, &trust).unwrap().is_some());
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!((mode(&imported.directory), mode(&imported.rootfs())), (0o755, 0o444));
    // Importing it again changes nothing.
    import(&there.store, &archive, &Trust::default()).unwrap();
    assert_eq!(there.store.list().unwrap().images.len(), 1);
}

#[test]
fn any_tar_can_read_it() {
    let (_fixture, _, tar) = tar_of(true);
    let mut archive = tar::Archive::new(&*tar);
    let names: Vec<_> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, [MANIFEST, SIGNATURE, "kernel", "initramfs", "rootfs.img", SPDX, CYCLONEDX]);
}

#[test]
fn zeros_take_no_space_in_the_archive_or_the_store() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let mut rootfs = vec![0; 2 << 20];
    rootfs[1 << 20] = 1;
    *rootfs.last_mut().unwrap() = 2;
    let image = here.publish("base", &String::from_utf8(rootfs).unwrap(), 1);
    let archive = export(&here.store, &image).unwrap();
    assert!(archive.len() < 64 << 10, "{}", archive.len());
    let imported = import(&there.store, &archive, &Trust::default()).unwrap();
    there.store.verify(&imported).unwrap();
    let blocks = fs::metadata(imported.rootfs()).unwrap().blocks();
    assert!(blocks * 512 <= 64 << 10, "{blocks} blocks");
}

#[test]
fn an_import_on_a_small_disk_is_refused_before_it_fills_it() {
    const DISK: u64 = 64 << 20;
    let here = Fixture::new();
    // Five parts, of a few bytes in the archive.
    let image = here.publish("base", &"x".repeat(14 << 20), 1);
    let archive = export(&here.store, &image).unwrap();
    assert!(archive.len() < 64 << 10, "{}", archive.len());
    let directory = tempfile::tempdir().unwrap();
    // The mount exists for one thread only.
    let (least, error) = std::thread::scope(|scope| {
        let import = || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            let options = format!("size={DISK}");
            let (kind, options) = (Some("tmpfs"), Some(options.as_str()));
            mount(kind, directory.path(), kind, MsFlags::empty(), options).unwrap();
            let store = Store::open(directory.path().join("images"));
            let free = || {
                let disk = statvfs(directory.path()).unwrap();
                disk.blocks_available() * disk.fragment_size()
            };
            let mut least = u64::MAX;
            let imported =
                store.import(&*archive, Path::new("archive"), &Trust::default(), &mut |_, _| {
                    least = least.min(free());
                });
            assert!(is_empty(&store) && free() > DISK / 4 * 3);
            (least, imported.unwrap_err())
        };
        scope.spawn(import).join().unwrap()
    });
    assert!(least >= DISK / 50, "{least} bytes were left");
    assert!(mayfly_failure::chain(&error).contains("free"), "{error:?}");
}

#[test]
fn a_changed_part_is_not_exported() {
    for text in ["onE", "on", "onee"] {
        let fixture = Fixture::new();
        let image = fixture.publish("base", "one", 1);
        fs::remove_file(image.rootfs()).unwrap();
        fs::write(image.rootfs(), text).unwrap();
        let error = export(&fixture.store, &image).unwrap_err();
        assert!(matches!(error, ImageError::Changed { part, .. } if part == image.rootfs()));
    }
}

#[test]
fn a_flipped_bit_anywhere_in_an_archive_is_refused_or_changes_nothing() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let image = here.publish("base", "one", 1);
    let archive = export(&here.store, &image).unwrap();
    let mut harmless = 0;
    for at in 0..archive.len() {
        let mut bad = archive.clone();
        bad[at] ^= 1 << (at % 8);
        if let Ok(imported) = import(&there.store, &bad, &Trust::default()) {
            // E.g. a larger window than needed.
            assert_eq!(imported.digest, image.digest, "byte {at}");
            there.store.verify(&imported).unwrap();
            there.store.remove(&"base".parse().unwrap()).unwrap();
            harmless += 1;
        }
        assert!(is_empty(&there.store), "byte {at}");
    }
    assert!(harmless * 20 < archive.len(), "{harmless} of {}", archive.len());
}

#[test]
fn a_flipped_bit_in_the_content_is_rejected_or_changes_the_digest() {
    let (_fixture, image, tar) = tar_of(false);
    let manifest = BLOCK..BLOCK + fs::read(image.directory.join(MANIFEST)).unwrap().len();
    for at in 0..tar.len() {
        let mut bad = tar.clone();
        bad[at] ^= 1 << (at % 8);
        if let Ok(digest) = check(&bad) {
            assert!(manifest.contains(&at) && digest != image.digest, "byte {at}");
        }
    }
    assert_eq!(check(&tar).unwrap(), image.digest);
}

#[test]
fn only_the_signed_manifest_passes_where_a_signature_is_required() {
    let (fixture, image, tar) = tar_of(true);
    let there = Fixture::new();
    let signature = fs::read(image.directory.join(SIGNATURE)).unwrap();
    let key = key();
    fixture.store.sign(&image, &key).unwrap();
    let trust = Trust::new(vec![key.public().unwrap()]);
    let good = uncompressed(&export(&fixture.store, &image).unwrap());
    // The old signature has the same length but another key.
    assert_eq!((good.len(), signature.len()), (tar.len(), signature.len()));
    let error = import(&there.store, &compressed(&tar), &trust).unwrap_err();
    let foreign = |source: &SignatureError| matches!(source, SignatureError::UntrustedKey { .. });
    assert!(matches!(&error, ImageError::Untrusted { source, .. } if foreign(source)), "{error:?}");
    let at = good.windows(10).position(|window| window == b"\"created\":").unwrap() + 11;
    assert_eq!(good[at], b'1');
    let mut bad = good.clone();
    bad[at] = b'2';
    let error = import(&there.store, &compressed(&bad), &trust).unwrap_err();
    let wrong = |source: &SignatureError| matches!(source, SignatureError::Mismatch(_));
    assert!(matches!(&error, ImageError::Untrusted { source, .. } if wrong(source)), "{error:?}");
    assert!(is_empty(&there.store));
    import(&there.store, &compressed(&good), &trust).unwrap();
    // An unchecked signature does not replace it.
    import(&there.store, &compressed(&tar), &Trust::default()).unwrap();
    assert!(there.store.check_signature(&there.find("base").unwrap(), &trust).is_ok());
}

#[test]
fn an_archive_without_its_end_is_refused_wherever_it_ends() {
    let (_fixture, _, tar) = tar_of(true);
    for end in 0..tar.len() {
        let error = check(&tar[..end]).unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated), "{end}: {error:?}");
    }
    let there = Fixture::new();
    let archive = compressed(&tar);
    for end in (0..archive.len()).step_by(7) {
        let error = refusal(&there.store, &archive[..end]);
        assert!(matches!(error, ArchiveError::Truncated), "{end}: {error:?}");
        assert!(is_empty(&there.store));
    }
}

#[test]
fn nothing_may_follow() {
    let (_fixture, _, tar) = tar_of(false);
    let there = Fixture::new();
    let more = [&tar[..], &[0]].concat();
    assert!(matches!(check(&more), Err(ArchiveError::Trailing)));
    let archive = compressed(&tar);
    for more in [&b"x"[..], &[0; 512], &archive] {
        let error = refusal(&there.store, &[&archive, more].concat());
        assert!(matches!(error, ArchiveError::Trailing), "{error:?}");
    }
    assert!(is_empty(&there.store));
}

/// Returns a tar archive of these files, without checks.
fn tar_with(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, bytes) in files {
        // Names that `header` rejects are written directly.
        let mut header = header("x", bytes.len() as u64).unwrap();
        header[..100].fill(0);
        header[..name.len()].copy_from_slice(name.as_bytes());
        let mut header = tar::Header::from_byte_slice(&header).clone();
        header.set_cksum();
        tar.extend(header.as_bytes());
        tar.extend(*bytes);
        tar.extend(&[0; BLOCK][..padding(bytes.len() as u64)]);
    }
    tar.extend([0; END]);
    tar
}

#[test]
fn foreign_duplicate_and_misplaced_entries_are_rejected() {
    let (_fixture, image, tar) = tar_of(false);
    let manifest = fs::read(image.directory.join(MANIFEST)).unwrap();
    let text: &[u8] = b"text of a part";
    let files = [
        (MANIFEST, &*manifest),
        ("kernel", text),
        ("initramfs", text),
        ("rootfs.img", text),
        (SPDX, text),
        (CYCLONEDX, text),
    ];
    assert_eq!(tar_with(&files), tar);
    let with = |at: usize, name, bytes| {
        let mut files = files.to_vec();
        files.insert(at, (name, bytes));
        check(&tar_with(&files)).unwrap_err()
    };
    for name in ["other", "../kernel", "/etc/passwd", "kernel", "./kernel", MANIFEST, SIGNATURE] {
        for at in 2..4 {
            let error = with(at, name, text);
            assert!(matches!(error, ArchiveError::Entry { .. }), "{at} {name}: {error:?}");
        }
        assert!(matches!(with(files.len(), name, text), ArchiveError::Trailing), "{name}");
    }
    assert!(matches!(with(0, "kernel", text), ArchiveError::NotAnArchive));
    assert!(matches!(with(1, MANIFEST, &manifest), ArchiveError::Entry { .. }));
    let long = vec![b'x'; 9 << 10];
    assert!(matches!(with(1, SIGNATURE, &long), ArchiveError::TooLong { .. }));
    let without = [files[0], files[1], files[3]];
    let error = check(&tar_with(&without)).unwrap_err();
    let named =
        "unexpected entry: expected initramfs, found \"rootfs.img\", or that with other properties";
    assert_eq!(error.to_string(), named);
}

#[test]
fn impossible_lengths_are_rejected_before_memory_is_allocated() {
    let (_fixture, image, _) = tar_of(false);
    let header = header(MANIFEST, 1 << 50).unwrap();
    assert!(matches!(check(&header), Err(ArchiveError::TooLong { name: MANIFEST, .. })));
    let mut manifest = image.manifest.clone();
    manifest.parts.rootfs.bytes = MAX_PART + 1;
    let bytes = manifest.to_bytes().unwrap();
    let error = check(&tar_with(&[(MANIFEST, &bytes)])).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLong { name: "rootfs.img", .. }), "{error:?}");
    let mut manifest = image.manifest.clone();
    manifest.parts.rootfs.file = manifest.parts.kernel.file;
    let bytes = manifest.to_bytes().unwrap();
    let error = check(&tar_with(&[(MANIFEST, &bytes)])).unwrap_err();
    assert!(matches!(error, ArchiveError::WrongPart("kernel")), "{error:?}");
}

#[test]
fn a_window_that_would_exhaust_the_hosts_memory_is_rejected() {
    let (_fixture, _, tar) = tar_of(false);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(MAX_WINDOW_LOG + 1).unwrap();
    encoder.write_all(&tar).unwrap();
    let archive = encoder.finish().unwrap();
    let mut read = Vec::new();
    zstd::Decoder::new(&*archive).unwrap().read_to_end(&mut read).unwrap();
    assert_eq!(read, tar, "the archive is valid otherwise");
    let error = refusal(&Fixture::new().store, &archive);
    assert!(matches!(error, ArchiveError::Unreadable(_)), "{error:?}");
}

proptest! {
    #[test]
    fn random_bytes_are_not_an_archive(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(check(&bytes).is_err());
        prop_assert!(import(&Fixture::new().store, &bytes, &Trust::default()).is_err());
    }

    #[test]
    fn a_part_is_filled_up_to_whole_blocks(bytes in 0..u64::MAX / 2) {
        let padding = padding(bytes);
        prop_assert!(padding < BLOCK && (bytes + padding as u64).is_multiple_of(BLOCK as u64));
    }
}
