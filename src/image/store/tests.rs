//! Stores of images whose parts are a few bytes.

use super::*;
use crate::manifest::{Part, Parts};
use crate::signature::Trust;

pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) directory: tempfile::TempDir,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { store: Store::open(directory.path().join("images")), directory }
    }

    /// Publishes an image `name` whose parts are `text`.
    pub(crate) fn candidate(&self, name: &str, text: &str, protocol: u16) -> Candidate {
        let finished = self.directory.path().join("finished");
        fs::create_dir(&finished).unwrap();
        let part = |file: PartName| {
            fs::write(finished.join(file.as_str()), text).unwrap();
            Part { file, bytes: text.len() as u64, sha256: hash::of_bytes(text.as_bytes()) }
        };
        let parts = Parts {
            kernel: part(PartName::Kernel),
            initramfs: part(PartName::Initramfs),
            rootfs: part(PartName::Rootfs),
            spdx: part(PartName::Spdx),
            cyclonedx: part(PartName::CycloneDx),
        };
        let manifest = Manifest { protocol, parts, ..Manifest::sample(name) };
        let bytes = manifest.to_bytes().unwrap();
        fs::write(finished.join(MANIFEST), &bytes).unwrap();
        let image = self.store.publish(&finished, &manifest.name, hash::of_bytes(&bytes)).unwrap();
        let _ = fs::remove_dir_all(&finished);
        image
    }

    /// Publishes an image and makes it the current build of its name.
    pub(crate) fn publish(&self, name: &str, text: &str, protocol: u16) -> Image {
        let image = self.candidate(name, text, protocol);
        self.store.promote(&image).unwrap()
    }

    pub(crate) fn find(&self, reference: &str) -> Result<Image, ImageError> {
        self.store.find(&reference.parse().unwrap())
    }
}

#[test]
fn a_name_refers_to_its_current_build_and_a_digest_to_a_specific_one() {
    let fixture = Fixture::new();
    let old = fixture.publish("base", "one", 1);
    let new = fixture.publish("base", "two", 1);
    assert_ne!(old.digest, new.digest);
    assert_eq!(fixture.find("base").unwrap().digest, new.digest);
    let reference = format!("base@{}", old.digest.short());
    assert_eq!(fixture.find(&reference).unwrap().digest, old.digest);
}

#[test]
fn an_image_that_is_not_there_is_unknown() {
    let fixture = Fixture::new();
    assert!(matches!(fixture.find("base"), Err(ImageError::Unknown { .. })));
    fixture.publish("base", "one", 1);
    assert!(matches!(fixture.find("other"), Err(ImageError::Unknown { .. })));
    let digest = "0".repeat(63);
    assert!(matches!(fixture.find(&format!("base@{digest}")), Err(ImageError::Unknown { .. })));
}

#[test]
fn a_prefix_of_several_digests_is_ambiguous() {
    let fixture = Fixture::new();
    // By the pigeonhole principle, two of 17 digests begin with the same digit.
    let digits: Vec<char> = (0..17)
        .map(|index| fixture.publish("base", &index.to_string(), 1))
        .map(|image| image.digest.as_str().chars().next().unwrap())
        .collect();
    let twice = digits.iter().find(|digit| digits.iter().filter(|d| d == digit).count() > 1);
    let error = fixture.find(&format!("base@{}", twice.unwrap())).unwrap_err();
    assert!(matches!(error, ImageError::Ambiguous { matches, .. } if matches.len() > 1));
}

#[test]
fn an_image_published_twice_is_there_once() {
    let fixture = Fixture::new();
    let first = fixture.publish("base", "one", 1);
    let second = fixture.publish("base", "one", 1);
    assert_eq!(first.directory, second.directory);
    assert_eq!(fixture.store.list().unwrap().images.len(), 1);
}

#[test]
fn building_again_repairs_a_changed_image() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", 1);
    fs::write(image.rootfs(), "bad").unwrap();
    assert!(matches!(fixture.store.verify(&image), Err(ImageError::Changed { .. })));
    let image = fixture.publish("base", "one", 1);
    fixture.store.verify(&image).unwrap();
}

#[test]
fn an_image_with_a_changed_manifest_is_rejected() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", 1);
    let path = image.directory.join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("6-cloud", "7-cloud")).unwrap();
    assert!(matches!(fixture.find("base"), Err(ImageError::Changed { .. })));
    let listing = fixture.store.list().unwrap();
    assert!(listing.images.is_empty());
    assert_eq!(listing.broken.len(), 1);
}

#[test]
fn the_list_has_the_newest_of_each_name_first() {
    let fixture = Fixture::new();
    assert!(fixture.store.list().unwrap().images.is_empty());
    fixture.publish("base", "one", 1);
    fixture.publish("base", "two", 1);
    let newest = fixture.publish("base", "three", 1);
    fixture.publish("a", "one", 1);
    let images = fixture.store.list().unwrap().images;
    let names: Vec<_> = images.iter().map(|(image, _)| image.name.as_str()).collect();
    assert_eq!(names, ["a", "base", "base", "base"]);
    let newests: Vec<_> = images.iter().map(|(_, newest)| *newest).collect();
    assert_eq!(newests, [true, true, false, false]);
    assert_eq!(images[1].0.digest, newest.digest);
}

#[test]
fn removing_the_newest_brings_back_the_one_before() {
    let fixture = Fixture::new();
    let old = fixture.publish("base", "one", 1);
    let new = fixture.publish("base", "two", 1);
    let base: Reference = "base".parse().unwrap();
    assert_eq!(fixture.store.remove(&base).unwrap(), new.digest);
    assert_eq!(fixture.find("base").unwrap().digest, old.digest);
    assert_eq!(fixture.store.remove(&base).unwrap(), old.digest);
    assert!(matches!(fixture.store.remove(&base), Err(ImageError::Unknown { .. })));
    let remaining = names_in(fixture.store.path()).unwrap();
    assert_eq!(remaining, [".lock"]);
}

#[test]
fn a_candidate_is_not_the_current_build_of_its_name() {
    let fixture = Fixture::new();
    let only = fixture.candidate("base", "zero", 1).image;
    assert!(matches!(fixture.find("base"), Err(ImageError::Unknown { .. })));
    let current = fixture.publish("base", "one", 1);
    let candidate = fixture.candidate("base", "two", 1).image;
    assert_eq!(fixture.find("base").unwrap().digest, current.digest);
    let reference = Reference::exactly(&candidate.name, &candidate.digest);
    assert_eq!(fixture.store.find(&reference).unwrap().digest, candidate.digest);
    // Nor does it become current when another candidate is removed.
    fixture.store.remove(&Reference::exactly(&only.name, &only.digest)).unwrap();
    assert_eq!(fixture.find("base").unwrap().digest, current.digest);
    fixture.store.point(&reference).unwrap();
    assert_eq!(fixture.find("base").unwrap().digest, candidate.digest);
}

#[test]
fn a_rollback_goes_back_and_another_forward_again() {
    let fixture = Fixture::new();
    let base = "base".parse().unwrap();
    assert!(matches!(fixture.store.rollback(&base), Err(ImageError::Unknown { .. })));
    let oldest = fixture.publish("base", "one", 1);
    assert!(matches!(fixture.store.rollback(&base), Err(ImageError::NoPrevious { .. })));
    let old = fixture.publish("base", "two", 1);
    let new = fixture.publish("base", "three", 1);
    // Publishing it again changes nothing: the previous build is still known.
    fixture.publish("base", "three", 1);
    for expected in [&old, &new, &old] {
        assert_eq!(fixture.store.rollback(&base).unwrap().digest, expected.digest);
        assert_eq!(fixture.find("base").unwrap().digest, expected.digest);
    }
    fixture.store.remove(&Reference::exactly(&base, &new.digest)).unwrap();
    assert!(matches!(fixture.store.rollback(&base), Err(ImageError::NoPrevious { .. })));
    assert_eq!(fixture.find("base").unwrap().digest, old.digest);
    assert!(oldest.directory.is_dir());
}

#[test]
fn a_changed_build_is_not_rolled_back_to() {
    let fixture = Fixture::new();
    let old = fixture.publish("base", "one", 1);
    let new = fixture.publish("base", "two", 1);
    fs::write(old.directory.join(MANIFEST), "{}").unwrap();
    let error = fixture.store.rollback(&new.name).unwrap_err();
    assert!(matches!(error, ImageError::Changed { .. }));
    assert_eq!(fixture.find("base").unwrap().digest, new.digest);
}

#[test]
fn removing_the_current_build_restores_the_previous_one_not_the_newest() {
    let fixture = Fixture::new();
    let old = fixture.publish("base", "one", 1);
    fixture.publish("base", "two", 1);
    fixture.candidate("base", "three", 1);
    fixture.store.remove(&"base".parse().unwrap()).unwrap();
    assert_eq!(fixture.find("base").unwrap().digest, old.digest);
}

#[test]
fn an_image_of_another_protocol_is_not_booted() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", mayfly_protocol::VERSION + 1);
    let stamps = fixture.directory.path().join("stamps");
    let error = fixture.store.ensure_verified(&image, &stamps, &Trust::default()).unwrap_err();
    assert!(matches!(error, ImageError::Protocol { .. }));
    assert!(mayfly_failure::Failure::hint(&error).unwrap().contains("image build"));
}

#[test]
fn a_change_after_verification_is_found() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", mayfly_protocol::VERSION);
    let stamps = fixture.directory.path().join("stamps");
    fixture.store.ensure_verified(&image, &stamps, &Trust::default()).unwrap();
    fixture.store.ensure_verified(&image, &stamps, &Trust::default()).unwrap();
    // Same length and modification time: only the change time differs.
    let modified = fs::metadata(image.rootfs()).unwrap().modified().unwrap();
    fs::write(image.rootfs(), "two").unwrap();
    File::options().write(true).open(image.rootfs()).unwrap().set_modified(modified).unwrap();
    let error = fixture.store.ensure_verified(&image, &stamps, &Trust::default()).unwrap_err();
    assert!(matches!(error, ImageError::Changed { part, .. } if part == image.rootfs()));
}

#[test]
fn a_verified_image_is_not_read_again() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", mayfly_protocol::VERSION);
    let stamps = fixture.directory.path().join("stamps");
    fixture.store.ensure_verified(&image, &stamps, &Trust::default()).unwrap();
    // A manifest that no file can satisfy: hashing would fail.
    let mut impossible = image.clone();
    impossible.manifest.parts.rootfs.sha256 = hash::of_bytes(b"something else");
    fixture.store.ensure_verified(&impossible, &stamps, &Trust::default()).unwrap();
    fs::remove_dir_all(&stamps).unwrap();
    assert!(fixture.store.ensure_verified(&impossible, &stamps, &Trust::default()).is_err());
}

/// Runs a collection and returns each build with the reason why it is retained.
fn collect(
    fixture: &Fixture,
    retention: &RetainedBuilds,
    dry_run: bool,
) -> Vec<(String, Option<RetentionReason>)> {
    let collection = fixture.store.collect(retention, dry_run).unwrap();
    let mut retained: Vec<_> = collection
        .images
        .into_iter()
        .map(|build| (format!("{}@{}", build.name, build.digest), build.retained))
        .collect();
    retained.sort();
    retained
}

fn entry(image: &Image, retained: Option<RetentionReason>) -> (String, Option<RetentionReason>) {
    (format!("{}@{}", image.name, image.digest), retained)
}

#[test]
fn a_collection_removes_unreferenced_builds() {
    let fixture = Fixture::new();
    let [first, pinned, old, new] =
        ["one", "two", "three", "four"].map(|text| fixture.publish("base", text, 1));
    let other = fixture.publish("other", "one", 1);
    let prefix = format!("base@{}", pinned.digest.short());
    let retention = RetainedBuilds {
        pinned: vec![prefix.parse().unwrap(), "absent@00".parse().unwrap()],
        recent: 0,
    };
    let mut expected = vec![
        entry(&first, None),
        entry(&pinned, Some(RetentionReason::Pinned)),
        entry(&old, Some(RetentionReason::Previous)),
        entry(&new, Some(RetentionReason::Current)),
        entry(&other, Some(RetentionReason::Current)),
    ];
    expected.sort();
    assert_eq!(collect(&fixture, &retention, true), expected);
    assert!(first.directory.is_dir(), "a dry run removes nothing");
    assert_eq!(collect(&fixture, &retention, false), expected);
    assert!(!first.directory.exists());
    // After a rollback the same two builds are retained, with swapped reasons.
    fixture.store.rollback(&old.name).unwrap();
    let after = collect(&fixture, &RetainedBuilds::default(), false);
    assert!(after.contains(&entry(&old, Some(RetentionReason::Current))));
    assert!(after.contains(&entry(&new, Some(RetentionReason::Previous))));
    assert!(after.contains(&entry(&pinned, None)));
    assert_eq!(fixture.store.list().unwrap().images.len(), 3);
    assert_eq!(names_in(fixture.store.path()).unwrap(), [".lock", "base", "other"]);
}

#[test]
fn a_collection_leaves_images_in_use() {
    let fixture = Fixture::new();
    let used = fixture.publish("base", "one", 1);
    for text in ["two", "three"] {
        fixture.publish("base", text, 1);
    }
    let candidate = fixture.candidate("base", "four", 1);
    let one = Hold::take(&used.directory).unwrap();
    let other = Hold::take(&used.directory).unwrap();
    drop(one);
    let reason_of = |image: &Image| {
        let all = collect(&fixture, &RetainedBuilds::default(), false);
        let name = entry(image, None).0;
        all.into_iter().find(|(other, _)| *other == name).map(|(_, retained)| retained)
    };
    assert_eq!(reason_of(&used), Some(Some(RetentionReason::InUse)));
    assert_eq!(reason_of(&candidate.image), Some(Some(RetentionReason::InUse)));
    drop(other);
    assert_eq!(reason_of(&used), Some(None));
    assert_eq!(reason_of(&used), None);
    assert_eq!(Hold::take(&used.directory).unwrap_err().kind(), io::ErrorKind::NotFound);
    let image = candidate.image.clone();
    drop(candidate);
    assert_eq!(reason_of(&image), Some(None));
}

#[test]
fn a_collection_retains_the_requested_number_of_recent_builds() {
    let fixture = Fixture::new();
    let images =
        ["one", "two", "three", "four", "five"].map(|text| fixture.publish("base", text, 1));
    for (age, image) in images.iter().rev().enumerate() {
        let manifest = File::open(image.directory.join(MANIFEST)).unwrap();
        let time = std::time::SystemTime::now() - Duration::from_secs(60 * age as u64);
        manifest.set_modified(time).unwrap();
    }
    let retention = RetainedBuilds { pinned: Vec::new(), recent: 3 };
    let removed: Vec<_> = collect(&fixture, &retention, false)
        .into_iter()
        .filter(|(_, retained)| retained.is_none())
        .map(|(name, _)| name)
        .collect();
    let mut expected = [&images[0], &images[1]].map(|image| entry(image, None).0);
    expected.sort();
    assert_eq!(removed, expected);
}

#[test]
fn a_collection_removes_the_remains_of_dead_builds_but_not_live_ones() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", 1);
    let dead = crate::build::disposable_directory(fixture.store.path()).unwrap();
    fs::create_dir(dead.join("work")).unwrap();
    fs::write(dead.join("work/file"), "something").unwrap();
    let live = crate::build::Workspace::claim(&fixture.store).unwrap();
    assert_eq!(fixture.store.collect(&RetainedBuilds::default(), true).unwrap().dead_builds, 1);
    assert!(dead.is_dir());
    let collection = fixture.store.collect(&RetainedBuilds::default(), false).unwrap();
    assert_eq!(collection.dead_builds, 1);
    assert!(collection.freed > 0);
    assert!(!dead.exists() && live.image().is_dir() && image.directory.is_dir());
    live.discard().unwrap();
}

#[test]
fn a_collection_removes_old_unused_downloads() {
    let fixture = Fixture::new();
    fixture.publish("base", "one", 1);
    let directory = fixture.store.path().join(".downloads");
    fs::create_dir(&directory).unwrap();
    let file = |name: &str, days: u64| {
        let path = directory.join(name);
        fs::write(&path, "archive").unwrap();
        let time = std::time::SystemTime::now() - Duration::from_secs(days * 86_400);
        File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        path
    };
    let (young, old) = (file("young", 0), file("old", 2));
    assert_eq!(fixture.store.collect(&RetainedBuilds::default(), false).unwrap().downloads, 1);
    assert!(young.exists() && !old.exists());
}

#[test]
fn an_unreadable_build_is_not_treated_as_absent() {
    let fixture = Fixture::new();
    let image = fixture.publish("base", "one", 1);
    let other = fixture.candidate("base", "two", 1);
    let directory = fixture.store.directory(&image.name, &image.digest);
    fs::rename(&directory, fixture.directory.path().join("aside")).unwrap();
    // Not even root can follow a link to itself.
    std::os::unix::fs::symlink(&directory, &directory).unwrap();
    assert!(matches!(fixture.find("base"), Err(ImageError::Read { .. })));
    let nothing = RetainedBuilds { recent: 0, pinned: Vec::new() };
    assert!(fixture.store.collect(&nothing, false).is_err());
    assert!(fixture.store.directory(&other.image.name, &other.image.digest).is_dir());
}
